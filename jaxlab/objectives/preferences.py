"""Preference losses: a batch of pairs to a loss of `pair_losses`, DPO's or another."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges, step, types
from jaxlab.objectives import language, pair_losses

_RANGES = {
    "beta": ranges.ABOVE_0,
    "label_smoothing": ranges.Range("0 to below 0.5", 0.0, 0.5, has_high=False),
    "target_margin": ranges.AT_LEAST_0,
    "tail_weight": ranges.SHARE,
    "nll_weight": ranges.AT_LEAST_0,
    "temperature": ranges.ABOVE_0,
    "divergence_alpha": ranges.Range("a finite number", -float("inf")),
    "chunks": ranges.AT_LEAST_1,
}
_UNUSED = {  # where a loss does not have it
    "label_smoothing": 0.0,
    "target_margin": 0.0,
    "temperature": 0.05,
    "divergence": "reverse_kl",
}


def preference(
    apply: Callable,
    loss: str = "sigmoid",
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    target_margin: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
    tail_weight: float = 1.0,
    nll_weight: float | None = None,
    temperature: float = 0.05,
    chunks: int = 1,
    pairs: int = 0,
) -> types.Objective:
    """How much more a policy prefers the chosen answer than its reference does.

    Batches: `tokens` i32[B, 2, L], `loss_mask` f32[B, 2, L], chosen before rejected,
    both in one pass; a pair without labels does not count. The reference is
    `reference_logps` f32[B, 2], sums that were computed before, or `frozen`, parameters
    that are evaluated in the step.

    Args:
        apply: `Decoder(config).apply`.
        loss: a name of `pair_losses`, or a sum: "0.8*sigmoid + 0.2*bco_pair + sft".
        beta: how closely the policy is held to the reference (TULU 2: 0.1; SimPO 2;
            sigmoid_norm 5).
        label_smoothing: the chance that a label is wrong, of sigmoid (conservative DPO)
            and its like, robust and exo_pair (above 0 there), below 0.5.
        target_margin: by which a chosen answer should win: of simpo, its gamma / beta.
        divergence: from the reference: reverse_kl (DPO), forward_kl, js or alpha.
        divergence_alpha: of divergence alpha; 1 is reverse_kl.
        tail_weight: of the tokens of the longer answer beyond the length of the
            shorter: LD-DPO's alpha, arXiv:2409.06411; 1 is plain DPO.
            `reference_logps` must have been computed with the same.
        nll_weight: of the chosen answers' cross-entropy per token, which is added
            (RPO, arXiv:2404.19733). None: 1 of cpo and orpo, else 0.
        temperature: of discopop, in which it blends two losses.
        chunks: parts of a batch that are computed one by one, and again for the exact
            gradient: for losses of whole batches, which microbatches would change.
        pairs: B, where any other size is to be refused: those losses need it.

    Returns:
        An objective with the metrics `accuracy` (of pairs with a positive reward
        margin), `margin`, `chosen_reward`, `rejected_reward` (beta times log-ratios)
        and `chosen_logps`, `rejected_logps` (of whole answers, nats); of a sum of
        losses those of the first.

    Raises:
        ValueError: an unknown loss or divergence, a number out of its range, or a
            setting that the loss does not have.
    """
    given = dict(locals())
    weights = pair_losses.parse(loss)
    ranges.check("preference.", given, _RANGES)
    _check_settings(loss, weights, given)
    own = sum(w * pair_losses.LOSSES[x].nll for x, w in weights.items())
    nll = own if nll_weight is None else nll_weight
    strengths = pair_losses.Strengths(
        beta, label_smoothing, target_margin, temperature, divergence, divergence_alpha
    )
    is_of_batch = needs_whole_batch(loss, nll_weight)

    def ask(params, batch):
        if chunks == 1:
            return answer_logps(apply, params, batch, tail_weight)
        rows = {name: batch[name] for name in ("tokens", "loss_mask")}
        part = lambda x: answer_logps(apply, params, x, tail_weight)  # noqa: E731
        return step.map_parts(jax.checkpoint(part), rows, chunks)

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key
        if is_of_batch:
            check_whole(loss, pairs, len(batch["tokens"]))
        sums, sizes = ask(params, batch)
        reference = jnp.zeros_like(sums)
        if asks_reference(loss) and "reference_logps" in batch:
            reference = batch["reference_logps"]
        elif asks_reference(loss):
            reference = jax.lax.stop_gradient(ask(frozen, batch)[0])
        import chex  # here: a tenth of a second at start-up

        chex.assert_equal_shape([sums, reference])  # [B] of one answer broadcasts
        answers = pair_losses.Answers(sums, reference, sizes)
        each, metrics = pair_losses.add_up(answers, weights, nll, strengths)
        total, metrics = jax.tree.map(
            lambda x: jnp.sum(jnp.where(answers.where, x, 0.0)), (each, metrics)
        )
        metrics |= {
            f"{side}_logps": jnp.sum(jnp.where(answers.where, sums[:, i], 0.0))
            for i, side in enumerate(("chosen", "rejected"))
        }
        return types.Loss(total, jnp.sum(answers.where * 1.0), metrics)

    return objective


def check_whole(loss: str, rows: int, got: int) -> None:
    """Refuses a part of a batch to a loss that needs the whole one; 0 rows: any.

    Raises:
        UserError: with what saves memory instead.
    """
    if rows not in (0, got):
        raise errors.UserError(
            f"the loss {loss} needs all {rows} examples of a batch at once and got "
            f"{got}: use micro_batches 1; preference.chunks saves memory instead"
        )


def asks_reference(loss: str) -> bool:
    """Whether a loss of `preference` compares with a reference policy.

    Raises:
        ValueError: an unknown loss.
    """
    return any(pair_losses.LOSSES[x].has_reference for x in pair_losses.parse(loss))


def needs_whole_batch(loss: str, nll_weight: float | None = None) -> bool:
    """Whether a pair's loss depends on the others, so that microbatches change it.

    Raises:
        ValueError: an unknown loss.
    """
    kinds = [pair_losses.LOSSES[name] for name in pair_losses.parse(loss)]
    has_nll = any(one.nll for one in kinds) if nll_weight is None else nll_weight > 0
    return has_nll or any(one.is_of_batch for one in kinds)


def answer_logps(
    apply: Callable, params: types.Params, batch: types.Batch, tail_weight: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of both answers of pairs, and their labels, f32[B, 2] both.

    Args:
        apply: `Decoder(config).apply`.
        params: its parameters.
        batch: `tokens` and `loss_mask` [B, 2, L].
        tail_weight: of the labels beyond the number that the shorter answer has.
    """
    rows = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items() if x.ndim > 2}
    tokens, mask = rows["tokens"], language.label_mask(rows)
    logps, _ = apply(
        {"params": params}, tokens, language.targets(tokens), method="token_logps"
    )
    sizes = jnp.sum(mask, axis=1).reshape(-1, 2)
    if not (isinstance(tail_weight, numbers.Real) and tail_weight == 1):
        shared = jnp.repeat(jnp.min(sizes, axis=1), 2)[:, None]
        is_tail = jnp.cumsum(mask, axis=1) > shared
        mask = mask * jnp.where(is_tail, tail_weight, 1.0)
    sums = jnp.sum(logps * mask, axis=1)
    return sums.reshape(-1, 2), sizes


def _check_settings(
    loss: str, weights: Mapping[str, float], given: Mapping[str, Any]
) -> None:
    """Refuses settings that no term of the loss has: they would do nothing."""
    uses = frozenset().union(*(pair_losses.LOSSES[name].uses for name in weights))
    for name, value in _UNUSED.items():
        is_known = isinstance(given[name], numbers.Real | str)  # else it is traced
        if name not in uses and is_known and given[name] != value:
            raise errors.ArgumentError(
                f"the loss {loss} has no {name}; leave preference.{name} at {value}"
            )
    if given["divergence"] not in pair_losses.DIVERGENCES:
        raise errors.ArgumentError(
            f"divergence {given['divergence']!r}; use one of "
            f"{', '.join(pair_losses.DIVERGENCES)}"
        )
    smoothing = given["label_smoothing"]
    if "exo_pair" in weights and ranges.is_zero(smoothing):
        raise errors.ArgumentError(
            "preference.label_smoothing 0.0: exo_pair takes its logarithm; use a "
            "number above 0, e.g. 0.001"
        )
