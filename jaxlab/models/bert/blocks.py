"""The parts of a BERT: embeddings, norm, attention, MLP, and the stack of blocks.

Letters and parameter tree: `models/bert/encoder.py`. Between parts activations are
flat, [T, D] with T = B L; only attention unfolds them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.core import errors, mesh
from jaxlab.models import attention
from jaxlab.models.bert.config import BertConfig


class Embed(nn.Module):
    """Word, position and token-type embeddings, summed and normed: [T, D]."""

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None,
        noise: jax.Array | None,
    ) -> jax.Array:
        c, (B, L) = self.config, tokens.shape
        words = _table(self, "embedding", c.vocab, "vocab")
        places = _table(self, "positions", c.length + c.first_position, "length")
        kinds = _table(self, "token_types", c.token_types, "features")
        x = jnp.take(words, tokens, axis=0)
        if noise is not None:
            x = jax.lax.stop_gradient(x) + noise
        if token_types is None:
            token_types = jnp.zeros((1, L), jnp.int32)
        x = x + jnp.take(kinds, token_types, axis=0)
        x = x + jnp.take(places, _positions(c, tokens), axis=0)
        x = LayerNorm(c, name="norm")(x.reshape(B * L, c.embed))
        return mesh.constrain(x.astype(c.dtype), "tokens", "activation")


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in f32, cast back."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, size = x.astype(jnp.float32), (x.shape[-1],)
        y = y - y.mean(axis=-1, keepdims=True)
        square = jnp.mean(y * y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(square + self.config.norm_epsilon)
        scale = self.param("scale", mesh.logical(nn.initializers.ones, "norm"), size)
        bias = self.param("bias", mesh.logical(nn.initializers.zeros, "norm"), size)
        return (y * scale[None] + bias[None]).astype(x.dtype)


class Dense(nn.Module):
    """x W + b; W: f32[inputs, outputs]."""

    inputs: int
    outputs: int
    axes: tuple[str, str]
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = mesh.logical(nn.initializers.truncated_normal(self.std), *self.axes)
        kernel = self.param("kernel", init, (self.inputs, self.outputs))
        # A bias of the model's width is whole everywhere, as the norms' scales are.
        axis = "norm" if self.axes[1] == "embed" else self.axes[1]
        init = mesh.logical(nn.initializers.zeros, axis)
        bias = self.param("bias", init, (self.outputs,))
        return jnp.dot(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)[None]


class Attention(nn.Module):
    """Projections, attention among the tokens of one segment, output."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
        c, (B, L) = self.config, segment_ids.shape
        q, k, v = (
            Dense(c.embed, c.embed, ("embed", axis), c.initializer_std, name=name)(x)
            for name, axis in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))
        )
        q, k, v = (y.reshape(B, L, c.heads, -1) for y in (q, k, v))
        y = attention.attend(
            q,
            k,
            v,
            implementation=c.implementation,
            is_causal=False,
            segment_ids=segment_ids,
        )
        out = Dense(c.embed, c.embed, ("heads", "embed"), c.initializer_std, name="o")
        return out(y.reshape(B * L, c.embed))


class Mlp(nn.Module):
    """gelu(x W_up + b_up) W_down + b_down, with the exact gelu."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        up = Dense(c.embed, c.mlp, ("embed", "mlp"), c.initializer_std, name="up")
        down = Dense(c.mlp, c.embed, ("mlp", "embed"), c.initializer_std, name="down")
        return down(nn.gelu(up(x), approximate=False))


class Block(nn.Module):
    """One layer, normed after each sum."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array):
        """[T, D], i32[B, L] -> ([T, D], None), as `nn.scan` wants."""
        c = self.config
        x = LayerNorm(c, name="attn_norm")(
            x + Attention(c, name="attn")(x, segment_ids)
        )
        x = LayerNorm(c, name="mlp_norm")(x + Mlp(c, name="mlp")(x))
        return mesh.constrain(x, "tokens", "activation"), None


def stack(config: BertConfig) -> nn.Module:
    """All blocks as one module whose parameters have a leading `layers` axis."""
    block = Block
    if config.remat != "none":
        policies = jax.checkpoint_policies
        policy = {
            "full": policies.nothing_saveable,
            "dots": policies.dots_with_no_batch_dims_saveable,
        }[config.remat]
        block = nn.remat(Block, policy=policy, prevent_cse=not config.scan)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=config.layers,
        unroll=1 if config.scan else config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)


def trunk(
    model: nn.Module,
    tokens: jax.Array,
    mask: jax.Array,
    token_types: jax.Array | None,
    noise: jax.Array | None,
) -> jax.Array:
    """Runs embed and blocks of `model`: i32[B, L] -> [B, L, D]."""
    c, (B, L) = model.config, tokens.shape
    if c.length < L:
        raise errors.UserError(
            f"rows of {L} tokens, but the encoder has {c.length} positions; cut texts "
            f"to {c.length}"
        )
    x = model.embed(tokens, token_types, noise)
    x, _ = model.blocks(x, mask.astype(jnp.int32))
    return x.reshape(B, L, c.embed)


def _table(module, name, rows, axis):
    c = module.config
    init = nn.initializers.truncated_normal(c.initializer_std)
    return module.param(name, mesh.logical(init, axis, "embed"), (rows, c.embed))


def _positions(config, tokens):
    """Rows of the position table, i32[B or 1, L].

    RoBERTa counts the tokens that are not padding and gives padding the row pad_id.
    """
    if config.family == "bert":
        return jnp.arange(tokens.shape[1])[None]
    real = (tokens != config.pad_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + config.pad_id
