"""Model soups: averages of models that were finetuned from one point.

    uniform  theta = mean of all
    greedy   best alone first, keep each model with which the mean scores no worse

Wortsman et al. 2022, *Model soups: averaging weights of multiple fine-tuned models
improves accuracy without increasing inference time*, arXiv:2203.05482, recipe 1. The
greedy soup is never worse than its best ingredient, on the data that it is scored on:
score it on held-out data, and report it on other data.
"""

import math
from collections.abc import Callable, Sequence

from jaxlab.core import types
from jaxlab.merge import linear

Score = Callable[[types.Params], float]  # higher is better, e.g. held-out accuracy


def uniform_soup(trees: Sequence[types.Params]) -> types.Params:
    """The plain average.

    Raises:
        ValueError: as `average`.

    >>> import jax.numpy as jnp
    >>> uniform_soup([{"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}])
    {'w': Array([2.], dtype=float32)}
    """
    return linear.average(trees)


def greedy_soup(
    trees: Sequence[types.Params],
    score: Score,
    *,
    order: Sequence[int] | None = None,
) -> types.Params:
    """The average of the models that `greedy_ingredients` keeps.

    Args:
        trees: M >= 1 trees.
        score: a tree -> a number, higher is better; called at most 2 M - 1 times.
        order: in which they are tried; None: best alone first.

    Raises:
        ValueError: as `average`, or an order that is not one of the trees; a NaN score.

    >>> import jax.numpy as jnp
    >>> trees = [{"w": jnp.array([w])} for w in (1.0, 4.0, 9.0)]
    >>> greedy_soup(trees, lambda tree: -abs(float(tree["w"][0]) - 2.5))
    {'w': Array([2.5], dtype=float32)}
    """
    trees = list(trees)
    members = greedy_ingredients(trees, score, order=order)
    return linear.average([trees[index] for index in members])


def greedy_ingredients(
    trees: Sequence[types.Params],
    score: Score,
    *,
    order: Sequence[int] | None = None,
) -> list[int]:
    """Which trees the greedy soup averages, in the order in which they were kept.

    Args and Raises: as `greedy_soup`.

    >>> import jax.numpy as jnp
    >>> trees = [{"w": jnp.array([w])} for w in (1.0, 4.0, 9.0)]
    >>> greedy_ingredients(trees, lambda tree: -abs(float(tree["w"][0]) - 2.5))
    [0, 1]
    """
    trees = list(trees)
    if not trees:
        raise ValueError("a soup needs at least one tree")
    if order is None:
        alone = [_number(score(tree)) for tree in trees]
        order = sorted(range(len(trees)), key=lambda index: -alone[index])
        best = alone[order[0]]
    else:
        order = list(order)
        are_indices = {*order} <= {*range(len(trees))}
        if not order or not are_indices or len({*order}) < len(order):
            raise ValueError(f"order {order} is not one of {len(trees)} trees")
        best = _number(score(trees[order[0]]))
    members = order[:1]
    for index in order[1:]:
        value = _number(score(linear.average([trees[i] for i in [*members, index]])))
        if value >= best:
            members, best = [*members, index], value
    return members


def _number(score) -> float:
    if math.isnan(value := float(score)):
        raise ValueError("the score of a soup is NaN; score it on other data")
    return value
