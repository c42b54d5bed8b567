"""Next-token cross-entropy: the loss of pre-training and instruction tuning."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges, types


def next_token(
    apply: Callable, *, z_loss: float = 0.0, loss_denominator: str = "labels"
) -> types.Objective:
    """Cross-entropy of every token given those before it, in nats.

        total = sum_t m_t (-log p(x_t | x_<t) + z_loss * logsumexp(logits_t)^2)

    Args:
        apply: `Decoder(config).apply`.
        z_loss: weight of the squared log-partition (OLMo 2: 1e-5; OLMo 1: none;
            Chowdhery et al. 2022, arXiv:2204.02311, section 5).
        loss_denominator: "labels" divides by the tokens that count; "olmo" by all
            B L tokens, as OLMo's trainer reports it: (L - 1) / L of the true mean.

    Returns:
        An objective with the metric `cross_entropy` (without the z-loss) and, with a
        z-loss, `z_loss`.
    """
    if loss_denominator not in ("labels", "olmo"):
        raise errors.ArgumentError(
            f"loss_denominator {loss_denominator!r}; use labels or olmo"
        )

    ranges.check("", {"z_loss": z_loss}, {"z_loss": ranges.AT_LEAST_0})

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        logps, partition = apply(
            {"params": params},
            batch["tokens"],
            targets(batch["tokens"]),
            batch.get("segment_ids"),
            batch.get("positions"),
            method="token_logps",
        )
        mask = label_mask(batch)
        loss = next_token_loss(logps, partition, mask, z_loss)
        if loss_denominator == "olmo":
            loss = loss._replace(weight=jnp.asarray(mask.size, jnp.float32))
        return loss

    return objective


def next_token_loss(
    logps: jax.Array, partition: jax.Array, mask: jax.Array, z_loss: float
) -> types.Loss:
    """The loss of f32[B, L] log-probabilities, log-partitions and weights of labels."""
    import chex  # here: a tenth of a second at start-up

    chex.assert_equal_shape([logps, partition, mask])  # else they broadcast
    total = -jnp.sum(logps * mask)
    metrics = {"cross_entropy": total}
    if not ranges.is_zero(z_loss):
        metrics["z_loss"] = z_loss * jnp.sum(partition**2 * mask)
        total += metrics["z_loss"]
    return types.Loss(total, jnp.sum(mask), metrics)


def targets(tokens: jax.Array) -> jax.Array:
    """i32[B, L] -> the next token of every position; the last has none (0).

    >>> targets(jnp.array([[5, 6, 7]])).tolist()
    [[6, 7, 0]]
    """
    return jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))


def label_mask(batch: types.Batch) -> jax.Array:
    """f32[B, L]: 1 where the next token is a label.

    The last position has no next token; a token is not predicted from another
    document's, nor from or as padding (segment 0); `loss_mask` marks the labels.

    >>> label_mask({"tokens": jnp.zeros((1, 4)),
    ...             "segment_ids": jnp.array([[1, 1, 2, 2]])}).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    B, L = batch["tokens"].shape
    mask = jnp.ones((B, L - 1), jnp.float32)
    if "segment_ids" in batch:
        ids = batch["segment_ids"]
        mask *= (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != 0)
    if "loss_mask" in batch:
        mask *= batch["loss_mask"][:, 1:]
    return jnp.pad(mask, ((0, 0), (0, 1)))
