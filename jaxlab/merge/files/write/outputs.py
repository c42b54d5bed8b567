"""What a merge writes: a folder that appears under its name when it is whole.

Everything goes to a sibling, `NAME.part`. Files have their full size from the start, so
a full disk is found before the work, and threads write ranges in any order. Their
headers come last: until then they begin with zeros, and nothing can load them. A kill
leaves `NAME.part`; the next merge to NAME removes it.
"""

import fcntl
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlab.core import errors, safetensors

_LOCK = "merge.unfinished"
_COPIED = re.compile(
    r"tokenizer.*|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template.*|generation_config\.json|preprocessor_config\.json|.*\.model"
)


class Output:
    """A folder of safetensors files in the making; use as a context manager.

    Args:
        folder: where it appears.
        tensors: name -> (shape, dtype), in the order of the files.
        shard_bytes: a file is closed before it grows beyond this.
        metadata: strings for the files' headers; `finish` may change them, not their
            lengths.
        is_rewritten: `rewrite` will make the folder's files of these.

    Raises:
        UserError: the folder exists, the disk has no room, or another merge writes it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tensors: safetensors.Specs,
        *,
        shard_bytes: int,
        metadata: Mapping[str, str],
        is_rewritten: bool = False,
    ):
        self.folder = pathlib.Path(folder).absolute()
        self.part = self.folder.with_name(f"{self.folder.name}.part")
        self.shards = safetensors.plan_shards(tensors, shard_bytes)
        self._places: dict[str, tuple[str, int]] = {}
        self._sizes = {}
        for file, shard in self.shards.items():
            _, starts = safetensors.preamble(shard, metadata)
            self._places |= {name: (file, start) for name, start in starts.items()}
            last = max(starts, key=starts.__getitem__)
            self._sizes[file] = starts[last] + _size(*shard[last])
        self._files = self.part / "merged" if is_rewritten else self.part
        self._open: dict[str, int] = {}
        self._lock: int | None = None

    def __enter__(self) -> "Output":
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._claim()
            is_twice = self._files != self.part
            needed = sum(self._sizes.values()) * (1 + is_twice)
            free = shutil.disk_usage(self.part).free
            if needed > free:
                raise errors.UserError(
                    f"the merge needs {needed / 1e9:.1f} GB and the disk of "
                    f"{self.folder.parent} has {free / 1e9:.1f} GB; free some space"
                )
            self._files.mkdir(exist_ok=True)
            for file, size in self._sizes.items():
                handle = os.open(self._files / file, os.O_CREAT | os.O_RDWR, 0o644)
                self._open[file] = handle
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            self.__exit__()
            raise self._error(error) from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open = {}
        if self._lock is not None:
            shutil.rmtree(self.part, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Writes numbers of a tensor from its number `start` on, in any order."""
        file, begin = self._places[name]
        at, view = begin + start * values.itemsize, memoryview(values.view(np.uint8))
        try:
            while len(view):
                count = os.pwrite(self._open[file], view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise self._error(error) from None

    def finish(self, metadata: Mapping[str, str], texts: Mapping[str, Any]) -> None:
        """Makes the files whole and gives the folder its name.

        Args:
            metadata: as announced, with its final values.
            texts: name -> what is written there as JSON.
        """
        try:
            for file, shard in self.shards.items():
                text, _ = safetensors.preamble(shard, metadata)
                os.pwrite(self._open[file], text, 0)
            safetensors.write_index(self.part, self.shards)
            for name, value in texts.items():
                _write_json(self.part / name, value)
            self._publish()
        except OSError as error:
            raise self._error(error) from None

    def rewrite(self, writer: Callable[..., None], report: Any) -> None:
        """Lets `writer` fill the folder from the merged tensors instead."""
        tensors = {}
        for file, shard in self.shards.items():
            data = np.memmap(self._files / file, np.uint8, "r")
            for name, (shape, dtype) in shard.items():
                start = self._places[name][1]
                values = data[start : start + _size(shape, dtype)].view(dtype)
                tensors[name] = values.reshape(shape)
        try:
            writer(tensors, self.part)
            _write_json(self.part / "merge.json", report)
            shutil.rmtree(self._files)
            self._publish()
        except OSError as error:
            raise self._error(error) from None

    def _publish(self):
        if self.folder.exists():
            self.folder.rmdir()  # empty, or somebody came in between
        self.part.rename(self.folder)
        (self.folder / _LOCK).unlink()
        os.close(self._lock)
        self._lock = None

    def _claim(self):
        refuse_existing(self.folder)
        if self.part.exists():
            if not (self.part / _LOCK).is_file():
                raise errors.UserError(
                    f"{self.part} is in the way; remove it or choose another folder"
                )
            self._lock_or_refuse()
            shutil.rmtree(self.part)
            os.close(self._lock)
            self._lock = None
        self.part.mkdir()
        self._lock_or_refuse()

    def _lock_or_refuse(self):
        handle = os.open(self.part / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise errors.UserError(
                f"another merge is writing {self.folder}; wait for it"
            ) from None
        self._lock = handle

    def _error(self, error: OSError) -> errors.UserError:
        return errors.UserError(
            f"cannot write {self.folder} ({error.strerror}); free some disk space or "
            "choose another folder"
        )


def refuse_existing(folder: str | os.PathLike) -> None:
    """Raises UserError unless nothing, or an empty folder, is there."""
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise errors.UserError(f"{folder} exists; remove it or choose another folder")


def copy_extras(source: str | os.PathLike, target: pathlib.Path) -> None:
    """Copies tokenizer and generation files of a Hugging Face folder."""
    if not os.path.isdir(source):  # a safetensors file: it came alone
        return
    for file in sorted(pathlib.Path(source).iterdir()):
        if file.is_file() and _COPIED.fullmatch(file.name):
            shutil.copyfile(file, target / file.name)


def _size(shape, dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _write_json(file, value) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
