"""Several targets at once: mixtures that no other mixture beats on all of them.

A mixture is on the Pareto front if no other is at least as good on every target and
better on one. `pareto_front` picks it out of given losses, by any proxy. `sweep` walks
along it with a search: each minimises the mean of the targets' losses under other
weights. That finds the convex hull of the front: all of it where the losses are convex
in the weights (`convex_search`); elsewhere dents of the front are jumped over.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jaxlab.ablation import search
from jaxlab.core import errors


def pareto_front(losses: np.ndarray) -> np.ndarray:
    """Which mixtures no other beats.

    Args:
        losses: f64[K, E], of K mixtures on E targets. A row with a NaN is not on the
            front; equal rows are on it together.

    Returns:
        bool[K].

    Raises:
        UserError: losses of another shape.

    >>> pareto_front([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [2.0, 3.0]]).tolist()
    [True, True, True, False]
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise errors.UserError(f"losses [mixtures, targets] needed, not {losses.shape}")
    valid = ~np.isnan(losses).any(axis=1)
    front = np.zeros(len(losses), bool)
    for k in np.flatnonzero(valid):
        no_worse = (losses[valid] <= losses[k]).all(axis=1)
        better = (losses[valid] < losses[k]).any(axis=1)
        front[k] = not (no_worse & better).any()
    return front


def sweep(
    find: Callable[[dict[str, float]], search.Found],
    targets: Sequence[str],
    divisions: int = 4,
) -> list[search.Found]:
    """Searches with target weights all over their simplex; what is on the front.

    Public API: no command needs it, since `jaxlab ablate search --pareto` has the
    losses of all subsets at hand.

    Args:
        find: target weights -> what a search found, e.g.
            `lambda w: convex_search(names, logps, target_weights=w)`.
        targets: E names.
        divisions: weights are multiples of 1 / divisions: C(divisions + E - 1, E - 1)
            searches, divisions + 1 of them for two targets.

    Returns:
        The non-dominated ones, each mixture once, by the loss on the first target.

    Raises:
        UserError: no targets, or divisions below 1.
    """
    if not targets or divisions < 1:
        raise errors.UserError("a sweep needs targets, and divisions of 1 or more")
    answers = [
        find({t: part / divisions for t, part in zip(targets, parts, strict=True)})
        for parts in _compositions(divisions, len(targets))
    ]
    losses = np.array([[each.by_target[t] for t in targets] for each in answers])
    front = [answers[k] for k in np.flatnonzero(pareto_front(losses))]
    distinct = {tuple(sorted(each.mixture.items())): each for each in front}
    return sorted(distinct.values(), key=lambda each: each.by_target[targets[0]])


def _compositions(total: int, parts: int):
    """All ways to write `total` as an ordered sum of `parts` numbers from 0 on."""
    for bars in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = [-1, *bars, total + parts - 1]
        yield [right - left - 1 for left, right in itertools.pairwise(edges)]
