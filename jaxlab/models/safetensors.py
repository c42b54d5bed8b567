"""The safetensors file format, read and written with numpy alone.

    file   = u64 little-endian length of the header | header | bytes of the tensors
    header = {name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

Offsets count from the end of the header; tensors follow each other without holes; rows
are contiguous, numbers little-endian. The key `__metadata__` holds strings.

A folder of a large model holds shards and an index, `{"weight_map": {tensor: file}}`.

Reading maps the file and copies nothing: a tensor costs memory only when it is used.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from jaxlab.core import types

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # where the tensors begin; readers in other languages count on it

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a file by name, as read-only views into the mapped file.

    Raises:
        UserError: the file is cut short, is not safetensors, or holds a dtype that
            numpy and ml_dtypes do not have.
    """
    path = pathlib.Path(path)
    header, begin = _header(path)
    size = path.stat().st_size - begin
    stop = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != stop:
        raise types.UserError(
            f"{path}: the header promises {stop} bytes of tensors and the file has "
            f"{size}; it is damaged or cut short, download it again"
        )
    if not size:
        data = np.zeros(0, np.uint8)
    else:
        data = np.memmap(path, np.uint8, "r", offset=begin, shape=(size,))
    return {name: _view(path, name, entry, data) for name, entry in header.items()}


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a folder: of `model.safetensors`, or of the index's shards.

    Raises:
        UserError: neither is there, a shard is missing, or a file is damaged.
    """
    folder = pathlib.Path(folder)
    if (folder / WEIGHTS).is_file():
        return read(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise types.UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; only safetensors are read, "
            "not pytorch_model.bin"
        )
    try:
        files = sorted(
            set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise types.UserError(
            f"{folder / INDEX} has no weight_map; download it again"
        ) from error
    if lost := [file for file in files if not (folder / file).is_file()]:
        more = ", ..." if len(lost) > 3 else ""
        raise types.UserError(
            f"{folder} lacks {len(lost)} of {len(files)} shards: "
            f"{', '.join(lost[:3])}{more}; download them"
        )
    tensors = {}
    for file in files:
        tensors |= read(folder / file)
    return tensors


def write_folder(
    folder: str | os.PathLike,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    fetch: Callable[[str], np.ndarray],
    *,
    shard_bytes: int,
) -> None:
    """Writes one file, or shards of at most `shard_bytes` and their index.

    Args:
        folder: an existing folder.
        tensors, fetch: as in `write`.
        shard_bytes: a file is closed before it grows beyond this; a tensor larger
            than it has a file of its own.
    """
    folder = pathlib.Path(folder)
    shards, filled, total = [{}], 0, 0
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
        total += size
    if len(shards) == 1:
        write(folder / WEIGHTS, tensors, fetch)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        write(folder / file, shard, fetch)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    fetch: Callable[[str], np.ndarray],
) -> None:
    """Writes one file, one tensor at a time.

    Args:
        path: of the file; replaced when it exists.
        tensors: name -> (shape, dtype), in the order of the file.
        fetch: name -> the array; called once a name, in that order.

    Raises:
        UserError: a dtype that the format does not have.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in tensors.items():
        if np.dtype(dtype) not in _NAMES:
            raise types.UserError(
                f"{name}: safetensors files have no {dtype}; use one of "
                f"{', '.join(map(str, _NAMES))}"
            )
        stop = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in tensors.items():
            array = np.ascontiguousarray(fetch(name))
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(
                    f"{name}: fetched {array.dtype}{array.shape}, announced "
                    f"{dtype}{tuple(shape)}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)


def _header(path: pathlib.Path) -> tuple[dict, int]:
    """The header without its metadata, and where the tensors begin."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise types.UserError(
                f"{path}: not a whole safetensors file ({size} bytes, header of "
                f"{length}); download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for entry in header.values():
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop or "dtype" not in entry or "shape" not in entry:
                raise ValueError(entry)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise types.UserError(
            f"{path}: its safetensors header cannot be read; download it again"
        ) from error
    return header, 8 + length


def _view(path, name, entry, data):
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise types.UserError(
            f"{path}: {name} is stored as {entry['dtype']}, not as one of "
            f"{', '.join(DTYPES)}; use an unquantised checkpoint"
        )
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise types.UserError(
            f"{path}: {name} of shape {shape} does not fill its {stop - start} bytes; "
            "the file is damaged, download it again"
        )
    return data[start:stop].view(dtype).reshape(shape)
