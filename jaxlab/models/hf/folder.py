"""Published checkpoints in and out: Hugging Face folders <-> (config, params).

A folder holds `config.json` (`models/hf/config.py`) and safetensors files
(`core/safetensors.py`), whose tensors `models/hf/names.py` names; for encoders these
are `models/bert/json.py` and `models/bert/names.py`. Torch keeps a Linear as (outputs,
inputs) and we as (inputs, outputs), so every matrix is transposed; our blocks are
stacked (layers, ...). Rotary positions are half-split on both sides: nothing is
permuted.

Files are mapped, and each device's share of a leaf is read straight from them: host
memory stays near one copy of what the host's own devices hold.
"""

import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from jaxlab.core import (
    errors,
    folders,
    json_text,
    links,
    missing_models,
    safetensors,
    tokenizer_files,
    tree,
    types,
)
from jaxlab.core import mesh as mesh_lib
from jaxlab.models.bert import json as json_lib
from jaxlab.models.bert import names as names_lib
from jaxlab.models.bert import sentence_files
from jaxlab.models.bert.config import BertConfig
from jaxlab.models.config import TransformerConfig
from jaxlab.models.hf import config as config_lib
from jaxlab.models.hf import generation as generation_lib
from jaxlab.models.hf import names as hf_names

_log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
# Tensors that old checkpoints carry although they follow from the config.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|embeddings\.(position|token_type)_ids$")
_OURS = re.compile(
    r"(generation_)?config\.json|model.*\.safetensors(\.index\.json)?"
    r"|modules\.json|(config_sentence_transformers|sentence_bert_config)\.json"
    r"|\d_(Pooling|Normalize)"
)
_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")


