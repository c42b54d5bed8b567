"""Regularised losses: TRPO, MESA, R3F, R4F; noise on the input embeddings."""

import jax
import jax.numpy as jnp

from jaxlab.core import errors, factored_logits, types
from jaxlab.objectives.tasks import Task


def near_anchor(task: Task, weight: float = 0.1) -> types.Objective:
    """The loss, and a penalty for answers unlike those of `frozen`, the anchor.

        L(theta) + weight * mean KL(p(x; anchor) || p(x; theta))

    With the parameters of the step before it is TRPO's penalty (Schulman et al. 2015,
    arXiv:1502.05477), with their moving average MESA's (Du et al. 2022,
    arXiv:2205.14083), both as TRAM compares with them (arXiv:2310.03646, appendix B).
    One forward pass more than the loss.
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key
        answer = task.answer(params, batch)
        before = jax.lax.stop_gradient(task.answer(frozen, batch))
        rows = factored_logits.kl_rows(before, answer)
        return _with_penalty(task, answer, batch, rows, weight)

    return objective


def r3f(
    task: Task,
    weight: float = 0.1,
    *,
    sigma: float = 0.1,
    noise: str = "normal",
) -> types.Objective:
    """The loss, and a penalty for answers that noise on the input changes.

        L(theta) + weight * mean KL(p(x) || p(x + z)) + KL(p(x + z) || p(x))

    Aghajanyan et al. 2020 (arXiv:2008.03156), equation 4: noise on the embeddings,
    which are constants in the noisy pass; gradients flow through both passes. With
    `normalize_spectrally` it is R4F. Twice the forward and backward passes.

    Args:
        task: what is learned.
        weight: of the penalty (R3F's code 1, TRAM's tables 0.1).
        sigma: of the noise: standard deviation, or half the width if uniform.
        noise: "normal" or "uniform".
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del frozen
        answer = task.answer(params, batch)
        z = input_noise(key, batch, answer, sigma, noise)
        noisy = task.answer(params, batch, z)
        rows = factored_logits.kl_rows(noisy, answer, direction="symmetric")
        return _with_penalty(task, answer, batch, rows, weight)

    return objective


def with_noise(
    task: Task, *, sigma: float = 0.1, noise: str = "normal"
) -> types.Objective:
    """The loss at noisy input embeddings, for TRAM's Fisher information."""

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del frozen
        shape = jax.eval_shape(task.answer, params, batch)
        z = input_noise(key, batch, shape, sigma, noise)
        return task.loss(task.answer(params, batch, z), batch)

    return objective


def input_noise(
    key: jax.Array,
    batch: types.Batch,
    answer: factored_logits.Factored,
    sigma: float,
    noise: str = "normal",
) -> jax.Array:
    """Noise for the embeddings of a batch, f32[B, L, D]; drawn alike for one key."""
    if noise not in ("normal", "uniform"):
        raise errors.ArgumentError(f"noise {noise!r}; use normal or uniform")
    shape = (*batch["tokens"].shape, answer.hidden.shape[-1])
    if noise == "uniform":
        return jax.random.uniform(key, shape, minval=-sigma, maxval=sigma)
    return sigma * jax.random.normal(key, shape)


def _with_penalty(task, answer, batch, rows, weight):
    loss = task.loss(answer, batch)
    # Sums over the rows that the loss counts: divided by its weight they are means.
    penalty = jnp.sum(rows * task.rows(batch))
    metrics = {**loss.metrics, "penalty": penalty}
    return loss._replace(total=loss.total + weight * penalty, metrics=metrics)
