"""Where the bytes of the tensors of one merge input are: what the readers share.

A source says where the bytes of each tensor lie in which file, so that any range of any
tensor is one `preadv` into a buffer that is used again (`merge.files.read.reader`).
`merge.files.read.opener` makes sources of paths.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


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

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether its numbers can be averaged; bfloat16 is not one of numpy's."""
        return self.dtype.kind == "f" or self.dtype.name == "bfloat16"


@dataclasses.dataclass
class Source:
    """One input: its tensors by name, and the files whose digests identify it.

    Attributes:
        kind: "folder" of safetensors (or one file), "run" directory of ours, or another
            Orbax "checkpoint".
        config: its config.json, or {}; of a run, that of a merge of its like.
        tokenizer: the folder of its tokenizer files, if it has any.
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
    tokenizer: pathlib.Path
    fingerprints: Mapping[str, int] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, list] = dataclasses.field(default_factory=dict)
    step: int | None = None
    tree: Any = None

    @property
    def is_run(self) -> bool:
        """Whether its names are those of a run's parameters."""
        return self.kind == "run"
