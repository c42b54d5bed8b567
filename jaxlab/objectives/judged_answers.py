r"""Losses of single answers that are good or bad: KTO, and APO's variant of it.

With the log-ratio x = log p - log q of an answer and s = sigmoid:

    kto                1 - s(b (x - KL)) of a good answer, 1 - s(b (KL - x)) of a bad
                       one
    apo_zero_unpaired  1 - s(b x) of a good answer, s(b x) of a bad one

    KL = max(0, mean of log p - log q over the batch's prompts, each with another one's
         answer), a constant for the gradient

Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7 and 8; D'Oosterlinck et al. 2024
(arXiv:2408.06266).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges, step, types
from jaxlab.objectives import language, preferences

LOSSES = ("kto", "apo_zero_unpaired")


def kto(
    apply: Callable,
    loss: str = "kto",
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    chunks: int = 1,
    rows: int = 0,
) -> types.Objective:
    """How much more a policy likes good answers than its reference does, bad ones less.

    Batches: `tokens` i32[B, 2, L], `loss_mask` f32[B, 2, L]: a prompt with its own
    answer, then with another prompt's; `is_desirable` bool[B]. An answer without
    labels does not count. The reference is `reference_logps` f32[B, 2], or `frozen`.

    Args:
        apply: `Decoder(config).apply`.
        loss: kto or apo_zero_unpaired, which needs no second answer.
        beta: how closely the policy is held to the reference.
        desirable_weight, undesirable_weight: of good and of bad answers; the paper
            sets them so that both kinds weigh about the same.
        chunks: parts of a batch that are computed one by one, and again for the exact
            gradient: kto's KL is of the whole batch.
        rows: B, where kto is to refuse any other size.

    Returns:
        An objective with the metrics `accuracy` (good answers whose ratio is above the
        KL, bad ones below), `kl`, `good_reward` and `bad_reward` (sums by the number of
        all answers) and `logps`.

    Raises:
        ValueError: an unknown loss, or a number out of its range.
    """
    if loss not in LOSSES:
        raise errors.ArgumentError(f"loss {loss!r}; use {' or '.join(LOSSES)}")
    ranges.check(
        "preference.",
        {
            "beta": beta,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
            "chunks": chunks,
        },
        {
            "beta": ranges.ABOVE_0,
            "desirable_weight": ranges.AT_LEAST_0,
            "undesirable_weight": ranges.AT_LEAST_0,
            "chunks": ranges.AT_LEAST_1,
        },
    )
    has_kl = loss == "kto"

    def ask(params, batch, side):
        own = {name: batch[name][:, side] for name in ("tokens", "loss_mask")}
        part = lambda x: single_logps(apply, params, x)  # noqa: E731
        if chunks == 1:
            return part(own)
        return step.map_parts(jax.checkpoint(part), own, chunks)

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key
        if has_kl:
            preferences.check_whole(loss, rows, len(batch["tokens"]))

        def ratio(side, params):
            logps, sizes = ask(params, batch, side)
            if "reference_logps" in batch:
                return logps - batch["reference_logps"][:, side], logps, sizes
            reference = jax.lax.stop_gradient(ask(frozen, batch, side)[0])
            return logps - reference, logps, sizes

        ratios, logps, sizes = ratio(0, params)
        where, kl = sizes > 0, jnp.zeros(())
        if has_kl:
            others, _, counts = ratio(1, jax.lax.stop_gradient(params))
            counts = (counts > 0) & where
            total = jnp.sum(jnp.where(counts, others, 0.0))
            kl = jnp.maximum(total / jnp.maximum(jnp.sum(counts), 1), 0.0)
            kl = jax.lax.stop_gradient(kl)
        is_good, away = batch["is_desirable"].astype(bool), ratios - kl
        scaled = beta * jnp.where(is_good, away, -away)
        weights = jnp.where(is_good, desirable_weight, undesirable_weight)
        metrics = {
            "accuracy": (away > 0) == is_good,
            "kl": jnp.broadcast_to(kl, ratios.shape),
            "good_reward": jnp.where(is_good, beta * ratios, 0.0),
            "bad_reward": jnp.where(is_good, 0.0, beta * ratios),
            "logps": logps,
        }
        each = weights * (1 - jax.nn.sigmoid(scaled))
        total, metrics = jax.tree.map(
            lambda x: jnp.sum(jnp.where(where, x, 0.0)), (each, metrics)
        )
        return types.Loss(total, jnp.sum(where * 1.0), metrics)

    return objective


def single_logps(
    apply: Callable, params: types.Params, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of answers `tokens`, `loss_mask` [B, L], and their labels."""
    tokens, mask = batch["tokens"], language.label_mask(batch)
    logps, _ = apply(
        {"params": params}, tokens, language.targets(tokens), method="token_logps"
    )
    return jnp.sum(logps * mask, axis=1), jnp.sum(mask, axis=1)
