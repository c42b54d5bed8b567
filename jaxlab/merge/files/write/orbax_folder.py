"""A merge as an Orbax checkpoint: of a run, or of any tree."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlab.core import checkpoint, checkpoint_files, links, runs, tokenizer_files, tree
from jaxlab.merge.files.read import source as source_lib
from jaxlab.merge.files.read import tokenizers

STEP = 0  # no update was made
_GENERATION = "generation_config.json"


def write_like(
    source: source_lib.Source,
    kept: source_lib.Source,
    tensors: Mapping[str, np.ndarray],
    folder: pathlib.Path,
) -> None:
    """Writes what a source is, a run directory or a checkpoint; of folders a run.

    Args:
        source: the first of those that were merged.
        kept: the one whose tokenizer the result has, in its own folder.
        tensors: by path; may be mapped files.
        folder: an existing folder.
    """
    if source.kind == "checkpoint":
        write_checkpoint(source.tree, tensors, folder)
    else:
        config = dict(source.config)
        if style := tokenizers.style(kept):
            config["data"] = {**config.get("data", {}), **style}
        write(folder, tensors, config, source.axes)
        if tokenizer_files.find(kept.tokenizer):
            (folder / "tokenizer").mkdir()
            tokenizer_files.copy(kept.tokenizer, folder / "tokenizer")
        if (generation := pathlib.Path(kept.path, _GENERATION)).is_file():
            links.refuse_outside(generation, generation.parent)
            shutil.copyfile(generation, folder / _GENERATION)


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
        checkpointer.save(STEP, {"params": nest(tensors)})


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
    inner = folder.absolute() / "checkpoint"  # Orbax makes it, and it can be moved
    with checkpoint_files.context():
        ocp.save(inner, whole)
    for file in inner.iterdir():
        file.rename(folder / file.name)
    inner.rmdir()


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path -> the tree.

    >>> nest({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    nodes: dict[str, Any] = {}
    for path, leaf in tensors.items():
        *folders, last = path.split("/")
        node = nodes
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = leaf
    return nodes
