"""Which tensors of a Hugging Face file make up which leaf of our tree.

embed/embedding             model.embed_tokens.weight
blocks/attn/{q,k,v,o}       model.layers.i.self_attn.{q,k,v,o}_proj.weight
blocks/attn/{q,k}_norm      model.layers.i.self_attn.{q,k}_norm.weight
blocks/mlp/{gate,up,down}   model.layers.i.mlp.{gate,up,down}_proj.weight
blocks/attn_norm            model.layers.i.input_layernorm.weight (pre-norm)
                            model.layers.i.post_attention_layernorm.weight (post)
blocks/mlp_norm             model.layers.i.post_attention_layernorm.weight (pre)
                            model.layers.i.post_feedforward_layernorm.weight (post)
final_norm                  model.norm.weight
lm_head                     lm_head.weight
score                       score.weight, of a reward model, which has no lm_head
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import tree
from jaxlab.models import transformer
from jaxlab.models.config import TransformerConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_BLOCK_NAMES = {
    "attn/q/kernel": "self_attn.q_proj",
    "attn/k/kernel": "self_attn.k_proj",
    "attn/v/kernel": "self_attn.v_proj",
    "attn/o/kernel": "self_attn.o_proj",
    "attn/q_norm/scale": "self_attn.q_norm",
    "attn/k_norm/scale": "self_attn.k_norm",
    "mlp/gate/kernel": "mlp.gate_proj",
    "mlp/up/kernel": "mlp.up_proj",
    "mlp/down/kernel": "mlp.down_proj",
}
_NORM_NAMES = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
_OUTER_NAMES = {
    "embed/embedding": EMBEDDING,
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": HEAD,
    "score/kernel": "score.weight",
}


class Leaf(NamedTuple):
    """A leaf of our tree and the file's tensors it is made of."""

    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]  # one per layer, or a single one
    is_stacked: bool
    is_transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each tensor, as the file has it."""
        shape = self.shape[1:] if self.is_stacked else self.shape
        return shape[::-1] if self.is_transposed else shape


def has_tied_head(config: Any) -> bool:
    """Whether a config, of an encoder perhaps, reads tokens by its embedding."""
    is_ours = isinstance(config, TransformerConfig) and config.head == "tokens"
    return is_ours and config.tied


@functools.lru_cache(maxsize=8)
def abstract(config: TransformerConfig) -> Any:
    """Boxed shapes of the parameters of `Decoder(config)`, or of `Scorer(config)`."""
    plain = dataclasses.replace(config, attention="xla", remat="none", scan=True)
    rows = [jax.ShapeDtypeStruct((1, 1), jnp.int32)]
    model = transformer.Decoder(plain)
    if config.head == "score":
        model, rows = transformer.Scorer(plain), [*rows, jnp.ones(1, jnp.int32)]
    return jax.eval_shape(model.init, jax.random.key(0), *rows)["params"]


def leaves(config: TransformerConfig) -> list[Leaf]:
    """Every leaf of the model, in the order of `jax.tree.leaves`."""
    attn_norm, mlp_norm = _NORM_NAMES[config.norm_position]
    inner = _BLOCK_NAMES | {"attn_norm/scale": attn_norm, "mlp_norm/scale": mlp_norm}
    described = []
    for path, shape in tree.flatten(mesh_lib.unbox(abstract(config))).items():
        room, _, name = path.partition("/")
        if room == "blocks":
            stem = inner[name]
            names = [f"model.layers.{i}.{stem}.weight" for i in range(config.layers)]
        else:
            names = [_OUTER_NAMES[path]]
        is_stacked, is_matrix = room == "blocks", path.endswith("/kernel")
        described.append(Leaf(path, shape.shape, tuple(names), is_stacked, is_matrix))
    return described
