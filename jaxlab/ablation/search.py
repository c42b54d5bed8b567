"""Search for the best mixture: enumerate or grow subsets by a score.

| search            | mixtures    | passes over the evaluation set            |
|-------------------|-------------|-------------------------------------------|
| `enumerate_best`  | all subsets | 2^n - 1                                   |
| `greedy_search`   | subsets     | n + (n-1) + ... until nothing helps       |
| `gradient_search` | any weights | 3 steps / batches + 1, whatever n         |
| `convex_search`   | any weights | n, then none: the ensemble, not the merge |

Subsets are scored by any proxy: `Score` says what mixtures lose on each target, by
merging (`merged_score`) or from cached predictions (`ensemble_score`). A continuous
search starts where a subset cannot go: at unequal weights.

Where each pays. Enumeration is certain and, up to about seven experts, cheap enough.
From about ten the gradient needs an eighth of its passes, and it reaches unequal
weights. Greedy is the cheapest of all, at subsets only, and without a promise. The
ensemble costs one pass per expert, once, for any number of targets' weights, limits and
searches afterwards; it is its own proxy, and not what the merge would say. Printed by
`pytest -s tests/ablation/test_toy.py` (two busy CPU cores; a target that is half domain
a and half b; first calls, which compile, not counted):

    experts                6: passes  seconds   loss        10: passes  seconds    loss
    enumerate                     63     0.26  2.4261             1023     3.17  2.4261
    greedy                        15     0.08  2.4261               27     0.14  2.4261
    gradient, 40 steps           121     0.87  2.4135              121     1.06  2.4163
    convex, on the ensemble        6     0.02  (2.3689; best subset 2.3705)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.ablation import ensemble, limits, proxies
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, types

# Mixtures -> target -> losses f64[K] in nats per token.
Score = Callable[[Sequence[pools.Mixture]], Mapping[str, np.ndarray]]

NEGLIGIBLE = 1e-3  # a weight below this is left out of what a continuous search returns


class Found(NamedTuple):
    """What a search chose.

    Attributes:
        mixture: expert -> weight.
        predicted_loss: the mean of `by_target` under the target weights, in nats.
        by_target: target -> predicted loss of the mixture.
        evaluations: mixtures scored, for subset searches; forward passes over the
            evaluation sets, or what costs as much, for continuous ones.
        trace: the objective as the search went on; the last may precede roundings.
        gap: how far above the least possible loss this one is at most, where the
            search can tell (`convex_search`); else None.
    """

    mixture: dict[str, float]
    predicted_loss: float
    by_target: dict[str, float]
    evaluations: float
    trace: tuple[float, ...]
    gap: float | None = None


def merged_score(
    pool: pools.ModelPool,
    evaluation: Mapping[str, Sequence[types.Batch]],
    losses_fn: proxies.TokenLosses,
    *,
    mode: proxies.Mode = "map",
) -> Score:
    """Scores by the losses of merged models, as `proxies.document_losses`."""

    def score(mixtures):
        # At least as many rows as experts: all rounds of a greedy search then share
        # one compiled program, which costs more than the few rows.
        filling = [mixtures[0]] * (len(pool.names) - len(mixtures))
        losses = {
            target: proxies.document_losses(
                pool, [*mixtures, *filling], losses_fn, batches, mode=mode
            ).loss
            for target, batches in evaluation.items()
        }
        return {target: found[: len(mixtures)] for target, found in losses.items()}

    return score


def ensemble_score(
    pool: pools.ModelPool, logps: Mapping[str, ensemble.TokenLogps]
) -> Score:
    """Scores by the experts' cached predictions: no model is run."""

    def score(mixtures):
        rows = pool.weights(mixtures)
        return {
            target: ensemble.document_losses(known, rows).loss
            for target, known in logps.items()
        }

    return score


