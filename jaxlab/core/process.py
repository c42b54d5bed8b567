"""The process before its first computation: caches, memory, the other hosts."""

import os
import pathlib

import jax

from jaxlab.core import host_memory


def start() -> None:
    """Prepares the process; the command line calls it, a library user may.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default in the user's
    cache folder; JAXLAB_COMPILATION_CACHE=0 turns that off. JAXLAB_KEEP_MEMORY=0 leaves
    malloc as it is (`core/host_memory.py`).

    A laptop or a Colab must never wait for a coordinator that does not exist, so other
    hosts are joined only with JAXLAB_MULTIHOST=1. Arguments come from the environment
    of TPU VMs, Slurm or Open MPI; elsewhere from JAXLAB_COORDINATOR,
    JAXLAB_NUM_PROCESSES and JAXLAB_PROCESS_ID.
    """
    host_memory.keep_freed()
    if os.environ.get("JAXLAB_COMPILATION_CACHE") == "0":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home) / "jaxlab" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A command runs dozens of programs that compile in less than jax's own 1 s.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if os.environ.get("JAXLAB_MULTIHOST") == "1":
        _join_hosts()


def _join_hosts() -> None:
    if jax.distributed.is_initialized():
        return
    coordinator = os.environ.get("JAXLAB_COORDINATOR")
    if coordinator is None:
        jax.distributed.initialize()
        return
    jax.distributed.initialize(
        coordinator,
        int(os.environ["JAXLAB_NUM_PROCESSES"]),
        int(os.environ["JAXLAB_PROCESS_ID"]),
    )
