"""Checksums of what a merge reads: of tensors, as they are read; or of whole files.

`xxh3`, the default, is of all tensors of an input, however they lie in files. Threads
read them in pieces of any size and in any order. So the bytes of a tensor are cut into
cells of 64 KiB, and the checksum is a sum, in which the order does not matter:

    sum over tensors and cells c of  xxh3_64(cell c, seed = xxh3_64(tensor) + c)
    mod 2^64,  a tensor as "NAME DTYPE [SHAPE]"

XXH3 (Collet 2020) is 8 times as fast as zlib's CRC-32, which took more than half of a
merge's time. `crc32` and `sha256` are of whole files, which are read once more for
them, from front to back; `crc32` is what merges recorded before there was `xxh3`.
"""

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Hashable, Mapping

import numpy as np
import xxhash

from jaxlab.core import bits, errors

# How many hexadecimal digits each kind has.
LENGTHS = {"xxh3": 16, "crc32": 8, "sha256": 64}
OF_FILES = ("crc32", "sha256")
CELL = 1 << 16  # bytes
_READ = 1 << 18  # bytes of a file at a time: a merge has memory for it
_WORDS = 1 << 16


class TensorSums:
    """Adds up `xxh3` of tensors that are read in pieces; thread-safe.

    Args:
        labels: what each tensor is called, and how many bytes it has.
    """

    def __init__(self, labels: Mapping[Hashable, tuple[str, int]]):
        self._tensors = {
            tensor: (xxhash.xxh3_64_intdigest(label.encode()), size)
            for tensor, (label, size) in labels.items()
        }
        self._counts = dict.fromkeys(self._tensors, 0)
        self._sums = dict.fromkeys(self._tensors, 0)
        self._begun: dict[tuple[Hashable, int], tuple[bytearray, list[int]]] = {}
        self._lock = threading.Lock()

    def add(self, tensor: Hashable, start: int, data: memoryview) -> None:
        """Adds the bytes of a tensor from byte `start` on, each once."""
        seed, size = self._tensors[tensor]
        at, stop, total = start, start + len(data), 0
        while at < stop:
            cell = at // CELL
            begin, end = cell * CELL, min((cell + 1) * CELL, size)
            piece = data[at - start : min(end, stop) - start]
            whole = self._join(tensor, cell, at - begin, piece, end - begin)
            if whole is not None:
                total += xxhash.xxh3_64_intdigest(whole, (seed + cell) % 2**64)
            at += len(piece)
        with self._lock:
            self._counts[tensor] += len(data)
            self._sums[tensor] += total

    def total(self, tensor: Hashable, read: Callable[[int, memoryview], None]) -> int:
        """The sum of a tensor.

        Args:
            read: (first byte, buffer to fill), for a tensor that was not read as a
                whole: a merge leaves out what weighs nothing.
        """
        _, size = self._tensors[tensor]
        if self._counts[tensor] != size:
            self._begun = {key: v for key, v in self._begun.items() if key[0] != tensor}
            self._counts[tensor] = self._sums[tensor] = 0
            buffer = memoryview(bytearray(min(CELL, size)))
            for start in range(0, size, CELL):
                piece = buffer[: size - start]
                read(start, piece)
                self.add(tensor, start, piece)
        return self._sums[tensor]

    def _join(self, tensor, cell, offset, piece, size):
        """A cell when all of it is here, else None."""
        if len(piece) == size:
            return piece
        with self._lock:
            buffer, count = self._begun.setdefault(
                (tensor, cell), (bytearray(size), [0])
            )
            buffer[offset : offset + len(piece)] = piece
            count[0] += len(piece)
            if count[0] < size:
                return None
            return self._begun.pop((tensor, cell))[0]


def of_file(file: str, kind: str) -> str:
    """The `crc32` or `sha256` of a file, as the tools of these names print it."""
    buffer = memoryview(bytearray(_READ))
    with open(file, "rb", buffering=0) as handle:
        if kind == "sha256":
            return hashlib.file_digest(handle, "sha256").hexdigest()
        value = 0
        while count := handle.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return f"{value:08x}"


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuses a repetition whose inputs have other sizes; digests come later.

    Args:
        sizes: in bytes, of files by path, as the earlier merge recorded them.

    Raises:
        UserError: naming the files.
    """
    _refuse_changed(
        [
            file
            for file, size in sizes.items()
            if not os.path.isfile(file) or os.path.getsize(file) != size
        ]
    )


def check(actual: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuses inputs that are not those of an earlier merge.

    Args:
        actual: digest by path, of inputs or of their files.
        expected: the same, as the earlier merge recorded them.

    Raises:
        UserError: naming every path whose digest differs.
    """
    _refuse_changed([path for path in expected if actual.get(path) != expected[path]])


def _refuse_changed(files) -> None:
    if files:
        raise errors.UserError(
            f"{len(files)} input files are not those of the merge to be repeated: "
            f"{', '.join(files)}; restore them, or merge anew from a recipe"
        )


class Fingerprints:
    """Adds up `core.tree.fingerprint` of leaves that are read in pieces; thread-safe.

    Attributes:
        sums: (elements so far, checksum so far) by leaf.
    """

    def __init__(self):
        self.sums: dict[Hashable, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, leaf: Hashable, start: int, values: np.ndarray) -> None:
        """Adds the numbers of a leaf from number `start` on, each once."""
        words = values.view(f"uint{min(values.itemsize, 4) * 8}")
        first = start * (len(words) // len(values))
        value = 0
        for at in range(0, len(words), _WORDS):  # small pieces stay in the cache
            piece = words[at : at + _WORDS]
            value += bits.checksum_of_piece(piece, first + at)
        with self._lock:
            count, total = self.sums.get(leaf, (0, 0))
            self.sums[leaf] = (count + len(values), (total + value) % 2**32)
