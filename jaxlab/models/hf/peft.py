"""Adapters of the `peft` library: folders in and out, and merged into a model.

    adapter_config.json        rank, alpha, targets, the base's path
    adapter_model.safetensors  base_model.model.MODULE.lora_A.weight [r, inputs],
                               ....lora_B.weight [outputs, r]; modules that were
                               trained whole have their own weight there

`as_tree` gives what training goes on with (`models/lora.py`); `merge` takes any LoRA,
also one with ranks by module, of single layers, of the embedding, with whole modules:

    W + s B A,    s = alpha / r, with rsLoRA alpha / sqrt(r)

A setting that changes the arithmetic and is not computed is refused.
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import (
    errors,
    folders,
    json_text,
    safetensors,
    tree,
    types,
    value_types,
)
from jaxlab.models import lora as lora_lib
from jaxlab.models.config import TransformerConfig
from jaxlab.models.hf import names as hf_names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MODULES = {name: f"{name}_proj" for name in lora_lib.MATRICES}
# What other kinds of adapters set; of a plain LoRA each is absent, false or empty.
_OTHERS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"),
    *("layer_replication", "trainable_token_indices", "target_parameters"),
    *("alora_invocation_tokens", "arrow_config", "monteclora_config", "kasa_config"),
)
_KINDS = {
    "peft_type": value_types.TEXT,
    "base_model_name_or_path": value_types.TEXT.or_null(),
    "r": value_types.SIZE,
    "lora_alpha": value_types.POSITIVE,
    "lora_dropout": value_types.NUMBER,
    "use_rslora": value_types.SWITCH.or_null(),
}
_PATTERN = re.compile(r"[\w.\\^$*+-]{1,200}")  # none that could take for ever


class Adapter(NamedTuple):
    """A folder of peft.

    Attributes:
        path: the folder.
        said: its adapter_config.json.
        pairs: module of the base -> (A [r, inputs], B [outputs, r]).
        whole: tensor of the base -> the weight that takes its place.
    """

    path: pathlib.Path
    said: Mapping[str, Any]
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
    whole: Mapping[str, np.ndarray]

    @property
    def base(self) -> str:
        """The path of the model that it is of; relative ones begin at the folder."""
        base = self.said.get("base_model_name_or_path") or ""
        beside = self.path / base
        return str(beside if base and beside.exists() else base)

    def scale(self, module: str) -> float:
        """s of a module's pair."""
        rank, alpha = self.pairs[module][0].shape[0], self.said["lora_alpha"]
        for pattern, other in (self.said.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = other
                break
        return alpha / (rank**0.5 if self.said.get("use_rslora") else rank)


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter, and no model."""
    folder = pathlib.Path(path)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read(path: str | os.PathLike) -> Adapter:
    """Reads a folder of peft; its weights stay on disk until they are used.

    Raises:
        UserError: it is incomplete, damaged, or another kind of adapter.
    """
    folder = pathlib.Path(path)
    said = json_text.read_object(folder / CONFIG, "download it again")
    if said is None:
        raise errors.UserError(f"{folder} has no {CONFIG}; give a folder of peft")
    _check_settings(folder, said)
    if not (folder / WEIGHTS).is_file():
        raise errors.UserError(f"{folder} has no {WEIGHTS}; download it again")
    halves: dict[str, dict[str, np.ndarray]] = {}
    whole = {}
    for name, value in safetensors.read(folder / WEIGHTS).items():
        # A module that has a pair and was saved as well, as embeddings are.
        short = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", short)
        if found is None:
            whole[short] = value
        else:
            halves.setdefault(found[1], {})[found[3]] = value
    pairs = {}
    for module, pair in halves.items():
        ranks = {len(pair["A"]), pair["B"].shape[-1]} if len(pair) == 2 else ()
        if len(ranks) != 1 or any(half.ndim != 2 for half in pair.values()):
            raise errors.UserError(
                f"{folder / WEIGHTS}: {module} does not have an A and a B of one rank; "
                "download it again"
            )
        pairs[module] = pair["A"], pair["B"]
    return Adapter(folder, said, pairs, whole)


def merge(
    adapter: Adapter, config: TransformerConfig, params: types.Params
) -> types.Params:
    """The base with the adapter in its weights.

    Raises:
        UserError: the adapter is of another model.
    """
    leaves = hf_names.leaves(config)
    places = {
        name: (leaf, layer) for leaf in leaves for layer, name in enumerate(leaf.names)
    }
    flat = dict(tree.flatten(params))

    def change(name, made):
        leaf, layer = places[name]
        old = flat[leaf.path]
        value = made.T if leaf.is_transposed else made
        if not leaf.is_stacked:
            flat[leaf.path] = value.astype(old.dtype)
        else:
            flat[leaf.path] = old.at[layer].set(value.astype(old.dtype))

    def find(name, what):
        if name not in places:
            raise _of_another(adapter, f"that has no {what}")
        leaf, layer = places[name]
        old = flat[leaf.path][layer] if leaf.is_stacked else flat[leaf.path]
        return leaf.tensor_shape, old.T if leaf.is_transposed else old

    for name, value in adapter.whole.items():
        if value.shape != find(name, name)[0]:
            raise _of_another(adapter, f"{name} is {list(value.shape)} here")
        change(name, jnp.asarray(value, jnp.float32))
    for module, (a, b) in adapter.pairs.items():
        shape, old = find(f"{module}.weight", module)
        a, b = (jnp.asarray(half, jnp.float32) for half in (a, b))
        if (len(b), a.shape[1]) != shape:
            a, b = b.T, a.T  # of an embedding, peft has them the other way round
        if (len(b), a.shape[1]) != shape:
            raise _of_another(adapter, f"{module} is {len(b)} x {a.shape[1]} here")
        product = jnp.matmul(b, a, precision="highest")
        change(f"{module}.weight", old + adapter.scale(module) * product)
    return jax.tree.unflatten(jax.tree.structure(params), list(flat.values()))


def as_tree(
    adapter: Adapter, config: TransformerConfig
) -> tuple[lora_lib.LoraConfig, types.Params]:
    """What training goes on with: one rank, the same matrices in every layer.

    Raises:
        UserError: it is another kind, which `merge` may take.
    """
    scales = {round(adapter.scale(module), 9) for module in adapter.pairs}
    ranks = {len(a) for a, _ in adapter.pairs.values()}
    refusal = errors.UserError(
        f"{adapter.path} has other ranks, scales or matrices by layer, which are not "
        f"trained on; merge it into its base first: jaxlab convert {adapter.path} OUT"
    )
    if adapter.whole or len(scales) != 1 or len(ranks) != 1:
        raise refusal
    made, targets = {}, []
    for leaf in hf_names.leaves(config):
        modules = [name.removesuffix(".weight") for name in leaf.names]
        present = [module for module in modules if module in adapter.pairs]
        if present != modules:
            continue
        _, room, name, _ = leaf.path.split("/") if leaf.is_stacked else ("",) * 4
        if name not in lora_lib.MATRICES:
            continue
        targets.append(name)
        a, b = zip(*(adapter.pairs[module] for module in modules), strict=True)
        pair = {"a": _stack(a), "b": _stack(b)}
        if (pair["a"].shape[1], pair["b"].shape[2]) != leaf.shape[1:]:
            raise _of_another(adapter, f"{modules[0]} has other sizes")
        made.setdefault("blocks", {}).setdefault(room, {})[name] = pair
    if len(targets) * config.layers != len(adapter.pairs):
        raise refusal
    rank, said = ranks.pop(), adapter.said
    is_rs = bool(said.get("use_rslora"))
    alpha = scales.pop() * (rank**0.5 if is_rs else rank)
    targets = tuple(name for name in lora_lib.MATRICES if name in targets)
    dropout = said.get("lora_dropout", 0.0)
    return lora_lib.LoraConfig(rank, alpha, dropout, targets, is_rs), made


def save(
    path: str | os.PathLike,
    lora: lora_lib.LoraConfig,
    params: types.Params,
    base: str,
    *,
    files: str | os.PathLike | None = None,
) -> None:
    """Writes a folder that `read` and peft read.

    Args:
        path: the folder to make.
        lora: what the adapter is.
        params: its tree.
        base: the path of its base, as the folder is to say it.
        files: a folder whose files are copied along, such as a tokenizer's.
    """
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [_MODULES[name] for name in lora.targets],
        "use_rslora": lora.rank_stabilized,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    values = {}
    for room, matrices in params["blocks"].items():
        inner = {"attn": "self_attn"}.get(room, room)
        for name, pair in matrices.items():
            a, b = (np.asarray(pair[half], np.float32) for half in ("a", "b"))
            for layer in range(len(a)):
                stem = f"{_PREFIX}model.layers.{layer}.{inner}.{_MODULES[name]}"
                values[f"{stem}.lora_A.weight"] = a[layer].T
                values[f"{stem}.lora_B.weight"] = b[layer].T
    specs = {name: (value.shape, value.dtype) for name, value in values.items()}
    with folders.new_folder(path) as part:
        if files is not None:
            shutil.copytree(files, part, dirs_exist_ok=True)
        (part / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
        safetensors.write(part / WEIGHTS, specs, values.__getitem__)


def _check_settings(folder, said):
    try:
        value_types.check(said, _KINDS, file=CONFIG)
    except errors.UserError as error:
        raise errors.UserError(f"{folder}: {error}") from None
    if (kind := said.get("peft_type")) != "LORA":
        raise errors.UserError(
            f"{folder} is an adapter of the kind {kind!r}; only LORA is read"
        )
    if missing := [key for key in ("r", "lora_alpha") if key not in said]:
        raise errors.UserError(f"{folder / CONFIG} lacks {', '.join(missing)}")
    odd = [key for key in _OTHERS if said.get(key)]
    odd += ["bias"] * (said.get("bias", "none") != "none")
    if odd:
        raise errors.UserError(
            f"{folder / CONFIG}: {', '.join(odd)} is not computed here; merge the "
            "adapter into its base with peft's merge_and_unload"
        )
    patterns = said.get("alpha_pattern") or {}
    numbers = isinstance(patterns, Mapping) and all(
        isinstance(alpha, int | float) and alpha > 0 for alpha in patterns.values()
    )
    if not numbers or not all(_is_pattern(pattern) for pattern in patterns):
        raise errors.UserError(
            f"{folder / CONFIG}: alpha_pattern does not map modules to numbers; merge "
            "the adapter into its base with peft's merge_and_unload"
        )


def _is_pattern(pattern) -> bool:
    if not _PATTERN.fullmatch(pattern) or len(re.findall("[*+]", pattern)) > 3:
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _of_another(adapter, why):
    return errors.UserError(
        f"{adapter.path} is an adapter of another model than {adapter.base}: {why}"
    )


def _stack(halves):
    return np.stack([np.asarray(half, np.float32).T for half in halves])
