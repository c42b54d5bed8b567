"""What the passes of a merge share: the job, rows that are held whole, wide blocks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.files.read import reader as reader_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import outputs


@dataclasses.dataclass(frozen=True)
class Job:
    """What the threads share.

    Attributes:
        dtypes: of the result, by tensor.
        chunk_bytes: what a thread takes at a time, of the widened numbers.
    """

    recipe: recipe_lib.Recipe
    reader: reader_lib.Reader
    output: outputs.Output
    dtypes: Mapping[str, np.dtype]
    chunk_bytes: int

    def write(self, part, start, wide, space) -> None:
        """Rounds a block of a part and writes it."""
        dtype = self.dtypes[part.name]
        values = blocks.narrow(wide, dtype, space, part.name)
        self.output.write(part.name, part.start + start, values)


def check_rows(method: str, parts: Sequence[parts_lib.Part], chunk_bytes: int) -> None:
    """Refuses tensors whose rows, which are held whole, do not fit in a chunk.

    Raises:
        ArgumentError: naming the first, and the memory that it takes.
    """
    for part in parts:
        row = 0 if part.is_copied else whole_row(method, part)
        if row and not rows_per_chunk(part, row, chunk_bytes):
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


def rows_per_chunk(part: parts_lib.Part, row: int, chunk_bytes: int) -> int:
    """How many rows of so many numbers a thread holds at once."""
    return min(chunk_bytes // (row * _row_bytes(part)), -(-part.size // row))


def _row_bytes(part) -> int:
    """For one number: of all models, and of what is made of them on the way."""
    return blocks.wide_dtype(part.dtypes).itemsize * (len(part.dtypes) + 6)


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
