"""Which tensors of a published BERT or RoBERTa make up which leaf of our tree.

embed/embedding                 embeddings.word_embeddings.weight
embed/{positions,token_types}   embeddings.{position,token_type}_embeddings.weight
embed/norm                      embeddings.LayerNorm
blocks/attn/{q,k,v}             encoder.layer.i.attention.self.{query,key,value}
blocks/attn/o, attn_norm        encoder.layer.i.attention.output.{dense,LayerNorm}
blocks/mlp/up                   encoder.layer.i.intermediate.dense
blocks/mlp/down, mlp_norm       encoder.layer.i.output.{dense,LayerNorm}
pooler                          pooler.dense; RoBERTa's scorers: classifier.dense
score                           classifier; RoBERTa: classifier.out_proj

where a kernel and a scale are `.weight`, a bias `.bias`. Scorers have `bert.` or
`roberta.` before all but the classifier.

Files in use have more: the prefix without a scorer, LayerNorm's `gamma` and `beta`, the
heads of pre-training (`cls.`, `lm_head.`), which an encoder leaves out and logs.
"""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import errors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.models.bert import encoder
from jaxlab.models.bert.config import BertConfig
from jaxlab.models.hf.names import Leaf

_BLOCK_NAMES = {
    "attn/q": "attention.self.query",
    "attn/k": "attention.self.key",
    "attn/v": "attention.self.value",
    "attn/o": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_OUTER_NAMES = {
    "embed/embedding": "embeddings.word_embeddings.weight",
    "embed/positions": "embeddings.position_embeddings.weight",
    "embed/token_types": "embeddings.token_type_embeddings.weight",
    "embed/norm/scale": "embeddings.LayerNorm.weight",
    "embed/norm/bias": "embeddings.LayerNorm.bias",
    "pooler/kernel": "pooler.dense.weight",
    "pooler/bias": "pooler.dense.bias",
}
_SCORE_NAMES = {
    "bert": {"score": "classifier"},
    "roberta": {"pooler": "classifier.dense", "score": "classifier.out_proj"},
}
_ENDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_PREFIX = re.compile(r"^(bert|roberta)\.")
_PRETRAINING = re.compile(r"^(cls|lm_head)\.")

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=8)
def abstract(config: BertConfig) -> Any:
    """Boxed shapes of the parameters of `BertEncoder` or `BertScorer`."""
    plain = dataclasses.replace(config, attention="xla", remat="none", scan=True)
    model = encoder.BertEncoder(plain)
    method = model.__call__
    if config.head == "score":
        model = encoder.BertScorer(plain)
        method = model.logits
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), bool)
    init = functools.partial(model.init, method=method)
    return jax.eval_shape(init, jax.random.key(0), tokens, mask)["params"]


def leaves(config: BertConfig) -> list[Leaf]:
    """Every leaf of the parameters, in the order of `jax.tree.leaves`."""
    described = []
    for path, shape in tree.flatten(mesh_lib.unbox(abstract(config))).items():
        is_stacked = path.startswith("blocks/")
        names = _names(config, path)
        is_matrix = path.endswith("/kernel")
        described.append(Leaf(path, shape.shape, names, is_stacked, is_matrix))
    return described


def with_head(config: BertConfig, names: Iterable[str]) -> BertConfig:
    """The config with the pooler that the file turns out to have, or not."""
    if config.head == "score":
        return config
    has_pooler = any(_PREFIX.sub("", name).startswith("pooler.") for name in names)
    return dataclasses.replace(config, head="pooler" if has_pooler else "none")


def as_saved(
    path: str | os.PathLike, config: BertConfig, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The file's tensors under the names that `leaves` speaks of.

    Raises:
        UserError: a tensor is there under two names.
    """
    prefix = _prefix(config)
    renamed, left_out = {}, []
    for name, tensor in tensors.items():
        if config.head != "score" and _PRETRAINING.match(name):
            left_out.append(name)
            continue
        new = _PREFIX.sub("", name)
        for old, end in _OLD_ENDS.items():
            new = new.replace(old, end)
        if not new.startswith("classifier."):
            new = prefix + new
        if new in renamed:
            raise errors.UserError(f"{path} has {new} under two names; remove one")
        renamed[new] = tensor
    if left_out:
        _log.info("%s: left out, heads of pre-training: %s", path, ", ".join(left_out))
    return renamed


def _names(config, path):
    """One name a layer, or a single one."""
    if path.startswith("blocks/"):
        stem, _, end = path.removeprefix("blocks/").rpartition("/")
        start, name = f"{_prefix(config)}encoder.layer", _BLOCK_NAMES[stem]
        return tuple(f"{start}.{i}.{name}.{_ENDS[end]}" for i in range(config.layers))
    if config.head == "score":
        stem, _, end = path.rpartition("/")
        own = _SCORE_NAMES["bert" if config.family == "bert" else "roberta"]
        if stem in own:
            return (f"{own[stem]}.{_ENDS[end]}",)
    return (_prefix(config) + _OUTER_NAMES[path],)


def _prefix(config):
    if config.head != "score":
        return ""
    return "bert." if config.family == "bert" else "roberta."
