"""What the passes of a merge share: the job, its blocks read wide and written."""

import dataclasses
import math

import numpy as np

from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.files.read import reader as reader_lib
from jaxlab.merge.files.read import source
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import outputs


@dataclasses.dataclass(frozen=True)
class Job:
    """What the threads share.

    Attributes:
        chunk_bytes: what a thread takes at a time, of the widened numbers.
        not_finite: tensors of the result, and how many numbers of a block of each are
            NaN or infinite.
    """

    recipe: recipe_lib.Recipe
    reader: reader_lib.Reader
    output: outputs.Output
    chunk_bytes: int
    not_finite: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def write(self, part, start, wide, space) -> None:
        """Rounds a block of a part and writes it."""
        if not np.isfinite(np.add.reduce(wide, dtype=wide.dtype)):  # or it overflowed
            count = len(wide) - int(np.count_nonzero(np.isfinite(wide)))
            self.not_finite.append((part.name, count))
        values = blocks.narrow(wide, part.dtype, space, part.name)
        self.output.write(part.name, part.start + start, values)


def read_wide(
    job: Job,
    part: parts_lib.Part,
    members: list[int],
    base: int | None,
    start: int,
    out: np.ndarray,
    space: blocks.Workspace,
    origin: np.ndarray | None = None,
    survey: bool = True,
) -> None:
    """Fills the rows of `out` with the models, or with their differences from a base.

    Args:
        members: the models.
        base: what is subtracted, or None.
        start: the first number, within the part.
        out: [members, numbers], wide.
        space: its buffers are used.
        origin: where the base goes, if the caller wants it.
        survey: the numbers will be read once more.
    """
    size, wide = out.shape[1], out.dtype
    limit = space.block_bytes // wide.itemsize
    for at in range(0, size, limit):
        count = min(limit, size - at)

        def wide_block(k, into, at=at, count=count):
            raw = space.view(3, part.dtypes[k], count)
            first = part.start + start + at
            job.reader.read(k, part.name, first, raw, survey=survey)
            np.copyto(into, raw)

        if base is not None:
            anchor = space.view(0, wide, count)
            wide_block(base, anchor)
            if origin is not None:
                origin[at : at + count] = anchor
        for row, k in enumerate(members):
            into = out[row, at : at + count]
            wide_block(k, into)
            if base is not None:
                np.subtract(into, anchor, out=into)


def has_not_finite(job: Job, index: int, name: str, stored: source.Stored) -> bool:
    """Whether a tensor of an input holds NaN or infinities; it is read once more."""
    step = job.chunk_bytes // max(stored.dtype.itemsize, 1)
    count = math.prod(stored.shape)
    for start in range(0, count, step):
        out = np.empty(min(step, count - start), stored.dtype)
        job.reader.read(index, name, start, out, survey=True)
        if not np.isfinite(out.astype(np.float32)).all():
            return True
    return False
