"""One decoder for OLMo 1, 2, 3 and Llama 2, 3.1: a config chooses, not a subclass.

    pre-norm  (OLMo 1, Llama):  x += attn(norm(x));  x += mlp(norm(x))
    post-norm (OLMo 2, 3):      x += norm(attn(x));  x += norm(mlp(x))
    mlp(x) = (silu(x W_gate) * x W_up) W_down          Shazeer 2020, arXiv:2002.05202

Groeneveld et al. 2024 (arXiv:2402.00838, table 1); OLMo 2 (arXiv:2501.00656); Llama 2
(arXiv:2307.09288); Llama 3 (arXiv:2407.21783). Checked against transformers to 1e-4.

Letters: B batch, L length, D embed, F mlp, H heads, K kv heads, C head dim, V vocab,
N layers, T = B L tokens. Activations are [T, D] between attentions: XLA:CPU runs the
backward of a matmul twice as fast on flat tokens, and TPUs and GPUs do not mind.

Parameters are f32, blocks stacked (layers, ...):
    embed/embedding [V, D]            blocks/attn/{q,k,v,o}/kernel    final_norm/scale
    lm_head/kernel [D, V]             blocks/mlp/{gate,up,down}/kernel
    blocks/{attn_norm,mlp_norm}/scale blocks/attn/{q_norm,k_norm}/scale

Deviation: RMSNorm multiplies by its scale in f32 and casts once (Llama casts first).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.core import factored_logits as factored
from jaxlab.models import blocks
from jaxlab.models.config import TransformerConfig


class Decoder(nn.Module):
    """Tokens to next-token logits.

    >>> config = TransformerConfig(vocab=96, embed=32, layers=2, heads=2, mlp=64)
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> params = Decoder(config).init(jax.random.key(0), tokens)["params"]
    >>> Decoder(config).apply({"params": nn.unbox(params)}, tokens).shape
    (1, 8, 96)
    """

    config: TransformerConfig

    def setup(self):
        self.embed = blocks.Embed(self.config)
        self.blocks = blocks.stack(self.config)
        self.final_norm = blocks.Norm(self.config)
        if not self.config.tied:
            self.lm_head = blocks.Kernel(
                self.config.embed,
                self.config.vocab,
                ("embed", "vocab"),
                blocks.base_std(self.config),
            )

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every position.

        Args:
            tokens: i32[B, L].
            segment_ids: i32[B, L]; attention stays inside equal ids. None = one.
            positions: i32[B, L]; None = 0 .. L-1.

        Returns:
            f32[B, L, V].
        """
        return self.factored(tokens, segment_ids, positions).dense()

    def factored(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> factored.Factored:
        """Logits of every position, not multiplied out.

        Args:
            tokens, segment_ids, positions: as in `__call__`.
            noise: f32[B, L, D], added to the token embeddings, which are constants
                then; None for none.
        """
        hidden = blocks.trunk(self, tokens, segment_ids, positions, noise=noise)[0]
        return factored.Factored(hidden, self.head(), self.config.loss_block_bytes)

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """[B, L, D] after the final norm."""
        return blocks.trunk(self, tokens, segment_ids, positions)[0]

    def head(self) -> jax.Array:
        """f32[D, V]: what reads logits from hidden states."""
        return self.embed.embedding.T if self.config.tied else self.lm_head()

    def token_logps(
        self,
        tokens: jax.Array,
        targets: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of one target a position, without keeping all logits.

        Args:
            tokens, segment_ids, positions: as in `__call__`.
            targets: i32[B, L].

        Returns:
            (log p(target), logsumexp of the logits), each f32[B, L].
        """
        logits = self.factored(tokens, segment_ids, positions)
        return factored.target_logps(logits, targets)

    def extend(
        self, tokens: jax.Array, cache: dict[str, jax.Array], valid: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Appends tokens to a key-value cache and returns the last position's logits.

        Args:
            tokens: i32[B, L], written at slots length .. length + L of the cache.
            cache: of `empty_cache`.
            valid: bool[B, L]; False marks left padding, which nobody sees.

        Returns:
            (logits f32[B, V] after the last token, the longer cache).
        """
        B, L = tokens.shape
        start = cache["length"]
        valid = jax.lax.dynamic_update_slice(cache["valid"], valid, (0, start))
        slots = jnp.cumsum(valid, axis=1) - 1
        positions = jnp.maximum(jax.lax.dynamic_slice(slots, (0, start), (B, L)), 0)
        hidden, layers = blocks.trunk(
            self, tokens, None, positions, {**cache, "valid": valid}
        )
        cache = {**layers, "valid": valid, "length": start + L}
        return factored.Factored(hidden[:, -1], self.head()).dense(), cache


class Scorer(nn.Module):
    """Tokens to one number per row, read at the last real token: reward models."""

    config: TransformerConfig

    def setup(self):
        self.embed = blocks.Embed(self.config)
        self.blocks = blocks.stack(self.config)
        self.final_norm = blocks.Norm(self.config)
        self.score = blocks.Kernel(
            self.config.embed, 1, ("embed", "features"), blocks.base_std(self.config)
        )

    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """tokens: i32[B, L], lengths: i32[B] real tokens per row -> f32[B]."""
        hidden, _ = blocks.trunk(self, tokens, None, None)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return jnp.dot(last.astype(jnp.float32), self.score())[:, 0]


class Encoder(nn.Module):
    """Tokens to one vector per row, the mean of the real tokens' hidden states.

    Uses the decoder's blocks with `is_causal=False`.
    """

    config: TransformerConfig

    def setup(self):
        self.embed = blocks.Embed(self.config)
        self.blocks = blocks.stack(self.config)
        self.final_norm = blocks.Norm(self.config)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens: i32[B, L], mask: bool[B, L] of real tokens -> f32[B, D]."""
        hidden, _ = blocks.trunk(self, tokens, mask.astype(jnp.int32), None)
        return _pool(hidden, mask)


class Classifier(nn.Module):
    """Tokens to the logits of classes, read from the mean of the real tokens.

    The trunk is the decoder's, parameter by parameter, causal or not as the config
    says: a pre-trained decoder's `embed`, `blocks` and `final_norm` can start it.
    """

    config: TransformerConfig
    classes: int

    def setup(self):
        self.embed = blocks.Embed(self.config)
        self.blocks = blocks.stack(self.config)
        self.final_norm = blocks.Norm(self.config)
        self.classify = blocks.Kernel(
            self.config.embed,
            self.classes,
            ("embed", "features"),
            blocks.base_std(self.config),
        )

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens: i32[B, L], mask: bool[B, L] of real tokens -> f32[B, classes]."""
        return self.factored(tokens, mask).dense()

    def factored(
        self, tokens: jax.Array, mask: jax.Array, noise: jax.Array | None = None
    ) -> factored.Factored:
        """Logits [B, classes], not multiplied out; `noise` as for the decoder's."""
        hidden, _ = blocks.trunk(
            self, tokens, mask.astype(jnp.int32), None, noise=noise
        )
        return factored.Factored(_pool(hidden, mask), self.head())

    def head(self) -> jax.Array:
        """f32[D, classes]."""
        return self.classify()


def empty_cache(config: TransformerConfig, batch: int, slots: int) -> dict[str, Any]:
    """A key-value cache for `batch` rows of at most `slots` tokens."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    return {
        "k": jnp.zeros(shape, config.dtype),
        "v": jnp.zeros(shape, config.dtype),
        "valid": jnp.zeros((batch, slots), bool),
        "length": jnp.zeros((), jnp.int32),
    }


def _pool(hidden, mask):
    weight = mask.astype(jnp.float32)[..., None]
    total = jnp.maximum(weight.sum(axis=1), 1.0)
    return (hidden.astype(jnp.float32) * weight).sum(axis=1) / total
