"""Checksums of whole files from checksums of their pieces, read in any order.

CRC-32 is the remainder of a polynomial over GF(2), up to constants that cancel:

    crc(a b) = crc(a) x^(8 |b|) + crc(b)   mod P

so threads may read the pieces of a file in any order, and the value is the one that the
`crc32` tool prints (ISO 3309, ITU-T V.42). SHA-256 has no such rule: its files are read
from front to back once more.
"""

import functools
import hashlib
import os
import threading
import zlib
from collections.abc import Hashable, Mapping

import numpy as np

from jaxlab.core import bits, errors

KINDS = ("crc32", "sha256")
_POLYNOMIAL = 0xEDB88320  # reflected: the highest bit is the coefficient of x^0
_ONE = 1 << 31
_WORDS = 1 << 16


class Ledger:
    """Collects the checksums of pieces; thread-safe.

    Args:
        kind: "crc32", "sha256" or None for none.
    """

    def __init__(self, kind: str | None):
        if kind is not None and kind not in KINDS:
            raise ValueError(f"digest {kind!r}; use one of {', '.join(KINDS)} or None")
        self.kind = kind
        self._pieces: dict[str, dict[int, tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def add(self, file: str, offset: int, data: memoryview) -> None:
        """Notes a piece that was read; the same piece may come again."""
        if self.kind != "crc32":
            return
        value = zlib.crc32(data)
        with self._lock:
            self._pieces.setdefault(file, {})[offset] = (len(data), value)

    def digest(self, file: str, buffer: memoryview) -> str:
        """The digest of a file; what was not read yet is read into `buffer`, in parts.

        Raises:
            UserError: the file changed while it was read.
        """
        with open(file, "rb", buffering=0) as handle:
            if self.kind == "sha256":
                return hashlib.file_digest(handle, "sha256").hexdigest()
            size = os.fstat(handle.fileno()).st_size
            value = at = 0
            for offset, (length, piece) in sorted(self._pieces.get(file, {}).items()):
                if offset < at:  # read twice, in other pieces
                    continue
                value = _through(handle, at, offset, value, buffer)
                value, at = _join(value, piece, length), offset + length
            value = _through(handle, at, size, value, buffer)
        return f"{value:08x}"


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


def check(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuses files that are not those of an earlier merge.

    Raises:
        UserError: naming every file whose digest differs.
    """
    changed = [file for file in expected if found.get(file) != expected[file]]
    if changed:
        raise errors.UserError(
            f"{len(changed)} input files are not those of the merge to be repeated: "
            f"{', '.join(changed)}; restore them, or merge anew from a recipe"
        )


def _through(handle, start, stop, value, buffer):
    """The checksum carried on over the bytes [start, stop) of a file."""
    while start < stop:
        count = os.preadv(handle.fileno(), [buffer[: stop - start]], start)
        if not count:
            raise errors.UserError(f"{handle.name} changed while it was read")
        value, start = zlib.crc32(buffer[:count], value), start + count
    return value


def _join(first: int, second: int, length: int) -> int:
    """The CRC of two pieces in a row; `length` is that of the second, in bytes."""
    return _product(_shift(length), first) ^ second


@functools.lru_cache(maxsize=4096)
def _shift(length: int) -> int:
    """x^(8 length) mod P."""
    power, result = 1 << 23, _ONE  # x^8
    while length:
        if length & 1:
            result = _product(power, result)
        power, length = _product(power, power), length >> 1
    return result


def _product(a: int, b: int) -> int:
    """a b mod P."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return result
