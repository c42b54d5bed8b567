"""An index on disk: vectors as they are in memory, ids, and a description.

    vectors.bin    rows x dim numbers, little-endian f32 or bf16, no header
    ids.jsonl      one id per line, strings or whole numbers; absent where rows are ids
    index.json     rows, dim, dtype, checksums, what the vectors were made from

While an index is built its files are called *.part, and building.json says how many
rows are complete. A build that was killed goes on after those rows. The same vectors
and ids make the same bytes, whatever the batches, interruptions and appends were.

An append writes behind the rows that index.json counts and then replaces index.json:
until then, and after a kill, the index is the old one.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.core import errors, folders, json_text, links, report, value_types

DTYPES = ("float32", "bfloat16")
Batches = Iterable[np.ndarray] | Callable[[int], Iterable[np.ndarray]]

_VECTORS, _IDS, _INDEX, _BUILDING = (
    "vectors.bin", "ids.jsonl", "index.json", "building.json",
)  # fmt: skip
_FORMAT = 1
_COUNT = value_types.Kind(
    "a whole number from 0", lambda x: type(x) is int and 0 <= x < 2**48
)
_KINDS = {
    "rows": _COUNT,
    "dim": value_types.SIZE,
    "dtype": value_types.Kind(" or ".join(DTYPES), lambda x: x in DTYPES),
    "crc32": _COUNT,
    "largest": value_types.NUMBER,
    "made_from": value_types.OBJECT,
    "ids": value_types.Kind(
        "null or {bytes, crc32}",
        lambda x: (
            x is None
            or (
                isinstance(x, dict)
                and {*x} == {"bytes", "crc32"}
                and all(type(n) is int and n >= 0 for n in x.values())
            )
        ),
    ),
}
_CHUNK = 1 << 24


class Stored(NamedTuple):
    """What an index on disk holds.

    Attributes:
        vectors: [rows, dim], a read-only map of the file.
        ids: [rows] of `object` or int64; None where rows are ids.
        largest: absolute value among the vectors.
        made_from: what the builder wrote about the vectors' origin.
    """

    vectors: np.ndarray
    ids: np.ndarray | None
    largest: float
    made_from: dict[str, Any]


def build(
    folder: str | pathlib.Path,
    batches: Batches,
    ids: Sequence[str | int] | None,
    *,
    dtype: str = "float32",
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Writes an index, or goes on with one that was interrupted; see `Index.build`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if dtype not in DTYPES:
        raise errors.UserError(f"dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    lines = None if ids is None else _id_lines(as_ids(ids))
    header = {
        "format": _FORMAT,
        "dtype": dtype,
        "made_from": json.loads(json.dumps(dict(made_from or {}))),
        "ids": None if lines is None else _summary(lines),
    }
    part, id_part = (folder / f"{name}.part" for name in (_VECTORS, _IDS))
    for file in (part, id_part):
        folders.remove_link(file)
    state = _resume(folder, header)
    with part.open("r+b" if part.exists() else "wb") as file:
        total = None if ids is None else len(ids)
        rest = _skip_rows(batches, state["rows"])
        state = _append_rows(file, rest, state, total, record=folder / _BUILDING)
    if lines is not None:
        id_part.write_bytes(lines)
    report.write_json(folder / f"{_INDEX}.part", state)
    names = (_VECTORS, _INDEX) if lines is None else (_VECTORS, _IDS, _INDEX)
    folders.publish({folder / f"{name}.part": folder / name for name in names})
    if lines is None:
        (folder / _IDS).unlink(missing_ok=True)
    (folder / _BUILDING).unlink()


def refuse_others(folder: str | pathlib.Path) -> None:
    """Refuses a folder with files that are of no index, which has vectors at once.

    Raises:
        UserError: it names one of them.
    """
    folder = pathlib.Path(folder)
    is_ours = any((folder / f"{_VECTORS}{end}").exists() for end in ("", ".part"))
    if not (is_ours or folders.is_free(folder)):
        what = "is a file"
        if folder.is_dir():
            what = f"holds {min(x.name for x in folder.iterdir())} and is not an index"
        raise errors.UserError(f"{folder} {what}; name another folder")


def append(
    folder: str | pathlib.Path,
    batches: Iterable[np.ndarray],
    ids: Sequence[str | int] | None,
) -> None:
    """Adds rows to an index; see `Index.append`."""
    folder = pathlib.Path(folder)
    state, old = _read_description(folder), read(folder).ids
    if (ids is None) != (old is None):
        fix = "has no ids; give none" if old is None else "has ids; give as many"
        raise errors.UserError(f"{folder} {fix}")
    total = lines = None
    if ids is not None:
        as_ids([*old, *ids])
        lines, total = _id_lines(as_ids(ids)), state["rows"] + len(ids)
    for file in (folder / _VECTORS, folder / _IDS):
        folders.refuse_link(file, "build the index again, in another folder")
    with (folder / _VECTORS).open("r+b") as file:
        state = _append_rows(file, batches, state, total)
    if lines is not None:
        with (folder / _IDS).open("r+b") as file:
            file.truncate(state["ids"]["bytes"])
            file.seek(0, os.SEEK_END)
            file.write(lines)
        state = {**state, "ids": _summary(lines, state["ids"])}
    report.write_json(folder / _INDEX, state)


def read(folder: str | pathlib.Path, *, verify: bool = False) -> Stored:
    """Maps an index; see `Index.open`."""
    folder = pathlib.Path(folder)
    state = _read_description(folder)
    links.check(folder)
    shape, path = (state["rows"], state["dim"]), folder / _VECTORS
    size = _row_bytes(state) * state["rows"]
    if not path.is_file() or path.stat().st_size < size:
        raise errors.UserError(
            f"{path} is shorter than its {state['rows']} rows; build the index again"
        )
    if verify and _crc32(path, size) != state["crc32"]:
        raise errors.UserError(
            f"{path} does not match its checksum; build the index again"
        )
    dtype = jnp.dtype(state["dtype"])
    vectors = np.empty(shape, dtype)
    if size:  # an empty file cannot be mapped
        vectors = np.memmap(path, dtype, mode="r", shape=shape)
    ids = None if state["ids"] is None else _read_ids(folder, state)
    return Stored(vectors, ids, state["largest"], state["made_from"])


def read_made_from(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """`made_from` of an index that is made or begun; None where there is none."""
    for name in (_BUILDING, _INDEX):
        file = pathlib.Path(folder) / name
        state = json_text.read_object(file, "remove it to start anew", ("made_from",))
        if state is not None:
            return state["made_from"]
    return None


# ------------------------------------------------------------------ vectors


def as_rows(batch: Any, dtype: Any, first: int = 0) -> np.ndarray:
    """Vectors in the stored dtype.

    Raises:
        UserError: not [N, dim] numbers, or one that is not finite in that dtype; rows
            are counted from `first`.
    """
    batch = np.asarray(batch)
    is_real = any(jnp.issubdtype(batch.dtype, x) for x in (np.floating, np.integer))
    if batch.ndim != 2 or not is_real or not batch.shape[1]:
        raise errors.UserError(
            f"vectors are {batch.dtype}{list(batch.shape)}; give real numbers [N, dim]"
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(batch, dtype=jnp.dtype(dtype))
    if not np.isfinite(rows).all():
        bad = first + int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise errors.UserError(
            f"vector {bad} is not finite in {jnp.dtype(dtype).name}; leave it out or "
            "encode it again"
        )
    return rows


def _append_rows(file, batches, state, total, record=None) -> dict[str, Any]:
    """Writes batches behind the rows of `state`, recorded after each; the new state."""
    file.truncate(state["rows"] * _row_bytes(state))
    file.seek(0, os.SEEK_END)
    for batch in batches:
        rows = as_rows(batch, state["dtype"], state["rows"])
        dim = state["dim"] or rows.shape[1]
        if rows.shape[1] != dim:
            raise errors.UserError(
                f"vectors from row {state['rows']} have {rows.shape[1]} dimensions, "
                f"those before {dim}; use one encoder"
            )
        count = state["rows"] + len(rows)
        if total is not None and count > total:
            raise errors.UserError(f"{total} ids for {count} vectors; give as many")
        data = memoryview(rows.view(np.uint8)) if len(rows) else b""
        file.write(data)
        file.flush()
        state = {
            **state,
            "rows": count,
            "dim": dim,
            "crc32": zlib.crc32(data, state["crc32"]),
            "largest": max(state["largest"], largest(rows)),
        }
        if record is not None:
            report.write_json(record, state)
    _refuse_incomplete(state, total)
    return state


def largest(rows: np.ndarray) -> float:
    """The largest absolute value; 0 of none."""
    return float(max(rows.max(), -rows.min())) if rows.size else 0.0


def _skip_rows(batches: Batches, done: int) -> Iterator[np.ndarray]:
    if callable(batches):
        yield from batches(done)
        return
    for batch in batches:
        skipped = min(len(batch), done)
        done -= skipped
        if skipped < len(batch) or not skipped:
            yield batch[skipped:]


def _resume(folder, header) -> dict[str, Any]:
    """The state of an interrupted build of the same index, or that of a new one."""
    path, part = folder / _BUILDING, folder / f"{_VECTORS}.part"
    if not (path.exists() and part.exists()):
        part.unlink(missing_ok=True)
        return {**header, "rows": 0, "dim": 0, "crc32": 0, "largest": 0.0}
    needs = (*header, "rows", "dim", "crc32", "largest")
    state = json_text.read_object(path, "remove it to start anew", needs)
    if other := [name for name in header if state[name] != header[name]]:
        raise errors.UserError(
            f"{folder} holds an unfinished index with other {', '.join(other)}; "
            f"remove {path.name} there to start anew"
        )
    if _crc32(part, state["rows"] * _row_bytes(state)) != state["crc32"]:
        raise errors.UserError(
            f"{part} does not match its checksum; remove {path.name} there to start "
            "anew"
        )
    return state


def _refuse_incomplete(state, total) -> None:
    if not state["dim"]:
        raise errors.UserError("no vectors were given; give at least one batch")
    if total is not None and state["rows"] != total:
        raise errors.UserError(f"{total} ids for {state['rows']} vectors; give as many")


def _row_bytes(state) -> int:
    return state["dim"] * jnp.dtype(state["dtype"]).itemsize


def _read_description(folder) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        fix = "was not finished; build it again, it goes on"
        if not (folder / _BUILDING).exists():
            what = "is not an index" if folder.exists() else "does not exist"
            fix = f"{what}; make an index with `jaxlab retrieve index`"
        raise errors.UserError(f"{folder} {fix}")
    state = json_text.read_object(path, "build it again", ("format",))
    if state["format"] != _FORMAT:
        raise errors.UserError(f"{path} is damaged or newer than this; build it again")
    value_types.check(state, _KINDS, file=str(path))
    if lost := [key for key in _KINDS if key not in state]:
        raise errors.UserError(f"{path} has no {', '.join(lost)}; build it again")
    return state


def _crc32(path, size) -> int | None:
    """Checksum of the first `size` bytes; None of a file that is shorter."""
    value = 0
    with path.open("rb") as file:
        while size and (data := file.read(min(size, _CHUNK))):
            value, size = zlib.crc32(data, value), size - len(data)
    return None if size else value


# ------------------------------------------------------------------ ids


def as_ids(ids: Sequence[str | int]) -> np.ndarray:
    """Ids as an array: int64 of whole numbers, else `object`.

    Raises:
        UserError: neither all strings nor all whole numbers, or one twice.
    """
    ids = [x.item() if isinstance(x, np.generic) else x for x in ids]
    kinds = {type(x) for x in ids}
    if len(kinds) > 1 or not kinds <= {str, int}:
        raise errors.UserError("ids must be all strings or all whole numbers")
    if len(set(ids)) < len(ids):
        seen: set = set()
        twice = next(x for x in ids if x in seen or seen.add(x))
        raise errors.UserError(f"id {twice!r} is given twice; ids name one vector each")
    array = np.empty(len(ids), np.int64 if kinds == {int} else object)
    array[:] = ids
    return array


def _id_lines(ids) -> bytes:
    return "".join(f"{json.dumps(x)}\n" for x in ids.tolist()).encode("ascii")


def _summary(lines, before=None) -> dict[str, int]:
    before = before or {"bytes": 0, "crc32": 0}
    return {
        "bytes": before["bytes"] + len(lines),
        "crc32": zlib.crc32(lines, before["crc32"]),
    }


def _read_ids(folder, state) -> np.ndarray:
    path = folder / _IDS
    data = b""
    if path.is_file():
        with path.open("rb") as file:
            data = file.read(state["ids"]["bytes"])
    if _summary(data) != state["ids"]:
        raise errors.UserError(f"{path} does not match its checksum; build it again")
    return as_ids([json.loads(line) for line in data.splitlines()])
