"""Opens what a merge is given: Hugging Face folders, single files, checkpoints.

Each path is looked at once, here: what the merge asks later is in the `Source`.
"""

import json
import pathlib
import re
from collections.abc import Sequence

from jaxlab.core import errors, runs, safetensors
from jaxlab.merge.files.read import compatible
from jaxlab.merge.files.read import source as source_lib

_CHECKPOINT = "_CHECKPOINT_METADATA"
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # follow from the config; not merged


def open_all(paths: Sequence[str]) -> list[source_lib.Source]:
    """Opens the inputs.

    Args:
        paths: each a Hugging Face folder, or a folder with one safetensors file, or
            that file; a run directory (its newest finished checkpoint); or any other
            Orbax checkpoint. Local all of them.

    Raises:
        UserError: what is wrong with any of them, in one line: none of these, or
            incomplete, damaged or unreadable.
    """
    sources, lines = [], []
    for path in map(pathlib.Path, paths):
        try:
            sources.append(_open(path))
        except errors.UserError as error:
            lines.append(str(error))
        except OSError as error:
            lines.append(f"cannot read {error.filename}: {error.strerror}")
    if len(lines) == 1:
        raise errors.UserError(lines[0])
    compatible.refuse(lines)
    return sources


def _open(path: pathlib.Path) -> source_lib.Source:
    if not path.exists():
        raise errors.UserError(
            f"model {path} does not exist; give a run directory, an Orbax checkpoint "
            "or a Hugging Face folder"
        )
    run = runs.merge_input(path)
    if run is None and not (path / _CHECKPOINT).exists():
        return _open_files(path)
    from jaxlab.merge.files.read import orbax_tree  # imports jax

    if run is None:
        return orbax_tree.open_checkpoint(path)
    return orbax_tree.open_run(path, *run)


def _open_files(path) -> source_lib.Source:
    """A folder of safetensors, or one such file."""
    config, tensors = _config(path), {}
    files = [str(path)] if path.is_file() else _weight_files(path)
    for file in files:
        for name, at in safetensors.tensor_offsets(file).items():
            if name in tensors:
                raise errors.UserError(f"{file}: {name} is in another shard as well")
            if not _BUFFERS.search(name):
                extent = source_lib.Extent(file, at.start, at.size)
                tensors[name] = source_lib.Stored(at.dtype, at.shape, (extent,))
    return source_lib.Source(str(path), "folder", tensors, files, config, path)


def _weight_files(folder) -> list[str]:
    alone = list(folder.glob("*.safetensors"))
    is_whole = len(alone) == 1 and not (folder / safetensors.INDEX).exists()
    return [str(file) for file in (alone if is_whole else safetensors.files(folder))]


def _config(folder) -> dict:
    file = folder / runs.CONFIG
    try:
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise errors.UserError(f"{file} is not a JSON object; restore it from a copy")
    return config
