"""The parts of a decoder: embedding, norm, attention, MLP, and the stack of blocks.

Letters and parameter tree: `models/transformer.py`. Between parts activations are flat,
[T, D] with T = B L; only attention unfolds them. Matrices that tensor shards split see
all tokens of a data shard; before and after, those are split too (`mesh.shard_tokens`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from jaxlab.core import mesh
from jaxlab.models import attention, lora, nf4
from jaxlab.models import rope as rope_lib
from jaxlab.models.config import TransformerConfig


class Embed(nn.Module):
    """The token embedding, f32[V, D]."""

    config: TransformerConfig

    def setup(self):
        shape = (self.config.vocab, self.config.embed)
        init = mesh.logical(_truncated_normal(base_std(self.config)), "vocab", "embed")
        self.embedding = self.param("embedding", init, shape)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """i32[B, L] -> [T, D] in the compute dtype."""
        rows = mesh.embed_lookup(self.embedding, tokens.reshape(-1), self.config.dtype)
        return mesh.shard_tokens(rows)


class Kernel(nn.Module):
    """One weight matrix, f32[inputs, outputs]; calling it returns the matrix.

    One that is packed in the collection "nf4" is unpacked where it is used.
    """

    inputs: int
    outputs: int
    axes: tuple[str, str]
    std: float | jax.Array

    @nn.compact
    def __call__(self) -> jax.Array:
        if self.has_variable("nf4", "kernel"):
            return nf4.unpack(self.get_variable("nf4", "kernel"))
        init = mesh.logical(_truncated_normal(self.std), *self.axes)
        return self.param("kernel", init, (self.inputs, self.outputs))


class Norm(nn.Module):
    """LayerNorm without weight or bias, or RMSNorm; in f32, cast back at the end."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.config.norm == "layernorm":
            y = y - y.mean(axis=-1, keepdims=True)
        square = jnp.mean(y * y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(square + self.config.norm_epsilon)
        if self.config.norm == "rmsnorm":
            init = mesh.logical(nn.initializers.ones, "norm")
            y = y * self.param("scale", init, (x.shape[-1],))[None]
        return y.astype(x.dtype)


class Attention(nn.Module):
    """Projections, q/k norm, clipping, rotary positions, attention, output."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, layer: dict[str, Any], shared: dict[str, Any]):
        c = self.config
        D, H, K, C = c.embed, c.heads, c.kv_heads, c.head_dim
        std = base_std(c)
        q, k, v = _project(
            c,
            x,
            Kernel(D, H * C, ("embed", "heads"), std, name="q"),
            Kernel(D, K * C, ("embed", "kv_heads"), std, name="k"),
            Kernel(D, K * C, ("embed", "kv_heads"), std, name="v"),
        )
        # As they leave the products: clips and norms need that in the backward pass.
        q, k, v = (checkpoint_name(y, "qkvo") for y in (q, k, v))
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(y, -c.clip_qkv, c.clip_qkv) for y in (q, k, v))
        if c.qk_norm:
            q, k = Norm(c, name="q_norm")(q), Norm(c, name="k_norm")(k)
        cos, sin = _tables(layer, shared)
        L = cos.shape[1]
        q, k, v = (y.reshape(-1, L, heads, C) for y, heads in ((q, H), (k, K), (v, K)))
        q, k = rope_lib.rotate(q, cos, sin), rope_lib.rotate(k, cos, sin)
        if layer["cache"] is None:
            cache = None
            y = attention.attend(
                q,
                k,
                v,
                implementation=c.resolve().attention,
                is_causal=c.is_causal,
                window=layer["window"],
                windows=_windows(c, L),
                segment_ids=shared["segment_ids"],
            )
        else:
            y, cache = self._with_cache(q, k, v, layer, shared)
        out = Kernel(H * C, D, ("heads", "embed"), self._out_std(layer), name="o")
        y = mesh.constrain(y.reshape(-1, H * C), "tokens", "heads")
        y = _multiply(y, out)
        return checkpoint_name(mesh.shard_tokens(y), "qkvo"), cache

    def _with_cache(self, q, k, v, layer, shared):
        start, L = shared["start"], q.shape[1]
        k, v = (
            jax.lax.dynamic_update_slice(cached, new, (0, start, 0, 0))
            for cached, new in ((layer["cache"]["k"], k), (layer["cache"]["v"], v))
        )
        query = start + jnp.arange(L)[:, None]
        key = jnp.arange(k.shape[1])[None, :]
        visible = key <= query
        if layer["window"] is not None:
            visible &= query - key < layer["window"]
        visible = visible[None] & shared["valid"][:, None, :]
        return attention.attend_cache(q, k, v, visible), {"k": k, "v": v}

    def _out_std(self, layer):
        if self.config.initializer == "mitchell":
            return (2 * self.config.embed * (layer["index"] + 1)) ** -0.5
        return self.config.initializer_std


class Mlp(nn.Module):
    """SwiGLU: (silu(x W_gate) * x W_up) W_down."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, layer: dict[str, Any]) -> jax.Array:
        c = self.config
        D, F = c.embed, c.mlp
        std = base_std(c)
        gate, up = _project(
            c,
            x,
            Kernel(D, F, ("embed", "mlp"), std, name="gate"),
            Kernel(D, F, ("embed", "mlp"), std, name="up"),
        )
        if c.initializer == "mitchell":
            std = (2 * F * (layer["index"] + 1)) ** -0.5
        down = Kernel(F, D, ("mlp", "embed"), std, name="down")
        return mesh.shard_tokens(_multiply(nn.silu(gate) * up, down))


class Block(nn.Module):
    """One layer: attention and MLP, normed before or after."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, layer: dict[str, Any], shared: dict[str, Any]):
        """x: [T, D]; layer: what differs by layer; shared: what does not.

        Returns:
            ([T, D], this layer's updated cache or None), as `nn.scan` wants.
        """
        attn, attn_norm = (
            Attention(self.config, name="attn"),
            Norm(self.config, name="attn_norm"),
        )
        mlp, mlp_norm = Mlp(self.config, name="mlp"), Norm(self.config, name="mlp_norm")
        if self.config.norm_position == "pre":
            y, cache = attn(_whole(attn_norm(x)), layer, shared)
            x = x + y
            x = x + mlp(_whole(mlp_norm(x)), layer)
        else:
            y, cache = attn(_whole(x), layer, shared)
            x = x + attn_norm(y)
            x = x + mlp_norm(mlp(_whole(x), layer))
        return mesh.shard_tokens(x), cache


def stack(config: TransformerConfig) -> nn.Module:
    """All blocks as one module whose parameters have a leading `layers` axis."""
    block = Block
    if config.remat != "none":
        policies = jax.checkpoint_policies
        policy = {
            "full": policies.nothing_saveable,
            "dots": policies.dots_with_no_batch_dims_saveable,
            "qkvo": policies.save_only_these_names("qkvo"),
        }[config.remat]
        # Inside a scan CSE cannot undo the recomputation; unrolled it would.
        block = nn.remat(Block, policy=policy, prevent_cse=not config.scan)
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0, "nf4": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=config.layers,
        unroll=1 if config.scan else config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)


def trunk(
    model: nn.Module,
    tokens: jax.Array,
    segment_ids: jax.Array | None,
    positions: jax.Array | None,
    cache: dict[str, jax.Array] | None = None,
    noise: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Runs embed, blocks and final norm of `model`: i32[B, L] -> [B, L, D].

    With a `cache` the tokens are appended to it and see what it holds. `noise`, f32[B,
    L, D], is added to the embeddings, which no gradient reaches then (R3F's form).
    """
    config = model.config
    B, L = tokens.shape
    if positions is None:
        positions = jnp.arange(L)[None]
    shared = {
        "tables": config.rope.tables(positions, config.head_dim),
        "segment_ids": segment_ids,
        "valid": None if cache is None else cache["valid"],
        "start": None if cache is None else cache["length"],
    }
    layer = {"index": jnp.arange(config.layers), "window": None, "cache": None}
    if config.window is not None:
        slots = L if cache is None else cache["k"].shape[2]
        shared["window_tables"] = config.window_rope.tables(positions, config.head_dim)
        layer["is_full"] = jnp.isin(
            jnp.arange(config.layers), jnp.asarray(config.full_layers, jnp.int32)
        )
        layer["window"] = jnp.where(layer["is_full"], slots + 1, config.window)
    if cache is not None:
        layer["cache"] = {"k": cache["k"], "v": cache["v"]}
    x = model.embed(tokens)
    if noise is not None:
        x = jax.lax.stop_gradient(x) + noise.reshape(x.shape).astype(x.dtype)
    x, layers = model.blocks(x, layer, shared)
    return _whole(model.final_norm(x)).reshape(B, L, config.embed), layers


def _whole(x):
    """All tokens of a data shard, for a matrix that tensor shards split."""
    return mesh.constrain(x, "tokens", "activation")


def base_std(config: TransformerConfig) -> float:
    """Standard deviation of every matrix that does not write to the residual."""
    if config.initializer == "mitchell":
        return config.embed**-0.5
    return config.initializer_std


def _truncated_normal(std):
    """Normal cut at 3 std; std is that of the uncut normal, as OLMo defines it."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype) * std

    return init


def _multiply(x, kernel):
    """x @ kernel, and what its adapter adds."""
    matrix = mesh.gather_fsdp(kernel().astype(x.dtype), *kernel.axes)
    return lora.add(jnp.dot(x, matrix), x, kernel)


def _project(config, x, *kernels):
    """x @ each kernel, as one matmul when the config says so; its adapter's as well.

    The axis is pinned: the partitioner would rather compute it whole on every shard.
    """
    matrices = [kernel() for kernel in kernels]
    if config.resolve().fuse_projections:
        sizes = [matrix.shape[1] for matrix in matrices]
        fused = jnp.dot(x, jnp.concatenate(matrices, axis=1).astype(x.dtype))
        cuts = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = jnp.split(fused, cuts, axis=1)
    else:
        parts = [
            jnp.dot(x, mesh.gather_fsdp(matrix.astype(x.dtype), *kernel.axes))
            for matrix, kernel in zip(matrices, kernels, strict=True)
        ]
    return [
        mesh.constrain(lora.add(part, x, kernel), "tokens", kernel.axes[1])
        for part, kernel in zip(parts, kernels, strict=True)
    ]


def _windows(config, length):
    """The window sizes that `layer["window"]` takes, static for kernels."""
    return () if config.window is None else (config.window, length + 1)


def _tables(layer, shared):
    if layer["window"] is None:
        return shared["tables"]
    return jax.tree.map(
        lambda full, near: jnp.where(layer["is_full"], full, near),
        shared["tables"],
        shared["window_tables"],
    )
