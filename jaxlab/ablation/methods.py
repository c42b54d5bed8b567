"""The ways of searching a pool for what to train on, by name, for the same target.

best single           the expert of the lowest loss, which needs no search
enumerate, greedy     subsets, by the losses of their merged models
gradient              any weights, by gradients through the merge
enumerate ensemble    subsets, by the ensemble of the experts' predictions
convex                any weights, by the ensemble
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.ablation import convex, ensemble, gradient, limits, search
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, types


class _Question(NamedTuple):
    """What every method is asked; see `search_by`."""

    pool: pools.ModelPool
    evaluation: Mapping[str, Sequence[types.Batch]]
    logps: Mapping[str, ensemble.TokenLogps] | None
    losses_fn: Any
    within: limits.Limits
    target_weights: Mapping[str, float] | None
    known: tuple[Sequence[pools.Mixture], Mapping[str, np.ndarray]] | None

    @property
    def options(self) -> dict[str, Any]:
        """What all searches take."""
        return {"within": self.within, "target_weights": self.target_weights}

    @property
    def merged_score(self) -> search.Score:
        """Mixtures -> the losses of their merged models, looked up where known."""
        score = search.merged_score(self.pool, self.evaluation, self.losses_fn)
        return score if self.known is None else _look_up_first(score, *self.known)


def _best_single(ask: _Question) -> search.Found:
    alone = limits.Limits(forbid=ask.within.forbid, max_size=1)
    options = ask.options | {"within": alone}
    return search.enumerate_best(ask.pool, ask.merged_score, **options)


def _enumerate(ask: _Question) -> search.Found:
    return search.enumerate_best(ask.pool, ask.merged_score, **ask.options)


def _greedy(ask: _Question) -> search.Found:
    return search.greedy_search(ask.pool, ask.merged_score, **ask.options)


def _gradient(ask: _Question) -> search.Found:
    return gradient.gradient_search(
        ask.pool, ask.evaluation, ask.losses_fn, **ask.options
    )


def _enumerate_ensemble(ask: _Question) -> search.Found:
    score = search.ensemble_score(ask.pool, ask.logps)
    return search.enumerate_best(ask.pool, score, **ask.options)


def _convex(ask: _Question) -> search.Found:
    return convex.convex_search(ask.pool.names, ask.logps, **ask.options)


# As many as `method_names.METHODS`, which the command line reads without jax.
_SEARCHES: dict[str, Callable[[_Question], search.Found]] = {
    "best single": _best_single,
    "enumerate": _enumerate,
    "greedy": _greedy,
    "gradient": _gradient,
    "enumerate ensemble": _enumerate_ensemble,
    "convex": _convex,
}


def search_by(
    method: str,
    pool: pools.ModelPool,
    evaluation: Mapping[str, Sequence[types.Batch]],
    logps: Mapping[str, ensemble.TokenLogps] | None,
    losses_fn: Any,
    within: limits.Limits,
    *,
    target_weights: Mapping[str, float] | None = None,
    known: tuple[Sequence[pools.Mixture], Mapping[str, np.ndarray]] | None = None,
) -> search.Found:
    """The choice of one method.

    Args:
        method: one of `method_names.METHODS`.
        pool: the experts.
        evaluation: target -> held-out batches.
        logps: target -> the experts' predictions, for those that ask an "ensemble".
        losses_fn: (params, batch) -> nats and tokens by row.
        within: what a mixture may be.
        target_weights: target -> importance; None for equal ones.
        known: mixtures that were merged and scored already, and target -> their losses.

    Raises:
        UserError: an unknown method, or as the search itself.
    """
    if method not in _SEARCHES:
        raise errors.UserError(
            f"no search {method!r}; use one of {', '.join(_SEARCHES)}"
        )
    return _SEARCHES[method](
        _Question(pool, evaluation, logps, losses_fn, within, target_weights, known)
    )


def search_by_all(*arguments: Any, **options: Any) -> dict[str, search.Found]:
    """Method -> its choice; arguments as for `search_by`, but for the method."""
    return {method: search_by(method, *arguments, **options) for method in _SEARCHES}


def _look_up_first(score, mixtures, losses):
    """A score that looks up mixtures scored before, and merges the others."""
    index = {frozenset(mixture.items()): k for k, mixture in enumerate(mixtures)}

    def look_up(wanted):
        keys = [frozenset(mixture.items()) for mixture in wanted]
        if not all(key in index for key in keys):
            return score(wanted)
        rows = [index[key] for key in keys]
        return {target: found[rows] for target, found in losses.items()}

    return look_up
