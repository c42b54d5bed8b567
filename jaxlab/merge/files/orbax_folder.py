"""A merge as a run directory: an Orbax checkpoint that `load_params` opens."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import checkpoint
from jaxlab.merge.files import sources

STEP = 0  # no update was made


def write(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    axes: Mapping[str, Sequence[str | None]],
) -> None:
    """Writes `config.json` and `checkpoints/0`.

    Args:
        folder: an existing folder.
        tensors: by path, `blocks/attn/q/kernel`; may be mapped files.
        config: of the run.
        axes: logical axis names by path, for loading onto a mesh.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with checkpoint.Checkpointer(folder / "checkpoints", axes=axes) as checkpointer:
        checkpointer.save(STEP, {"params": nested(tensors)})


def run_config(source: sources.Source) -> dict[str, Any]:
    """The config of a run for another folder: its data stay where they are."""
    config = dict(source.config)
    data = config.get("data")
    if isinstance(data, Mapping) and not data.get("files"):
        own = data.get("folder") or pathlib.Path(source.path) / "data"
        config["data"] = {**data, "folder": str(pathlib.Path(own).absolute())}
    return config


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path -> the tree.

    >>> nested({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in tensors.items():
        *folders, last = path.split("/")
        node = tree
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