def enumerate_best(
    pool: pools.ModelPool,
    score: Score,
    *,
    within: limits.Limits | None = None,
    weighting: pools.Weighting = "macro",
    target_weights: Mapping[str, float] | None = None,
) -> Found:
    """The best of all allowed subsets.

    Args:
        pool: the experts.
        score: what mixtures lose, e.g. `merged_score(...)`.
        within: constraints; None for none.
        weighting: of the members of a subset, as `pool.mixtures`.
        target_weights: target -> importance; None for equal ones.

    Raises:
        UserError: no subset is allowed, or no loss is finite.
    """
    mixtures = (within or limits.Limits()).subsets(pool, weighting)
    losses, by_target = _score_all(score, mixtures, target_weights)
    index = _least(losses)
    return Found(
        mixture=mixtures[index],
        predicted_loss=float(losses[index]),
        by_target={target: float(all_[index]) for target, all_ in by_target.items()},
        evaluations=len(mixtures),
        trace=(float(losses[index]),),
    )


def greedy_search(
    pool: pools.ModelPool,
    score: Score,
    *,
    within: limits.Limits | None = None,
    weighting: pools.Weighting = "macro",
    target_weights: Mapping[str, float] | None = None,
) -> Found:
    """Forward selection: adds the member that helps most, until none does.

    It begins with the required members, or else with the best single one, and can miss
    a pair of which neither half helps alone.

    Args:
        pool: the experts.
        score: as for `enumerate_best`.
        within: constraints; None for none.
        weighting: as for `enumerate_best`.
        target_weights: as for `enumerate_best`.

    Returns:
        `trace` has the loss after each round.

    Raises:
        UserError: the required members are not allowed together, no single member is
            allowed, or no loss is finite.
    """
    within = within or limits.Limits()
    free = within.free(pool.names)
    chosen = [name for name in pool.names if name in within.must]
    best, trace, evaluations = None, [], 0
    rounds = [[chosen]] if chosen else []
    while True:
        candidates = rounds.pop() if rounds else [[*chosen, name] for name in free]
        candidates = [names for names in candidates if within.affords(names)]
        if not candidates:
            break
        mixtures = [pool.mixture(names, weighting) for names in candidates]
        losses, by_target = _score_all(score, mixtures, target_weights)
        evaluations += len(mixtures)
        index = _least(losses)
        if best is not None and not losses[index] < best.predicted_loss:
            break
        chosen = candidates[index]
        free = [name for name in free if name not in chosen]
        trace.append(float(losses[index]))
        best = Found(
            mixtures[index],
            trace[-1],
            {target: float(all_[index]) for target, all_ in by_target.items()},
            evaluations,
            tuple(trace),
        )
    if best is None:
        raise errors.UserError(
            f"no member can be chosen: required {', '.join(chosen) or 'none'}, cap "
            f"{within.cap}; raise the cap or forbid less"
        )
    return best._replace(evaluations=evaluations)


def normalize(
    targets: Sequence[str], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Target weights that sum to 1, equal ones for None.

    Raises:
        UserError: no target, an unknown one, negative or only zero weights.
    """
    if not targets:
        raise errors.UserError("no evaluation targets are given")
    weights = dict.fromkeys(targets, 1.0) if weights is None else dict(weights)
    if unknown := sorted(set(weights) - set(targets)):
        raise errors.UserError(
            f"no target {', '.join(unknown)}; there are {', '.join(targets)}"
        )
    values = np.array([weights.get(target, 0.0) for target in targets], float)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise errors.UserError(
            f"target weights {weights}: use finite ones, not negative and not all 0"
        )
    return dict(zip(targets, (values / values.sum()).tolist(), strict=True))


def as_mixture(names: Sequence[str], weights: np.ndarray) -> dict[str, float]:
    """Weights f64[M] as a mixture of those that take part."""
    return {n: float(w) for n, w in zip(names, weights, strict=True) if w > 0}


def _score_all(score, mixtures, target_weights):
    by_target = score(mixtures)
    weights = normalize(list(by_target), target_weights)
    # A target of weight 0 is reported, but 0 times infinity must not decide.
    parts = [weights[t] * losses for t, losses in by_target.items() if weights[t]]
    return np.sum(parts, axis=0), by_target


def _least(losses: np.ndarray) -> int:
    if not np.isfinite(losses).any():
        raise errors.UserError("no mixture has a finite loss")
    return int(np.nanargmin(losses))