def load(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> tuple[TransformerConfig | BertConfig, types.Params]:
    """Reads a Hugging Face folder: OLMo 1, 2, 3, Llama; BERT, RoBERTa, XLM-R.

    Of encoders the folder may be sentence-transformers', whose settings are followed. A
    pooler may be absent: the config's `head` says what was there. A classifier may not,
    and heads of pre-training are left out.

    Args:
        path: the folder.
        dtype: of the parameters; None = float32, whatever the file holds.
        mesh: where the parameters go, sharded by their logical axes; None = one device.

    Returns:
        (config, params of `Decoder(config)`, or of `Scorer(config)` when its head is
        "score"); for a `BertConfig` those of `BertScorer` when its head is "score",
        else of `BertEncoder`. NaNs in the file are kept: a
        diverged run must be loadable to be looked at.

    Raises:
        UserError: the folder is incomplete or damaged, or is not one of the families.
    """
    config = read_config(path)
    return config, assemble(path, config, safetensors.read_folder(path), dtype, mesh)


def assemble(
    path: str | os.PathLike,
    config: TransformerConfig | BertConfig,
    tensors: dict[str, Any],
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> types.Params:
    """The parameters of a config, from the tensors of a published file.

    Args:
        path: where they come from, for messages.
        config: what they are to be.
        tensors: by transformers' names; each has `shape`, `dtype`, `T`, and gives
            its values by index.
        dtype, mesh: as for `load`.

    Raises:
        UserError: tensors are missing, unknown, misshapen or integers.
    """
    if isinstance(config, BertConfig):
        tensors = names_lib.as_saved(path, config, tensors)
    elif (
        hf_names.has_tied_head(config) and hf_names.HEAD in tensors
    ):  # it may be there instead
        tensors.setdefault(hf_names.EMBEDDING, tensors[hf_names.HEAD])
    leaves = _names(config).leaves(config)
    _check(path, config, leaves, tensors)
    boxed = _names(config).abstract(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, mesh_lib.unbox(boxed))
    else:
        shardings = mesh_lib.param_shardings(boxed, mesh)
    dtype = np.dtype(jnp.float32 if dtype is None else dtype)
    arrays = [
        jax.make_array_from_callback(
            leaf.shape, sharding, _reader(leaf, tensors, dtype), dtype=dtype
        )
        for leaf, sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shardings), arrays)


def read_config(path: str | os.PathLike) -> TransformerConfig | BertConfig:
    """The config of a Hugging Face folder, without its weights.

    Only an encoder's weights say whether it has a pooler: their names are looked at.

    Raises:
        UserError: no config.json, or one that no model here can follow.
    """
    file = pathlib.Path(path) / "config.json"
    raw = json_text.read_object(file, "download it again")
    if raw is None:
        raise missing_models.explain(path)
    links.check(path)
    if (adapter := file.with_name("adapter_config.json")).is_file():
        raise errors.UserError(
            f"{adapter} is of an adapter beside the model, which is not followed; "
            "merge it into the model (peft's merge_and_unload), or remove it"
        )
    if not json_lib.is_named(raw):
        return _name_folder(file.parent, config_lib.from_json, raw)
    config = _name_folder(file.parent, json_lib.from_json, raw)
    config = sentence_files.with_settings(config, file.parent)
    names = (
        name
        for part in safetensors.files(path)
        for name in safetensors.tensor_offsets(part)
    )
    return names_lib.with_head(config, names)


def _name_folder(folder, read, raw):
    """What `read` makes of a config.json; its errors name the folder."""
    try:
        return read(raw)
    except errors.UserError as error:
        raise errors.UserError(f"{folder}: {error}") from error


def save(
    path: str | os.PathLike,
    config: TransformerConfig | BertConfig,
    params: types.Params,
    *,
    dtype: str | None = "float32",
    shard_bytes: int = 5 * 2**30,
    tokenizer_folder: str | os.PathLike | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `load` and transformers read.

    It appears under its name only when it is whole. On several hosts all of them call
    this and the first one writes.

    Args:
        path: the folder to make.
        config: decides the family.
        params: as `load` gives them, on any devices.
        dtype: "float32", "bfloat16" or "float16"; None keeps each leaf's own.
        shard_bytes: a file is closed before it grows beyond this.
        tokenizer_folder: its tokenizer files are copied along.
        generation: what generation_config.json says besides the config's token ids, or
            instead of them.
        overwrite: replaces the weights and configs of an earlier checkpoint; other
            files in the folder stay.

    Raises:
        UserError: no family has the config, params are not its tree, the folder exists,
            a finite value overflows float16, or there are no tokenizer files.
    """
    is_bert = isinstance(config, BertConfig)
    raw = (json_lib if is_bert else config_lib).to_json(config)
    entries = _entries(config, params, dtype)
    specs = {
        name: (entry.leaf.tensor_shape, entry.dtype) for name, entry in entries.items()
    }
    dtypes = {str(entry.dtype) for entry in entries.values()}
    # Under both names: transformers before 4.56 knows only torch_dtype.
    raw["dtype"] = raw["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    if jax.process_index() != 0:
        for name, entry in entries.items():
            _fetch(name, entry)  # its shards are gathered on every host
        return
    if tokenizer_folder is not None and not tokenizer_files.find(tokenizer_folder):
        raise errors.UserError(
            f"{tokenizer_folder} has no tokenizer files (tokenizer.json, ...)"
        )
    _check_target(pathlib.Path(path), overwrite)
    broken: list[str] = []
    with folders.new_folder(path, replaced=_OURS.fullmatch) as part:
        _write_json(part / "config.json", raw)
        if is_bert:
            sentence_files.write_settings(config, part)
        else:
            ids = {key: raw[key] for key in _IDS}
            said = ids | dict(generation or {})
            _write_json(part / generation_lib.FILE, said)
        if tokenizer_folder is not None:
            tokenizer_files.copy(tokenizer_folder, part)
        safetensors.write_folder(
            part,
            specs,
            lambda name: _fetch(name, entries[name], broken),
            shard_bytes=shard_bytes,
        )
    if broken:
        _log.warning(
            "%s: %d tensors hold NaN or infinite values: %s",
            *(path, len(broken), _short(broken)),
        )


def _names(config):
    """Who names the tensors of a config."""
    return names_lib if isinstance(config, BertConfig) else hf_names


def _check(path, config, leaves, tensors):
    """Refuses missing, unknown and misshapen tensors, naming them."""
    wanted = {name: leaf.tensor_shape for leaf in leaves for name in leaf.names}
    if missing := [name for name in wanted if name not in tensors]:
        raise errors.UserError(
            f"{path} lacks {len(missing)} tensors that config.json calls for: "
            f"{_short(missing)}"
        )
    tied = hf_names.has_tied_head(config)
    head = tensors.get(hf_names.HEAD)
    if tied and head is not None and _same(head, tensors[hf_names.EMBEDDING]):
        wanted[hf_names.HEAD] = head.shape
    unknown = [
        name for name in tensors if name not in wanted and not _BUFFERS.search(name)
    ]
    if tied and hf_names.HEAD in unknown:
        raise errors.UserError(
            f"{path}: tie_word_embeddings is true, but {hf_names.HEAD} differs from "
            "the embedding; set it to false in config.json"
        )
    if unknown:
        raise errors.UserError(
            f"{path} has {len(unknown)} tensors that config.json does not call for: "
            f"{_short(unknown)}"
        )
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise errors.UserError(
            f"{path}: weights do not have the sizes of config.json: {_short(wrong)}"
        )
    if odd := [n for n in wanted if not jnp.issubdtype(tensors[n].dtype, jnp.floating)]:
        raise errors.UserError(
            f"{path}: {_short(odd)} are integers; use an unquantised checkpoint"
        )


def _reader(leaf, tensors, dtype) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Index of a shard -> its values; replicas of a shard share one array."""
    views = [tensors[name] for name in leaf.names]
    if leaf.is_transposed:
        views = [view.T for view in views]
    shards = {}

    def read(index):
        key = str(index)
        if key not in shards:
            chosen = views[index[0]] if leaf.is_stacked else views
            inner = index[1:] if leaf.is_stacked else index
            out = np.empty((len(chosen), *chosen[0][inner].shape), dtype)
            for layer, view in enumerate(chosen):
                out[layer] = view[inner]
            shards[key] = out if leaf.is_stacked else out[0]
        return shards[key]

    return read


class _Entry(NamedTuple):
    """A tensor of the file: one layer of one of our leaves."""

    leaf: hf_names.Leaf
    value: Any
    layer: int | None
    dtype: np.dtype


def _entries(config, params, dtype) -> dict[str, _Entry]:
    if lines := tree.differences(
        [mesh_lib.unbox(_names(config).abstract(config)), params], dtypes=False
    ):
        raise errors.UserError(
            "params (tree 1) are not those of the config (tree 0): "
            f"{_short(lines, '; ')}"
        )
    entries, values = {}, tree.flatten(params)
    for leaf in _names(config).leaves(config):
        value = values[leaf.path]
        stored = str(value.dtype) if dtype is None else str(dtype)
        if stored not in DTYPES:
            raise errors.UserError(
                f"dtype {stored}: checkpoints are {', '.join(DTYPES)}"
            )
        for i, name in enumerate(leaf.names):
            layer = i if leaf.is_stacked else None
            entries[name] = _Entry(leaf, value, layer, jnp.dtype(stored))
    return entries


def _fetch(name, entry, broken=None) -> np.ndarray:
    """A tensor as the file has it; gathered when it lives on several hosts.

    `broken` collects the names of those that are not finite.
    """
    value = entry.value if entry.layer is None else entry.value[entry.layer]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        value = multihost_utils.process_allgather(value, tiled=True)
    value = np.asarray(value)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(entry.dtype)
        total = np.add.reduce(value, axis=None, dtype=np.float32)
    if broken is not None and not np.isfinite(total):  # or it overflowed
        broken += [name] * (not np.isfinite(value.astype(np.float32)).all())
    if entry.dtype == np.float16:
        lost = np.isinf(cast) & np.isfinite(value.astype(np.float32))
        if lost.any():
            raise errors.UserError(
                f"{name} has {lost.sum()} values beyond float16's 65504; save as "
                "bfloat16"
            )
    return cast.T if entry.leaf.is_transposed else cast


def _check_target(folder, overwrite):
    if not overwrite:
        folders.refuse_existing(folder, "use overwrite=True to replace it")
    elif not (folders.is_free(folder) or (folder / "config.json").is_file()):
        raise errors.UserError(
            f"{folder} is not a Hugging Face checkpoint and is not overwritten; choose "
            "another folder"
        )


def _same(a, b) -> bool:
    """Bit by bit, so that NaNs equal themselves; one may be the other, rounded."""
    if a.shape != b.shape or "int" in a.dtype.name + b.dtype.name:
        return False
    if a.dtype.itemsize > b.dtype.itemsize:
        a = a.astype(b.dtype)
    elif a.dtype != b.dtype:
        b = b.astype(a.dtype)
    return np.array_equal(a.view(np.uint8), b.view(np.uint8))


def _write_json(file, value):
    file.write_text(json.dumps(value, indent=2) + "\n")


def _short(names: Sequence[str], separator: str = ", ", shown: int = 6) -> str:
    rest = len(names) - shown
    text = separator.join(names[:shown])
    return f"{text} and {rest} more" if rest > 0 else text
