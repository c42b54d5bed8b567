"""Settings of malloc: freed host memory is kept for the next step.

XLA:CPU allocates the temporaries of a program anew at every call. glibc takes blocks
that large from the kernel and gives them back when they are freed, so every step of a
25M-parameter model touches some 700,000 fresh pages, and half of the speed is lost.
With one arena, no mapped blocks and no trimming the pages are used again
(`tools/bench_train.py --malloc default` shows the difference). The price: the process
keeps its peak.
"""

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; False where there is no glibc.

    Call it before jax starts its threads: a thread that has an arena of its own goes
    on taking large blocks from the kernel. JAXLAB_KEEP_MEMORY=0 leaves malloc alone.
    """
    if os.environ.get("JAXLAB_KEEP_MEMORY") == "0" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    accepted = [mallopt(name, value) for name, value in settings]
    return all(accepted)
