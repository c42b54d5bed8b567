"""A merge as an Orbax checkpoint: of a run, or of any tree."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlab.core import checkpoint, checkpoint_files, runs, tree

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
    runs.write_config(folder, config)
    with checkpoint.Checkpointer(runs.checkpoints(folder), axes=axes) as checkpointer:
        checkpointer.save(STEP, {"params": nested(tensors)})


def write_checkpoint(
    structure: Any, tensors: Mapping[str, np.ndarray], folder: pathlib.Path
) -> None:
    """Writes a checkpoint into a folder: what `orbax.checkpoint.v1.load` opens.

    Args:
        structure: a tree with the wanted containers and anything at its leaves.
        tensors: by path; may be mapped files.
        folder: an existing folder.
    """
    from orbax.checkpoint import v1 as ocp

    whole = jax.tree_util.tree_map_with_path(
        lambda path, _: tensors[tree.path_name(path)], structure
    )
    place = folder.absolute() / "checkpoint"  # Orbax makes it, and it can be moved
    with checkpoint_files.context():
        ocp.save(place, whole)
    for file in place.iterdir():
        file.rename(folder / file.name)
    place.rmdir()


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path -> the tree.

    >>> nested({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    found: dict[str, Any] = {}
    for path, leaf in tensors.items():
        *folders, last = path.split("/")
        node = found
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = leaf
    return found
