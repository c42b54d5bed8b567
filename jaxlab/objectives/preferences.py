"""Preference losses: DPO and its relatives (robust, hinge, IPO, SimPO)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges, types
from jaxlab.objectives import language

_PREFERENCES = {  # name -> (means over tokens, has a reference, loss of the margin)
    "sigmoid": (False, True, lambda h, b, e: _smooth_loss(b * h, e)),
    "sigmoid_norm": (True, True, lambda h, b, e: _smooth_loss(b * h, e)),
    "robust": (False, True, lambda h, b, e: _unbiased_loss(b * h, e)),
    "hinge": (False, True, lambda h, b, _: jax.nn.relu(1 - b * h)),
    "ipo": (True, True, lambda h, b, _: (h - 1 / (2 * b)) ** 2),
    "ipo_sum": (False, True, lambda h, b, _: (h - 1 / (2 * b)) ** 2),
    "simpo": (True, False, lambda h, b, e: _smooth_loss(b * h, e)),
}


_RANGES = {
    "beta": ranges.ABOVE_0,
    "label_smoothing": ranges.Range("0 to below 0.5", 0.0, 0.5, has_high=False),
    "target_margin": ranges.AT_LEAST_0,
}


def preference(
    apply: Callable,
    loss: str = "sigmoid",
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    target_margin: float = 0.0,
) -> types.Objective:
    """How much more a policy prefers the chosen answer than its reference does.

        h = (log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))

        sigmoid         -log sigmoid(beta h)             DPO, arXiv:2305.18290, eq. 7
        sigmoid_norm    the same of means over an answer's tokens
        robust          unbiased where labels are flipped, arXiv:2403.00409, eq. 11
        hinge           max(0, 1 - beta h)               SLiC, arXiv:2305.10425
        ipo, ipo_sum    (h - 1 / (2 beta))^2             arXiv:2310.12036, eq. 17; of
                        token means, as TRL's, and of sums, as EasyLM's
        simpo           -log sigmoid(beta (h - target_margin)) of token means without r,
                        arXiv:2405.14734, eq. 6

    Batches: `tokens` i32[B, 2, L], `loss_mask` f32[B, 2, L], chosen before rejected,
    both in one pass; a pair without labels does not count. The reference is
    `reference_logps` f32[B, 2], sums that were computed before, or `frozen`, parameters
    that are evaluated in the step.

    Args:
        apply: `Decoder(config).apply`.
        loss: one of the names above.
        beta: how closely the policy is held to the reference (TULU 2: 0.1; SimPO 2;
            sigmoid_norm 5).
        label_smoothing: the chance that a label is wrong, of sigmoid (conservative DPO)
            and robust, below 0.5.
        target_margin: of simpo: its gamma / beta.

    Returns:
        An objective with the metrics `accuracy` (of pairs with a positive reward
        margin), `margin`, `chosen_reward`, `rejected_reward` (beta times log-ratios)
        and `chosen_logps`, `rejected_logps` (of whole answers, nats).

    Raises:
        ValueError: an unknown loss, a beta that is not above 0, a smoothing that is not
            in [0, 0.5), or a negative margin.
    """
    has_reference = asks_reference(loss)
    ranges.check(
        "preference.",
        {
            "beta": beta,
            "label_smoothing": label_smoothing,
            "target_margin": target_margin,
        },
        _RANGES,
    )
    is_mean, _, of_margin = _PREFERENCES[loss]

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key
        sums, sizes = answer_logps(apply, params, batch)
        where = jnp.all(sizes > 0, axis=1)
        reference = jnp.zeros_like(sums)
        if has_reference and "reference_logps" in batch:
            reference = batch["reference_logps"]
        elif has_reference:
            reference = jax.lax.stop_gradient(answer_logps(apply, frozen, batch)[0])
        import chex  # here: a tenth of a second at start-up

        chex.assert_equal_shape([sums, reference])  # [B] of one answer broadcasts
        ratios = sums - reference
        if is_mean:
            ratios = ratios / jnp.maximum(sizes, 1.0)
        margin = ratios[:, 0] - ratios[:, 1] - target_margin
        each = of_margin(margin, beta, label_smoothing)
        metrics = {
            "accuracy": margin > 0,
            "margin": beta * margin,
            "chosen_reward": beta * ratios[:, 0],
            "rejected_reward": beta * ratios[:, 1],
            "chosen_logps": sums[:, 0],
            "rejected_logps": sums[:, 1],
        }
        total, metrics = jax.tree.map(
            lambda x: jnp.sum(jnp.where(where, x, 0.0)), (each, metrics)
        )
        return types.Loss(total, jnp.sum(where * 1.0), metrics)

    return objective


def asks_reference(loss: str) -> bool:
    """Whether a loss of `preference` compares with a reference policy.

    Raises:
        ValueError: an unknown loss.
    """
    if loss not in _PREFERENCES:
        raise errors.ArgumentError(
            f"loss {loss!r}; use one of {', '.join(_PREFERENCES)}"
        )
    return _PREFERENCES[loss][1]


def answer_logps(
    apply: Callable, params: types.Params, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of both answers of pairs, and their labels, f32[B, 2] both."""
    rows = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items() if x.ndim > 2}
    tokens, mask = rows["tokens"], language.label_mask(rows)
    logps, _ = apply(
        {"params": params}, tokens, language.targets(tokens), method="token_logps"
    )
    sums, sizes = jnp.sum(logps * mask, axis=1), jnp.sum(mask, axis=1)
    return sums.reshape(-1, 2), sizes.reshape(-1, 2)


def _smooth_loss(x, chance):
    return -(1 - chance) * jax.nn.log_sigmoid(x) - chance * jax.nn.log_sigmoid(-x)


def _unbiased_loss(x, chance):
    wrong = -jax.nn.log_sigmoid(-x)
    return (-(1 - chance) * jax.nn.log_sigmoid(x) - chance * wrong) / (1 - 2 * chance)
