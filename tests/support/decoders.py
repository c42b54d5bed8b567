"""Small decoders of every family, random parameters and a batch of tokens."""

import dataclasses
import functools

import jax
import numpy as np
from flax import linen as nn

from jaxlab.models import (
    Decoder,
    Encoder,
    Scorer,
    TransformerConfig,
)
from jaxlab.models import rope as rope_lib

V, L = 64, 12
SIZES = {"vocab": V, "embed": 32, "layers": 2, "heads": 4, "mlp": 48, "length": L}
YARN = rope_lib.Rope(
    theta=100.0, scaling="yarn", factor=4.0, original_length=32, beta_fast=4.0
)

LLAMA3 = rope_lib.Rope(theta=100.0, scaling="llama3", factor=8.0, original_length=32)

# Weights larger than at initialisation, so that every option moves the logits.
LARGE = {"initializer_std": 0.25}
FAMILIES = {
    "olmo1": TransformerConfig(
        **SIZES, **LARGE, norm="layernorm", clip_qkv=0.8, tied=True
    ),
    "olmo2": TransformerConfig(
        **SIZES, **LARGE, norm_position="post", qk_norm=True, kv_heads=2
    ),
    "olmo3": TransformerConfig(
        **SIZES, **LARGE, norm_position="post", qk_norm=True, kv_heads=2, window=3,
        full_layers=(1,), rope=YARN, window_rope=rope_lib.Rope(theta=100.0),
    ),
    "llama31": TransformerConfig(**SIZES, **LARGE, kv_heads=2, rope=LLAMA3),
}  # fmt: skip

TOKENS = np.random.default_rng(0).integers(0, V, (2, L)).astype(np.int32)


@functools.cache
def random_params(config, model=Decoder):
    """Parameters that depend on the sizes alone, so that configs can be compared."""
    extra = {Decoder: (), Scorer: (np.array([L, L]),), Encoder: (TOKENS > 0,)}[model]
    boxed = model(config).init(jax.random.key(0), TOKENS, *extra)["params"]
    return nn.unbox(boxed)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, segment_ids=None, positions=None):
    return Decoder(config).apply({"params": params}, tokens, segment_ids, positions)


def params_of(config):
    return random_params(
        dataclasses.replace(config, dtype="float32", remat="none", scan=True)
    )
