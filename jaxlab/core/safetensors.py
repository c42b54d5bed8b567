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
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxlab.core import errors, json_text, links, paths

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # name -> (shape, dtype)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # as the reference library has it
_ALIGNMENT = 8  # where the tensors begin; readers in other languages count on it

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d+-of-0*(\d+)")


class TensorOffset(NamedTuple):
    """Where a file has a tensor: `size` bytes from byte `start` of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a file by name, as read-only views into the mapped file.

    Raises:
        UserError: the file is cut short, is not safetensors, or holds a dtype that
            numpy and ml_dtypes do not have.
    """
    return _views(path, tensor_offsets(path))


def tensor_offsets(path: str | os.PathLike) -> dict[str, TensorOffset]:
    """Where a file has its tensors, by name, without reading them; raises as `read`."""
    path = pathlib.Path(path)
    header, begin = _header(path)
    size = path.stat().st_size - begin
    stop = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != stop:
        raise errors.UserError(
            f"{path}: the header promises {stop} bytes of tensors and the file has "
            f"{size}; it is damaged or cut short, download it again"
        )
    return {
        name: _tensor_offset(path, name, entry, begin) for name, entry in header.items()
    }


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a folder: of `model.safetensors`, or of the index's shards.

    Raises:
        UserError: neither is there, a shard or a tensor is missing, or a file is
            damaged.
    """
    tensors = {}
    for file, offsets in folder_offsets(folder).items():
        tensors |= _views(file, offsets)
    return tensors


def folder_offsets(
    folder: str | os.PathLike,
) -> dict[pathlib.Path, dict[str, TensorOffset]]:
    """The tensors of a folder by the file that they are read from.

    Where a file holds a tensor that the index gives to another one, an old copy, it is
    not read from there. Raises as `read_folder`.
    """
    folder = pathlib.Path(folder)
    links.check(folder)
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: tensor_offsets(folder / WEIGHTS)}
    owners, found, seen = _weight_map(folder), {}, {}
    for file in files(folder):
        held = tensor_offsets(file)
        for name, owner in owners.items():
            if owner == file.name and name not in held:
                raise errors.UserError(
                    f"{file} lacks {name}, which {INDEX} says is there; download both "
                    "again"
                )
        found[file] = {
            name: at
            for name, at in held.items()
            if owners.get(name, file.name) == file.name
        }
        for name in found[file].keys() - owners.keys():
            if name in seen:
                raise errors.UserError(
                    f"{file} and {seen[name]} both hold {name}, and {INDEX} does not "
                    "say which counts; download it again"
                )
            seen[name] = file
    return found


def files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The files that hold a folder's tensors; raises as `read_folder`."""
    folder = pathlib.Path(folder)
    links.check(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    names = sorted(set(_weight_map(folder).values()))
    if lost := [name for name in names if not (folder / name).is_file()]:
        more = ", ..." if len(lost) > 3 else ""
        raise errors.UserError(
            f"{folder} lacks {len(lost)} of {len(names)} shards: "
            f"{', '.join(lost[:3])}{more}; download them"
        )
    return [folder / name for name in names]


def shard_of(name: str) -> int:
    """Of how many files one is a part, by its name; 1 of a file that is whole.

    >>> shard_of("model-00001-of-00003.safetensors"), shard_of("model.safetensors")
    (3, 1)
    """
    number = _SHARD.search(name)
    return int(number[1]) if number else 1


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
    """Tensor -> file, as the index of a folder says."""
    if not (folder / INDEX).is_file():
        shards = [file.name for file in folder.glob("*.safetensors")]
        if any(shard_of(name) > 1 for name in shards):
            raise errors.UserError(
                f"{folder} has {len(shards)} of the {shard_of(min(shards))} files of a "
                f"model and no {INDEX}; download the rest"
            )
        raise errors.UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; only safetensors are read, "
            "not pytorch_model.bin"
        )
    fix = "download it again"
    found = json_text.read_object(folder / INDEX, fix).get("weight_map")
    is_map = isinstance(found, dict) and found
    if not is_map or not all(isinstance(file, str) for file in found.values()):
        raise errors.UserError(f"{folder / INDEX} has no weight_map; {fix}")
    for name in sorted(set(found.values())):
        paths.inside(folder, name, folder / INDEX)
    return found


