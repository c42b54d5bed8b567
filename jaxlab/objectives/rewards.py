"""The loss of reward models: which of two answers has the higher score.

    -log sigmoid(s_chosen - s_rejected - margin) + center (s_chosen + s_rejected)^2

Bradley and Terry 1952; margins: Llama 2 (arXiv:2307.09288), eq. 2; centring, which
keeps scores around 0, where the first term alone would leave them anywhere: Eisenstein
et al. 2023 (arXiv:2312.09244), eq. 3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import ranges, types


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, margin: Any = 0.0, center: Any = 0.0
) -> jax.Array:
    """f32[N]: losses of pairs of scores f32[N].

    >>> bradley_terry(jnp.array([1.0, 0.0]), jnp.array([1.0, 50.0])).tolist()
    [0.6931471824645996, 50.0]
    """
    loss = -jax.nn.log_sigmoid(chosen - rejected - margin)
    return loss if ranges.is_zero(center) else loss + center * (chosen + rejected) ** 2


def reward(
    apply: Callable, *, margin: float = 0.0, center: float = 0.0
) -> types.Objective:
    """Scores of chosen answers above those of rejected ones.

    Batches: `tokens` i32[B, 2, L] and `lengths` i32[B, 2], chosen before rejected, both
    in one pass; `margin` f32[B], if any, by which the chosen one should win; a pair
    with an empty side does not count.

    Args:
        apply: `Scorer(config).apply`.
        margin: of every pair, beside its own.
        center: weight of the squared sum of both scores (TRL: 0.01).

    Returns:
        An objective with the metrics `accuracy` (equal scores are wrong), `margin`,
        `chosen_reward` and `rejected_reward`.

    Raises:
        ValueError: a negative margin or weight.
    """
    ranges.check(
        "reward.",
        {"margin": margin, "center": center},
        {"margin": ranges.AT_LEAST_0, "center": ranges.AT_LEAST_0},
    )

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        scores, lengths = pair_scores(apply, params, batch), batch["lengths"]
        chosen, rejected = scores[:, 0], scores[:, 1]
        wanted = batch.get("margin", 0.0) + margin
        where = jnp.all(lengths > 0, axis=1)
        metrics = {
            "accuracy": chosen > rejected,
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        each = bradley_terry(chosen, rejected, wanted, center)
        total, metrics = jax.tree.map(
            lambda x: jnp.sum(jnp.where(where, x, 0.0)), (each, metrics)
        )
        return types.Loss(total, jnp.sum(where * 1.0), metrics)

    return objective


def pair_scores(apply: Callable, params: types.Params, batch: types.Batch) -> jax.Array:
    """f32[B, 2]: the scores of both answers of pairs; of an empty one 0."""
    tokens, lengths = batch["tokens"], batch["lengths"]
    rows = tokens.reshape(-1, tokens.shape[-1]), jnp.maximum(lengths.reshape(-1), 1)
    scores = apply({"params": params}, *rows).reshape(-1, 2)
    return jnp.where(lengths > 0, scores, 0.0)
