"""What is merged: tensors of safetensors and of Orbax checkpoints, by byte.

A source says where the bytes of each tensor are, so that any range of any tensor is one
`preadv` into a buffer that is used again. Where Orbax keeps them is found by
`jaxlab.merge.files.read.orbax_tree`.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxlab.core import errors, safetensors
from jaxlab.merge.files.read import digests

_CHECKPOINT = "_CHECKPOINT_METADATA"
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
    """One input: its tensors by name, and the files whose digests identify it.

    Attributes:
        kind: "folder" of safetensors (or one file), "run" directory of ours, or another
            Orbax "checkpoint".
        config: its config.json, or {}.
        fingerprints: checksum of each leaf, where the checkpoint knows them.
        axes: logical axis names by leaf, likewise.
        step: of a run.
        tree: of a checkpoint, its structure with anything at the leaves.
    """

    path: str
    kind: str
    tensors: dict[str, Stored]
    files: list[str]
    config: dict
    fingerprints: Mapping[str, int] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, list] = dataclasses.field(default_factory=dict)
    step: int | None = None
    tree: Any = None

    @property
    def is_run(self) -> bool:
        """Whether its names are those of a run's parameters."""
        return self.kind == "run"


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
    """Opens an input, whatever it is.

    Args:
        path: a Hugging Face folder, or a folder with one safetensors file, or that
            file; a run directory (its newest finished checkpoint); or any other Orbax
            checkpoint.

    Raises:
        UserError: none of these; or it is incomplete, damaged or unreadable.
    """
    path = pathlib.Path(path)
    try:
        if path.is_file():
            return _open_files(path, [path], {})
        if not path.is_dir():
            raise errors.UserError(
                f"model {path} does not exist; give a run directory, an Orbax "
                "checkpoint or a Hugging Face folder"
            )
        if (path / "checkpoints").is_dir() or (path / _CHECKPOINT).exists():
            from jaxlab.merge.files.read import orbax_tree  # imports jax

            return orbax_tree.open_source(path, _config(path))
        return _open_files(path, _files(path), _config(path))
    except OSError as error:
        raise errors.UserError(
            f"cannot read {error.filename}: {error.strerror}"
        ) from None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    alone = list(folder.glob("*.safetensors"))
    has_index = (folder / safetensors.INDEX).exists()
    return alone if len(alone) == 1 and not has_index else safetensors.files(folder)


def _open_files(path, files, config) -> Source:
    tensors = {}
    for file in map(str, files):
        for name, at in safetensors.places(file).items():
            if name in tensors:
                raise errors.UserError(f"{file}: {name} is in another shard as well")
            if not _BUFFERS.search(name):
                extent = Extent(file, at.start, at.size)
                tensors[name] = Stored(at.dtype, at.shape, (extent,))
    return Source(str(path), "folder", tensors, list(map(str, files)), config)


def _config(folder) -> dict:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise errors.UserError(f"{file} is not a JSON object; restore it from a copy")
    return found


def dtype_of(name: object) -> np.dtype:
    """A dtype by its name; bfloat16 is not one of numpy's."""
    return np.dtype(ml_dtypes.bfloat16 if str(name) == "bfloat16" else str(name))
