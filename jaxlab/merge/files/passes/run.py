"""Runs a merge in threads: which chunks there are, and what happens to each."""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxlab.core import progress as progress_lib
from jaxlab.merge.files.passes import blocks, linear
from jaxlab.merge.files.passes import job as job_lib
from jaxlab.merge.files.passes import parts as parts_lib

Task = Callable[[blocks.Workspace], None]
THREADS = 2  # reading, summing and writing keep about two cores busy
ON_SPHERES = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


def run(
    job: job_lib.Job,
    parts: Sequence[parts_lib.Part],
    total: int,
    progress: progress_lib.Progress | None,
) -> None:
    """Makes all parts; stops all threads at the first error."""
    tasks = iter(_tasks(job, parts))
    lock, stop, done = threading.Lock(), threading.Event(), 0
    block = min(blocks.BLOCK_BYTES, job.chunk_bytes)  # THREADS * BUFFERS of them

    def work():
        nonlocal done
        space = blocks.Workspace(block)
        with np.errstate(invalid="ignore", over="ignore"):
            while not stop.is_set():
                with lock:
                    task, size = next(tasks, (None, 0))
                if task is None:
                    return
                try:
                    task(space)
                except BaseException:
                    stop.set()
                    raise
                with lock:
                    done += size
                    if progress is not None:
                        progress(done, total)

    threads = min(THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()


def _tasks(job, parts) -> Iterator[tuple[Task, int]]:
    """Chunks of what can be merged chunk by chunk; whole parts of what cannot."""
    is_linear = job.recipe.method in linear.METHODS

    def order(part):
        # What may be refused first; then the largest of whole parts, so that no thread
        # is left alone with it at the end.
        return not part.is_copied, 0 if is_linear else -part.size

    merge_whole = None if is_linear else _merge_of_whole_parts(job.recipe.method)
    for part in sorted(parts, key=order):
        size = sum(dtype.itemsize for dtype in part.dtypes)
        if part.is_copied:
            action = functools.partial(linear.copy_integers, job, part)
        elif merge_whole is None:
            combination = linear.coefficients(job.recipe, part)
            action = functools.partial(linear.combine, job, part, combination)
        else:
            yield functools.partial(merge_whole, job, part), size * part.size
            continue
        step = max(job.chunk_bytes // part.wide.itemsize, 1)
        for start in range(0, part.size, step):
            count = min(step, part.size - start)
            yield functools.partial(action, start, count), size * count


def _merge_of_whole_parts(method: str) -> Callable[..., None]:
    if method in ON_SPHERES:
        from jaxlab.merge.files.passes import spheres  # imports jax

        return spheres.merge
    from jaxlab.merge.files.passes import sparse

    return sparse.merge