def _views(path, offsets) -> dict[str, np.ndarray]:
    data = np.memmap(path, np.uint8, "r")
    return {
        name: data[at.start : at.start + at.size].view(at.dtype).reshape(at.shape)
        for name, at in offsets.items()
    }


def write_folder(
    folder: str | os.PathLike,
    tensors: Specs,
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
    shards = plan_shards(tensors, shard_bytes)
    for file, shard in shards.items():
        write(folder / file, shard, fetch)
    write_index(folder, shards)


def plan_shards(tensors: Specs, shard_bytes: int) -> dict[str, Specs]:
    """The files of a folder, by name: their tensors, in order."""
    shards, filled = [{}], 0
    for name, (shape, dtype) in tensors.items():
        size = _size(shape, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(folder: pathlib.Path, shards: Mapping[str, Specs]) -> None:
    """Writes the index, which file has which tensor, if there are several."""
    if len(shards) == 1:
        return
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    total = sum(_size(*spec) for shard in shards.values() for spec in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write(
    path: str | os.PathLike,
    tensors: Specs,
    fetch: Callable[[str], np.ndarray],
) -> None:
    """Writes one file, one tensor at a time.

    Args:
        path: of the file; replaced when it exists.
        tensors: name -> (shape, dtype), in the order of the file.
        fetch: name -> the array; called once per name, in that order.

    Raises:
        UserError: a dtype that the format does not have.
    """
    text, _ = preamble(tensors)
    with open(path, "wb") as file:
        file.write(text)
        for name, (shape, dtype) in tensors.items():
            array = np.asarray(fetch(name), order="C")
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(
                    f"{name}: fetched {array.dtype}{array.shape}, announced "
                    f"{dtype}{tuple(shape)}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)


def preamble(
    tensors: Specs, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """What a file begins with, and the byte of the file where each tensor begins.

    Raises:
        UserError: a dtype that the format does not have.
    """
    entries: dict = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offsets, offset = {}, 0
    for name, (shape, dtype) in tensors.items():
        if np.dtype(dtype) not in _NAMES:
            raise errors.UserError(
                f"{name}: safetensors files have no {dtype}; use one of "
                f"{', '.join(map(str, _NAMES))}"
            )
        stop = offset + _size(shape, dtype)
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, stop],
        }
        offsets[name], offset = offset, stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    begin = 8 + len(text)
    starts = {name: begin + start for name, start in offsets.items()}
    return len(text).to_bytes(8, "little") + text, starts


def _size(shape, dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _header(path: pathlib.Path) -> tuple[dict, int]:
    """The header without its metadata, and where the tensors begin."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise errors.UserError(
                f"{path}: not a whole safetensors file ({size} bytes, header of "
                f"{length}); download it again"
            )
        if length > _MOST_HEADER_BYTES:
            raise errors.UserError(
                f"{path}: its header has {length:,} bytes, more than the "
                f"{_MOST_HEADER_BYTES:,} of any model; download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        for entry in header.values():
            start, stop = entry["data_offsets"]
            sizes = [start, stop, *entry["shape"]]
            if not 0 <= start <= stop or not isinstance(entry["dtype"], str):
                raise ValueError(entry)
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(entry)
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise errors.UserError(
            f"{path}: its safetensors header cannot be read; download it again"
        ) from error
    _check_places(path, header)
    return header, 8 + length


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object in which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _check_places(path: pathlib.Path, header: dict) -> None:
    """Refuses tensors that share bytes, and bytes that are of none."""
    places = sorted((e["data_offsets"], name) for name, e in header.items())
    end = 0
    for (start, stop), name in places:
        if start != end:
            what = "shares bytes with another" if start < end else "follows a hole"
            raise errors.UserError(
                f"{path}: {name} {what}; the file is damaged, download it again"
            )
        end = stop


def _tensor_offset(path, name, entry, begin) -> TensorOffset:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise errors.UserError(
            f"{path}: {name} is stored as {entry['dtype']}, not as one of "
            f"{', '.join(DTYPES)}; use an unquantised checkpoint"
        )
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if stop - start != _size(shape, dtype):
        raise errors.UserError(
            f"{path}: {name} of shape {shape} does not fill its {stop - start} bytes; "
            "the file is damaged, download it again"
        )
    return TensorOffset(dtype, shape, begin + start, stop - start)
