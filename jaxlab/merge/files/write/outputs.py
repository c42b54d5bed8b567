"""What a merge writes: a folder that appears under its name when it is whole.

Everything goes to a sibling, `NAME.part` (`core/folders.py`). Files have their full
size from the start, so a full disk is found before the work, and threads write ranges
in any order. Their headers come last: until then they begin with zeros, and nothing can
load them.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlab.core import errors, folders, links, safetensors, tokenizer_files

_COPIED = re.compile(
    r"generation_config\.json|(pre)?processor_config\.json"
    r"|modules\.json|(config_sentence_transformers|sentence_bert_config)\.json"
    r"|(modeling|configuration|tokenization)_.*\.py"  # what auto_map names
)
_MODULE = re.compile(r"\d+_\w+")  # of sentence-transformers, such as 1_Pooling


class Output:
    """A folder of safetensors files in the making; use as a context manager.

    Its block fills it by `write`, and then calls `finish` or `rewrite`.

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
        self.shards = safetensors.plan_shards(tensors, shard_bytes)
        self._starts: dict[str, tuple[str, int]] = {}
        self._sizes = {}
        for file, shard in self.shards.items():
            _, starts = safetensors.preamble(shard, metadata)
            self._starts |= {name: (file, start) for name, start in starts.items()}
            last = max(starts, key=starts.__getitem__)
            self._sizes[file] = starts[last] + _size(*shard[last])
        self._is_rewritten = is_rewritten
        self._open: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Output":
        try:
            new = folders.new_folder(self.folder, writer="merge")
            self.part = self._stack.enter_context(new)
            self._files = self.part / "merged" if self._is_rewritten else self.part
            needed = sum(self._sizes.values()) * (1 + self._is_rewritten)
            free = shutil.disk_usage(self.part).free
            if needed > free:
                raise errors.UserError(
                    f"the merge needs {needed / 1e6:,.1f} MB and the disk of "
                    f"{self.folder.parent} has {free / 1e6:,.1f} MB; free some space"
                )
            self._files.mkdir(exist_ok=True)
            for file, size in self._sizes.items():
                handle = os.open(self._files / file, os.O_CREAT | os.O_RDWR, 0o644)
                self._open[file] = handle
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            self.__exit__(*sys.exc_info())
            raise self._error(error) from None
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open = {}
        try:
            self._stack.__exit__(*exception)
        except OSError as error:
            if error in exception:
                raise
            raise self._error(error) from None

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Writes numbers of a tensor from its number `start` on, in any order."""
        file, begin = self._starts[name]
        at, view = begin + start * values.itemsize, memoryview(values.view(np.uint8))
        try:
            while len(view):
                count = os.pwrite(self._open[file], view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise self._error(error) from None

    def finish(self, metadata: Mapping[str, str], texts: Mapping[str, Any]) -> None:
        """Makes the files whole: headers, index, and texts beside them.

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
        except OSError as error:
            raise self._error(error) from None

    def rewrite(self, writer: Callable[..., None], report: Any) -> None:
        """Lets `writer` fill the folder from the merged tensors instead."""
        tensors = {}
        for file, shard in self.shards.items():
            data = np.memmap(self._files / file, np.uint8, "r")
            for name, (shape, dtype) in shard.items():
                start = self._starts[name][1]
                values = data[start : start + _size(shape, dtype)].view(dtype)
                tensors[name] = values.reshape(shape)
        try:
            writer(tensors, self.part)
            _write_json(self.part / "merge.json", report)
            shutil.rmtree(self._files)
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> errors.UserError:
        return errors.UserError(
            f"cannot write {self.folder} ({error.strerror}); free some disk space or "
            "choose another folder"
        )


def copy_extras(source: str | os.PathLike, target: pathlib.Path) -> None:
    """Copies what belongs to the weights of a Hugging Face folder.

    Its tokenizer, chat templates, how it generates, how vectors are made of its states.

    Raises:
        UserError: one of its modules has weights of its own, which are not merged.
    """
    source = pathlib.Path(source)
    if not source.is_dir():  # a safetensors file: it came alone
        return
    tokenizer_files.copy(source, target)
    for file in sorted(source.iterdir()):
        if file.is_file() and _COPIED.fullmatch(file.name):
            links.refuse_outside(file, source)
            shutil.copyfile(file, target / file.name)
        elif file.is_dir() and _MODULE.fullmatch(file.name):
            if weights := [*file.glob("*.safetensors"), *file.glob("*.bin")]:
                raise errors.UserError(
                    f"{weights[0]} has weights beside the model's, and they are not "
                    "merged; merge models without such a module"
                )
            links.check_all(file, source)
            shutil.copytree(file, target / file.name)


def _size(shape, dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _write_json(file, value) -> None:
    with open(file, "w", encoding="utf-8") as text:
        text.write(json.dumps(value, indent=2) + "\n")
