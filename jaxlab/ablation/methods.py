"""What each way of searching a pool would train on, for the same target.

The methods and what they cost are in `jaxlab.ablation`: subsets by the losses of their
merged models (`enumerate`, `greedy`), any weights by gradients through the merge
(`gradient`), subsets and any weights by the ensemble of the experts' predictions
(`enumerate ensemble`, `convex`), and the `best single` expert, which needs no search.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab import ablation
from jaxlab.ablation import method_names
from jaxlab.core import errors, types


def by_method(
    method: str,
    pool: ablation.ModelPool,
    evaluation: Mapping[str, Sequence[types.Batch]],
    logps: Mapping[str, ablation.TokenLogps] | None,
    losses_fn: Any,
    within: ablation.Limits,
    *,
    target_weights: Mapping[str, float] | None = None,
    known: tuple[Sequence[ablation.Mixture], Mapping[str, np.ndarray]] | None = None,
) -> ablation.Found:
    """The choice of one method.

    Args:
        method: one of `method_names.METHODS`.
        pool: the experts.
        evaluation: target -> held-out batches.
        logps: target -> the experts' predictions, where the method reads them.
        losses_fn: (params, batch) -> nats and tokens by row.
        within: what a mixture may be.
        target_weights: target -> importance; None for equal ones.
        known: mixtures that were merged and scored already, and target -> their losses.

    Raises:
        UserError: an unknown method, or as the search itself.
    """
    options = {"within": within, "target_weights": target_weights}
    if method_names.METHODS.get(method) == "ensemble":
        if method == "convex":
            return ablation.convex_search(pool.names, logps, **options)
        score = ablation.ensemble_score(pool, logps)
        return ablation.enumerate_best(pool, score, **options)
    if method == "gradient":
        return ablation.gradient_search(pool, evaluation, losses_fn, **options)
    score = ablation.merged_score(pool, evaluation, losses_fn)
    if known is not None:
        score = _known(score, *known)
    if method == "best single":
        options["within"] = ablation.Limits(forbid=within.forbid, max_size=1)
        return ablation.enumerate_best(pool, score, **options)
    searches = {
        "enumerate": ablation.enumerate_best,
        "greedy": ablation.greedy_search,
    }
    if method not in searches:
        known_methods = ", ".join(method_names.METHODS)
        raise errors.UserError(f"no search {method!r}; use one of {known_methods}")
    return searches[method](pool, score, **options)


def by_every_method(
    pool: ablation.ModelPool,
    evaluation: Mapping[str, Sequence[types.Batch]],
    logps: Mapping[str, ablation.TokenLogps],
    losses_fn: Any,
    within: ablation.Limits,
    **options: Any,
) -> dict[str, ablation.Found]:
    """Method -> its choice; arguments as for `by_method`."""
    return {
        method: by_method(method, pool, evaluation, logps, losses_fn, within, **options)
        for method in method_names.METHODS
    }


def _known(score, mixtures, losses):
    """A score that looks up mixtures scored before, and merges the others."""
    place = {frozenset(mixture.items()): k for k, mixture in enumerate(mixtures)}

    def look_up(wanted):
        keys = [frozenset(mixture.items()) for mixture in wanted]
        if not all(key in place for key in keys):
            return score(wanted)
        rows = [place[key] for key in keys]
        return {target: found[rows] for target, found in losses.items()}

    return look_up
