"""What is merged: tensors of safetensors folders and of run directories, by byte.

A source says where the bytes of each tensor are, so that any range of any tensor is one
`preadv` into a buffer that is used again. Of a run's checkpoint only the parameters are
taken, under their path (`blocks/attn/q/kernel`); TensorStore would decode whole stored
chunks, a whole leaf at a time, so the ranges of its uncompressed values are looked up
in the OCDBT tree and read directly. A leaf that is stored otherwise (compressed, or cut
along other axes than the first) goes through TensorStore, in whole stored chunks.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxlab.core import errors, safetensors
from jaxlab.merge.files import digests

_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # follow from the config; not merged


class Extent(NamedTuple):
    """Bytes of a file."""

    file: str
    offset: int
    size: int


class Stored(NamedTuple):
    """A tensor that can be read in ranges.

    Attributes:
        extents: its bytes, one piece after the other.
        inline: its bytes, where they came with the description.
        fetch: (start, stop) -> those numbers of the flattened tensor; or None.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    extents: tuple[Extent, ...] = ()
    inline: bytes = b""
    fetch: Callable[[int, int], np.ndarray] | None = None


@dataclasses.dataclass
class Source:
    """One input: its tensors by name, and the files whose digests identify it."""

    path: str
    is_run: bool
    tensors: dict[str, Stored]
    files: list[str]
    config: dict
    fingerprints: Mapping[str, int] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, list] = dataclasses.field(default_factory=dict)
    step: int | None = None


class Reader:
    """Reads ranges of tensors; threads share one.

    Use as a context manager: it keeps the files open.
    """

    def __init__(self, sources: Sequence[Source], ledger: digests.Ledger):
        self._sources, self._ledger = sources, ledger
        self._open: dict[str, int] = {}
        self._prints = digests.Fingerprints()

    def __enter__(self) -> "Reader":
        try:
            for source in self._sources:
                for tensor in source.tensors.values():
                    for extent in tensor.extents:
                        if extent.file not in self._open:
                            self._open[extent.file] = os.open(extent.file, os.O_RDONLY)
        except OSError as error:
            self.__exit__()
            raise errors.UserError(
                f"cannot read {error.filename}: {error.strerror}"
            ) from None
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open = {}

    def read(
        self, index: int, name: str, start: int, out: np.ndarray, survey: bool = False
    ) -> None:
        """Fills `out`, a vector of the tensor's dtype, with its numbers from `start`.

        Args:
            index: of the source.
            name: of the tensor.
            start: the first number.
            out: what is filled.
            survey: the numbers will be read once more; checksums are taken then.

        Raises:
            UserError: a file ends early or cannot be read.
        """
        self._read(index, name, start, out, survey)
        if not survey and name in self._sources[index].fingerprints:
            self._prints.add((index, name), start, out)

    def check_fingerprints(self) -> None:
        """Refuses runs whose leaves are not what was saved.

        Raises:
            UserError: naming the checkpoint and the leaf.
        """
        for (index, name), (count, value) in self._prints.sums.items():
            source = self._sources[index]
            is_whole = count == math.prod(source.tensors[name].shape)
            if is_whole and value != source.fingerprints[name]:
                raise errors.UserError(
                    f"step {source.step} of {source.path} is corrupt: {name} does not "
                    "match its checksum"
                )

    def _read(self, index, name, start, out, survey):
        tensor = self._sources[index].tensors[name]
        if tensor.fetch is not None:
            out[:] = tensor.fetch(start, start + len(out))
            return
        view, begin = memoryview(out.view(np.uint8)), start * out.itemsize
        if tensor.inline:
            view[:] = tensor.inline[begin : begin + len(view)]
            return
        for extent in tensor.extents:
            if begin < extent.size and len(view):
                part = view[: extent.size - begin]
                self._fill(extent.file, extent.offset + begin, part, survey)
                view = view[len(part) :]
            begin = max(begin - extent.size, 0)

    def _fill(self, file, offset, view, survey):
        whole, at = view, offset
        try:
            while len(view):
                count = os.preadv(self._open[file], [view], at)
                if not count:
                    raise errors.UserError(f"{file} was cut short while it was read")
                view, at = view[count:], at + count
        except OSError as error:
            raise errors.UserError(f"cannot read {file}: {error.strerror}") from None
        if not survey:
            self._ledger.add(file, offset, whole)


