"""The two ways of making rows from a token file: "chunks" and "packed".

See `loader` for what they mean. Both have a length (rows of one epoch), `fill` (writes
a row into a batch) and `contents` (says which documents a row holds).
"""

import itertools

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import packing
from jaxlab.data.corpus import token_files


class Chunks:
    """Rows cut straight from a token file."""

    def __init__(self, file: token_files.TokenFile, length: int, document_mask: bool):
        self.file, self.length = file, length
        if document_mask and not len(file.ends):
            raise errors.UserError(f"{file.path} names no documents; prepare it again")
        if not len(self):
            raise errors.UserError(
                f"{file.path} has {file.size} tokens, fewer than one row of {length}: "
                "give more text, or use shorter rows (--config.data.length) or "
                "--config.data.layout=packed"
            )

    def __len__(self) -> int:
        return self.file.size // self.length

    def fill(self, row: dict[str, np.ndarray], index: int) -> None:
        """Writes row `index` into one row of each array of a batch."""
        start = index * self.length
        tokens = self.file.tokens[start : start + self.length]
        self.file.check_ids(tokens)
        row["tokens"][:] = tokens
        if "segment_ids" in row:
            for number, (_, a, b) in enumerate(self.contents(index), start=1):
                row["segment_ids"][a - start : b - start] = number

    def contents(self, index: int) -> list[tuple[int, int, int]]:
        """(document, start, stop) of each part of row `index`, offsets in the file."""
        start, stop = index * self.length, (index + 1) * self.length
        ends = self.file.ends
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop - 1, side="right"))
        borders = [start, *ends[first:last].tolist(), stop]
        return [
            (first + i, a, b) for i, (a, b) in enumerate(itertools.pairwise(borders))
        ]


class Packed:
    """Rows of whole documents, packed."""

    def __init__(self, file: token_files.TokenFile, length: int):
        if file.eos_id is None:
            raise errors.UserError(
                f"{file.path} cannot be packed: nothing says which token ends a "
                "document; open it with eos_id"
            )
        self.file, self.length = file, length
        self.pieces = packing.cut(file.ends, length)
        sizes = self.pieces.stop - self.pieces.start + 1  # with the context token
        rows = packing.pack(sizes, length)
        self.members = np.array([item for row in rows for item in row], np.int64)
        self.ends = np.cumsum([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.ends)

    def _members(self, index: int) -> np.ndarray:
        start = self.ends[index - 1] if index else 0
        return self.members[start : self.ends[index]]

    def fill(self, row: dict[str, np.ndarray], index: int) -> None:
        """Writes row `index` into one row of each array of a batch."""
        tokens, pieces, at = self.file.tokens, self.pieces, 0
        row["tokens"][:] = self.file.info.get("pad_id", self.file.eos_id)
        for number, piece in enumerate(self._members(index).tolist(), start=1):
            start, stop = int(pieces.start[piece]), int(pieces.stop[piece])
            end = at + 1 + stop - start
            row["tokens"][at] = (
                self.file.eos_id if pieces.is_first[piece] else tokens[start - 1]
            )
            self.file.check_ids(tokens[start:stop])
            row["tokens"][at + 1 : end] = tokens[start:stop]
            row["segment_ids"][at:end] = number
            row["positions"][at:end] = np.arange(end - at)
            row["loss_mask"][at + 1 : end] = 1
            at = end

    def contents(self, index: int) -> list[tuple[int, int, int]]:
        """(document, start, stop) of each part of row `index`, offsets in the file."""
        pieces = self.pieces
        return [
            (int(pieces.document[i]), int(pieces.start[i]), int(pieces.stop[i]))
            for i in self._members(index)
        ]
