"""GGUF: llama.cpp's one file of a model, its metadata first and then its tensors.

    "GGUF"  u32 version  u64 tensors  u64 entries            (little endian, 2 or 3)
    entry:  text key, u32 type, value; an array is u32 type, u64 count, values
    tensor: text name, u32 n, u64 sizes[n] (the fastest first), u32 type, u64 offset
    data:   from the next multiple of `general.alignment`

The header is read here, each step within the file, because the file may be anybody's:
the `gguf` package makes two numpy arrays of every value, and as many as a file says.
Its tables of block sizes and its `dequantize` are used for the tensors.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core import errors

SUFFIX = ".gguf"
_SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_MOST_HEADER = 1 << 27  # a vocabulary of 256,000 takes 7 MB


class Tensor(NamedTuple):
    """A tensor of the file, whose values are computed when they are asked for.

    Attributes:
        name: as the file has it.
        shape: rows first.
        kind: of ggml: F32, Q4_1, Q6_K, ...
        data: its bytes, mapped.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    data: np.ndarray

    def read(self) -> np.ndarray:
        """Its values, float32.

        Raises:
            UserError: the installed `gguf` cannot compute them.
        """
        import gguf

        packed = gguf.quant_shape_to_byte_shape(self.shape, self.kind)
        try:
            values = gguf.dequantize(self.data.reshape(packed), self.kind)
        except NotImplementedError:
            raise errors.UserError(
                f"tensor {self.name} is {self.kind.name}, which the gguf package "
                "cannot read; take a file with Q8_0, Q4_K or F16 weights"
            ) from None
        return np.asarray(values, np.float32).reshape(self.shape)


class File(NamedTuple):
    """A GGUF file: what it says of itself, and its tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def is_named(path: str | os.PathLike) -> bool:
    """Whether a path is called like a GGUF file."""
    return pathlib.Path(path).suffix.lower() == SUFFIX


def read(path: str | os.PathLike) -> File:
    """Opens a file; its tensors stay on disk.

    Raises:
        UserError: no such file, not GGUF, damaged or cut short, or the `gguf` package
            is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise errors.UserError(
            f"{path} needs the gguf package: pip install 'jaxlab[gguf]'"
        ) from None
    if not pathlib.Path(path).is_file():
        raise errors.UserError(f"{path} does not exist; give a GGUF file")
    if not os.path.getsize(path):
        raise errors.UserError(f"{path} is empty; download it again")
    data = np.memmap(path, mode="r")
    try:
        reader = _Reader(data)
        metadata, places = _read_header(reader)
        begin = _align(reader.at, metadata.get("general.alignment", 32))
        tensors = {
            name: _tensor(gguf, data, begin, name, *place)
            for name, place in places.items()
        }
    except _DamageError as error:
        raise errors.UserError(f"{path}: {error}; download it again") from None
    return File(metadata, tensors)


class _DamageError(Exception):
    """What is wrong with a file."""


class _Reader:
    """Takes values off the header, none beyond its end."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, 0
        self.end = min(len(data), _MOST_HEADER)

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise _DamageError("its header is damaged or cut short")
        taken = self.data[self.at : self.at + count].tobytes()
        self.at += count
        return taken

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise _DamageError("a text of its header is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.scalars(kind, 1)[0].item()
        if kind != _ARRAY:
            raise _DamageError(f"its header has a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == _TEXT:
            if count > (self.end - self.at) // 8:  # each has its length
                raise _DamageError("its header is damaged or cut short")
            return [self.text() for _ in range(count)]
        if inner in _SCALARS:
            return self.scalars(inner, count)
        raise _DamageError(f"its header has an array of type {inner}")

    def scalars(self, kind: int, count: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _read_header(reader):
    if reader.take(4) != b"GGUF":
        raise _DamageError("it does not begin as GGUF files do")
    if (version := reader.number("I")) not in (2, 3):
        raise _DamageError(f"it is GGUF of version {version}, not 2 or 3")
    tensors, entries = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):  # a count beyond the file ends in `take`
        key = reader.text()
        if key in metadata:
            raise _DamageError(f"its header has {key!r} twice")
        metadata[key] = reader.value(reader.number("I"))
    places: dict[str, tuple] = {}
    for _ in range(tensors):
        name, rank = reader.text(), reader.number("I")
        if name in places:
            raise _DamageError(f"it has the tensor {name!r} twice")
        if rank > 4:
            raise _DamageError(f"tensor {name!r} has {rank} dimensions")
        sizes = [reader.number("Q") for _ in range(rank)]
        places[name] = (tuple(sizes[::-1]), reader.number("I"), reader.number("Q"))
    return metadata, places


def _align(at, alignment):
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise _DamageError(f"general.alignment is {alignment!r}")
    return -(-at // alignment) * alignment


def _tensor(gguf, data, begin, name, shape, kind, offset):
    try:
        kind = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise _DamageError(f"tensor {name!r} has the unknown type {kind}") from None
    count = 1
    for size in shape:
        count *= size  # of Python: nothing overflows
    if not shape or shape[-1] % block:
        raise _DamageError(
            f"tensor {name!r} is {list(shape)}, not in blocks of {block}"
        )
    start, size = begin + offset, count // block * block_bytes
    if start + size > len(data):
        raise _DamageError(f"tensor {name!r} lies beyond the end of the file")
    return Tensor(name, shape, kind, data[start : start + size])