def open_source(path: str | os.PathLike) -> Source:
    """A Hugging Face folder or a run directory (its newest finished checkpoint).

    Raises:
        UserError: neither of the two, incomplete, damaged or unreadable.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise errors.UserError(
            f"model {path} does not exist; give a run directory or a Hugging Face "
            "folder"
        )
    try:
        if (folder / "checkpoints").is_dir():
            return _open_run(folder)
        return _open_folder(folder)
    except OSError as error:
        raise errors.UserError(
            f"cannot read {error.filename}: {error.strerror}"
        ) from None


def _open_folder(folder) -> Source:
    tensors, files = {}, [str(file) for file in safetensors.files(folder)]
    for file in files:
        for name, at in safetensors.places(file).items():
            if name in tensors:
                raise errors.UserError(f"{file}: {name} is in another shard as well")
            if not _BUFFERS.search(name):
                extent = Extent(file, at.start, at.size)
                tensors[name] = Stored(at.dtype, at.shape, (extent,))
    return Source(str(folder), False, tensors, files, _config(folder))


def _config(folder) -> dict:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise errors.UserError(f"{file} is not a JSON object; restore it from a copy")
    return found


def _open_run(folder) -> Source:
    from jaxlab.core import checkpoint, saved  # these import jax

    steps = checkpoint.steps(folder / "checkpoints")
    if not steps:
        raise errors.UserError(f"{folder} has no finished checkpoint")
    path = folder / "checkpoints" / str(steps[0])
    description, leaves = saved.read_description(path)
    values = _Values(path.absolute())
    tensors = {
        name.removeprefix("params/"): values.stored(name.replace("/", "."), leaf)
        for name, leaf in leaves.items()
        if name.startswith("params/")
    }
    fingerprints = {
        name.removeprefix("params/"): value
        for name, value in description["fingerprint"].items()
        if name.startswith("params/")
    }
    files = sorted(str(file) for file in path.rglob("*") if file.is_file())
    axes = description.get("axes") or {}
    config = _config(folder)
    return Source(
        str(folder), True, tensors, files, config, fingerprints, axes, steps[0]
    )


class _Values:
    """Where the OCDBT tree of a checkpoint keeps its values."""

    def __init__(self, path):
        import tensorstore as ts

        manifest = next(path.glob("*/manifest.ocdbt"), None)
        if manifest is None:
            raise errors.UserError(f"{path} has no OCDBT manifest; save it with jaxlab")
        self._folder = str(manifest.parent)
        base = ts.KvStore.open({"driver": "file", "path": f"{self._folder}/"}).result()
        root = ts.ocdbt.dump(base).result()["versions"][-1]
        self._entries = {}
        if root["root_height"] == 0:  # higher trees hold 100 MB of entries
            node = ts.ocdbt.dump(base, root["root"]["location"]).result()
            self._entries = {e["key"].decode(): e for e in node["entries"]}

    def stored(self, name, leaf) -> Stored:
        shape, dtype = tuple(leaf.shape), dtype_of(leaf.dtype)
        rows = self._rows(name, shape)
        if rows is None:
            return Stored(dtype, shape, fetch=self._fetcher(name, shape))
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        extents = []
        for number in range(-(-(shape[0] if shape else 1) // rows)):
            place = "/".join([str(number), *["0"] * (len(shape) - 1)])
            entry = self._entries.get(f"{name}/c/{place}" if shape else f"{name}/c")
            count = min(rows, (shape[0] if shape else 1) - number * rows)
            if entry is None:  # all zeros are not written by every writer
                return Stored(dtype, shape, fetch=self._fetcher(name, shape))
            if "inline_value" in entry:
                if len(extents) or count != (shape[0] if shape else 1):
                    return Stored(dtype, shape, fetch=self._fetcher(name, shape))
                value = entry["inline_value"][: count * row_bytes]
                return Stored(dtype, shape, inline=bytes(value))
            found = re.fullmatch(r"value:(.*):(\d+):\d+", entry["indirect_value"])
            file = os.path.join(self._folder, found[1].replace(":", ""))
            extents.append(Extent(file, int(found[2]), count * row_bytes))
        return Stored(dtype, shape, tuple(extents))

    def _rows(self, name, shape) -> int | None:
        """Rows of a stored chunk, if values lie there plainly one after the other."""
        entry = self._entries.get(f"{name}/zarr.json", {})
        if "inline_value" not in entry or 0 in shape:
            return None
        spec = json.loads(entry["inline_value"])
        chunk = tuple(spec["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = spec["codecs"]
        if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
            inner = codecs[0]["configuration"]
            if tuple(inner["chunk_shape"]) != chunk or "index_location" in inner:
                return None
            codecs = inner["codecs"]
        plain = [{"configuration": {"endian": "little"}, "name": "bytes"}]
        if codecs != plain or chunk[1:] != shape[1:]:
            return None
        return chunk[0] if chunk else 1

    def _fetcher(self, name, shape):
        import tensorstore as ts

        store = ts.open(
            {
                "driver": "zarr3",
                "kvstore": {
                    "driver": "ocdbt",
                    "base": f"file://{self._folder}/",
                    "path": f"{name}/",
                },
            },
            read=True,
        ).result()

        def fetch(start, stop):
            if not shape:
                return store.read().result().reshape(1)
            row = math.prod(shape[1:])
            first, last = start // row, -(-stop // row)
            rows = store[first:last].read().result().reshape(-1)
            return rows[start - first * row : stop - first * row]

        return fetch


def dtype_of(name: object) -> np.dtype:
    """A dtype by its name; bfloat16 is not one of numpy's."""
    return np.dtype(ml_dtypes.bfloat16 if str(name) == "bfloat16" else str(name))
