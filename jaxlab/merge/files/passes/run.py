"""Runs a merge in threads: which chunks there are, and what happens to each."""

import concurrent.futures
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.files.read import compatible, source
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import outputs

Task = Callable[[blocks.Workspace], None]
Progress = Callable[[int, int], None]

THREADS = 2  # reading, summing and writing keep about two cores busy
LINEAR = ("linear", "interpolate", "task_arithmetic")
ON_SPHERES = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


@dataclasses.dataclass(frozen=True)
class Job:
    """What the threads share.

    Attributes:
        dtypes: of the result, by tensor.
        chunk_bytes: what a thread takes at a time, of the widened numbers.
    """

    recipe: recipe_lib.Recipe
    reader: source.Reader
    output: outputs.Output
    dtypes: Mapping[str, np.dtype]
    chunk_bytes: int

    def write(self, part, start, wide, space) -> None:
        """Rounds a block of a part and writes it."""
        dtype = self.dtypes[part.name]
        values = blocks.narrow(wide, dtype, space, part.name)
        self.output.write(part.name, part.start + start, values)


def check(method: str, parts: Sequence[parts_lib.Part], chunk_bytes: int) -> None:
    """Refuses tensors whose rows, which are held whole, do not fit in a chunk.

    Raises:
        ArgumentError: naming the first, and the memory that it takes.
    """
    for part in parts:
        row = 0 if part.is_copied else whole_row(method, part)
        if row and not rows_held(part, row, chunk_bytes):
            needed = row * _row_bytes(part)
            raise errors.ArgumentError(
                f"{method} holds whole rows of {part.name}, for which chunks must have "
                f"{needed} bytes, not {chunk_bytes}; give {16 * needed} of memory"
            )


def whole_row(method: str, part: parts_lib.Part) -> int:
    """How many numbers of a part are held at once whatever the chunk; 0 for none."""
    shared = part.shared
    if not part.shape or not part.size:
        return 0
    if method == "nuslerp" and not shared["nuslerp_flatten"]:
        is_column = shared["nuslerp_row_wise"]
        return math.prod(part.shape[1:]) if is_column else part.shape[-1]
    if method == "model_stock" and shared["filter_wise"]:
        return part.shape[-1]
    if method in ("della", "della_linear"):
        return math.prod(part.shape[1:]) if len(part.shape) > 1 else part.size
    return 0


def rows_held(part: parts_lib.Part, row: int, chunk_bytes: int) -> int:
    """How many rows of so many numbers a thread holds at once."""
    return min(chunk_bytes // (row * _row_bytes(part)), -(-part.size // row))


def _row_bytes(part) -> int:
    """For one number: of all models, and of what is made of them on the way."""
    return blocks.wide_dtype(part.dtypes).itemsize * (len(part.dtypes) + 6)


def run(
    job: Job, parts: Sequence[parts_lib.Part], total: int, progress: Progress | None
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
    is_linear = job.recipe.method in LINEAR

    def order(part):
        # What may be refused first; then the largest of whole parts, so that no thread
        # is left alone with it at the end.
        return not part.is_copied, 0 if is_linear else -part.size

    for part in sorted(parts, key=order):
        size = sum(dtype.itemsize for dtype in part.dtypes)
        if part.is_copied:
            action = functools.partial(_copy, job, part)
        elif is_linear:
            combination = _combination(job.recipe, part)
            action = functools.partial(combine, job, part, combination)
        else:
            yield _whole(job, part), size * part.size
            continue
        for start, count in _chunks(job, part):
            yield functools.partial(action, start, count), size * count


def _whole(job, part) -> Task:
    if job.recipe.method in ON_SPHERES:
        from jaxlab.merge.files.passes import spheres  # imports jax

        return functools.partial(spheres.merge, job, part)
    from jaxlab.merge.files.passes import sparse

    return functools.partial(sparse.merge, job, part)


def _chunks(job, part) -> Iterable[tuple[int, int]]:
    step = max(job.chunk_bytes // blocks.wide_dtype(part.dtypes).itemsize, 1)
    for start in range(0, part.size, step):
        yield start, min(step, part.size - start)


def combine(
    job: Job,
    part: parts_lib.Part,
    combination: blocks.Combination,
    start: int,
    count: int,
    space: blocks.Workspace,
) -> None:
    """Merges the numbers [start, start + count) of a part linearly, block by block."""
    step = space.block_bytes // blocks.wide_dtype(part.dtypes).itemsize
    for at in range(start, start + count, step):
        size = min(step, start + count - at)

        def read(k, out, at=at):
            job.reader.read(k, part.name, part.start + at, out)

        wide = blocks.combine(read, part.dtypes, combination, size, space)
        job.write(part, at, wide, space)


def _copy(job, part, start, count, space):
    """Integers: must be equal in all models."""
    dtype = part.dtypes[0]
    step = space.block_bytes // max(dtype.itemsize, 1)
    for at in range(start, start + count, step):
        size = min(step, start + count - at)
        first, other = (space.view(i, dtype, size) for i in range(2))
        job.reader.read(0, part.name, at, first)
        for k in range(1, len(part.dtypes)):
            job.reader.read(k, part.name, at, other)
            if not np.array_equal(first, other):
                compatible.refuse(
                    [
                        f"{part.name} holds integers, which must be equal in all "
                        f"models, and {job.recipe.models[k]} differs from "
                        f"{job.recipe.models[0]}"
                    ]
                )
        job.output.write(part.name, at, first)


def _combination(recipe, part) -> blocks.Combination:
    """The coefficients of a method that needs no look at the numbers."""
    if recipe.method == "interpolate":
        t = part.shared["t"]
        return blocks.mean([1 - t, t])
    weights = part.weights
    if recipe.method == "linear":
        if part.shared["normalize"]:
            return blocks.mean(weights)
        return blocks.Combination(tuple(weights))
    total = sum(weights) if part.shared["normalize"] else 1.0
    scale = part.shared["lambda"] / (total if abs(total) >= 1e-8 else 1.0)
    scales = [scale * weight for weight in weights]
    before, after = scales[: recipe.base], scales[recipe.base :]
    return blocks.Combination((*before, 0.0, *after), recipe.base)
