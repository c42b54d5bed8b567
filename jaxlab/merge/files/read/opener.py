"""Opens what a merge is given: Hugging Face folders, single files, checkpoints.

Each path is looked at once, here: what the merge asks later is in the `Source`.
"""

import itertools
import pathlib
import re
from collections.abc import Sequence

from jaxlab.core import errors, json_text, links, missing_models, runs, safetensors
from jaxlab.merge.files.read import compatible
from jaxlab.merge.files.read import source as source_lib

_CHECKPOINT = "_CHECKPOINT_METADATA"
# Names of low-rank adapters: peft's LoRA, DoRA, VeRA, LoHa, LoKr, IA3, OFT; kohya's.
_ADAPTERS = re.compile(
    r"(^|[._])(lora|vera|hada|lokr|ia3|oft|boft)_(\w|$)|\.prompt_embeddings"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d+)\.")
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
    if not path.exists() or (path.is_file() and path.suffix != ".safetensors"):
        raise missing_models.explain(path, step="an Orbax checkpoint")
    run = runs.merge_input(path)
    if run is None and not (path / _CHECKPOINT).exists():
        return _open_files(path)
    from jaxlab.merge.files.read import orbax_tree  # imports jax

    if run is None:
        return orbax_tree.open_checkpoint(path)
    return orbax_tree.open_run(path, *run)


def _open_files(path) -> source_lib.Source:
    """A folder of safetensors, or one such file."""
    if path.is_dir():
        links.check(path)
    config, tensors = _config(path), {}
    files = _offsets(path)
    for file, offsets in files.items():
        for name, at in offsets.items():
            if not _BUFFERS.search(name):
                extent = source_lib.Extent(str(file), at.start, at.size)
                tensors[name] = source_lib.Stored(at.dtype, at.shape, (extent,))
    _refuse_parts(path, tensors, config)
    names = [str(file) for file in files]
    return source_lib.Source(str(path), "folder", tensors, names, config, path)


def _offsets(path) -> dict[pathlib.Path, dict[str, safetensors.TensorOffset]]:
    """The tensors by file, of a folder or of the one file in it, or of that file."""
    alone = [path] if path.is_file() else list(path.glob("*.safetensors"))
    if len(alone) != 1 or (path / safetensors.INDEX).exists():
        return safetensors.folder_offsets(path)
    if (count := safetensors.shard_of(alone[0].name)) > 1:
        raise errors.UserError(
            f"{alone[0]} is one of {count} files of a model, and they are merged "
            f"together; give a folder with all of them and their {safetensors.INDEX}"
        )
    return {alone[0]: safetensors.tensor_offsets(alone[0])}


def _refuse_parts(path, tensors, config) -> None:
    """Refuses what is no model: an adapter, and a model that lacks layers."""
    if any(map(_ADAPTERS.search, tensors)) or (path / "adapter_config.json").is_file():
        raise errors.UserError(
            f"{path} is an adapter: the average of factors is not that of what they "
            "add to a model. Merge it into its base model first (peft's "
            "merge_and_unload), then merge the models"
        )
    layers, numbers = config.get("num_hidden_layers"), map(_LAYER.search, tensors)
    have = {int(number[1]) for number in numbers if number}
    first = next(number for number in itertools.count() if number not in have)
    if have and type(layers) is int and first < layers:
        raise errors.UserError(
            f"{path} lacks layer {first} of the {layers} that its config.json calls "
            "for; download the rest"
        )


def _config(folder) -> dict:
    if folder.is_file():  # which came alone
        return {}
    file = folder / runs.CONFIG
    return json_text.read_object(file, "restore it from a copy") or {}
