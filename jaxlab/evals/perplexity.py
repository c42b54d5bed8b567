"""Perplexity: how well a model predicts held-out text, in total and by document.

loss = sum of -log p(token) / number of tokens          nats per token
perplexity = exp(loss)
bits_per_byte = sum of -log p(token) / (ln 2 * UTF-8 bytes)     comparable between
                                                        tokenizers (Paloma)
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import objectives
from jaxlab.core import errors, mesh, types


@functools.cache
def scorer(apply: Callable) -> Callable[[types.Params, types.Batch], Any]:
    """The jitted (params, batch) -> (nats f32[B], labels f32[B]) of each row."""

    @jax.jit
    def score(params, batch):
        return jax.tree.map(mesh.replicate, row_losses(apply, params, batch))

    return score


def row_losses(
    apply: Callable, params: types.Params, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
    """Summed loss in nats and number of labels of each row, f32[B] both."""
    logps, mask = token_logps(apply, params, batch)
    return -jnp.sum(logps * mask, axis=1), jnp.sum(mask, axis=1)


def token_logps(
    apply: Callable, params: types.Params, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of the label at each position and its weight, f32[B, L] both."""
    logps, _ = apply(
        {"params": params},
        batch["tokens"],
        objectives.targets(batch["tokens"]),
        batch.get("segment_ids"),
        batch.get("positions"),
        method="token_logps",
    )
    return logps, objectives.label_mask(batch)


def evaluate(
    apply: Callable, params: types.Params, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """loss, perplexity, tokens and, where the bytes are known, bits_per_byte.

    Args:
        apply: `Decoder(config).apply`.
        params: the decoder's.
        batches: of `data.loader.eval_batches`, all of one shape.

    Raises:
        UserError: there is nothing to score.
    """
    score = scorer(apply)
    nats = tokens = text_bytes = 0.0
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k not in ("document", "text_bytes")}
        row_nats, row_tokens = score(params, inputs)
        # Rows are summed in f64: a corpus has more tokens than f32 can count.
        nats += np.asarray(row_nats, np.float64).sum()
        tokens += np.asarray(row_tokens, np.float64).sum()
        text_bytes += float(batch["text_bytes"].sum()) if "text_bytes" in batch else 0.0
    if not tokens:
        raise errors.UserError("nothing to evaluate: the held-out text has no tokens")
    loss = nats / tokens
    result = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
    if text_bytes:
        result["bits_per_byte"] = nats / (math.log(2) * text_bytes)
    return result
