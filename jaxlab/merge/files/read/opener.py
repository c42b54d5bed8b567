"""Opens what a merge is given: Hugging Face folders, single files, checkpoints."""

import json
import os
import pathlib
import re

from jaxlab.core import errors, runs, safetensors
from jaxlab.merge.files.read import source as source_lib

_CHECKPOINT = "_CHECKPOINT_METADATA"
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # follow from the config; not merged


def open_source(path: str | os.PathLike) -> source_lib.Source:
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
        if runs.has_checkpoints(path) or (path / _CHECKPOINT).exists():
            from jaxlab.merge.files.read import orbax_tree  # imports jax

            return orbax_tree.open_source(path)
        return _open_files(path, _files(path), _config(path))
    except OSError as error:
        raise errors.UserError(
            f"cannot read {error.filename}: {error.strerror}"
        ) from None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    alone = list(folder.glob("*.safetensors"))
    has_index = (folder / safetensors.INDEX).exists()
    return alone if len(alone) == 1 and not has_index else safetensors.files(folder)


def _open_files(path, files, config) -> source_lib.Source:
    tensors = {}
    for file in map(str, files):
        for name, at in safetensors.tensor_offsets(file).items():
            if name in tensors:
                raise errors.UserError(f"{file}: {name} is in another shard as well")
            if not _BUFFERS.search(name):
                extent = source_lib.Extent(file, at.start, at.size)
                tensors[name] = source_lib.Stored(at.dtype, at.shape, (extent,))
    return source_lib.Source(
        str(path), "folder", tensors, list(map(str, files)), config
    )


def _config(folder) -> dict:
    file = folder / runs.CONFIG
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise errors.UserError(f"{file} is not a JSON object; restore it from a copy")
    return found
