"""Held-out preferences: the loss of pairs, and how often the chosen one wins."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlab.core import errors, mesh, types


def evaluate(
    objective: types.Objective,
    params: types.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    frozen: Any = None,
) -> dict[str, float]:
    """Means of the loss and of its metrics over pairs, and `pairs`, their number.

    Args:
        objective: of `objectives.preference`.
        params: the policy's.
        batches: of `data.instructions.eval_batches`.
        frozen: what the objective gets as such.
    """
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in _sum_outcomes(objective)(params, batch, frozen).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    pairs = sums.pop("pairs", 0.0)
    if not pairs:
        raise errors.UserError("nothing to evaluate: no pair is held out")
    return {name: value / pairs for name, value in sums.items()} | {"pairs": pairs}


@functools.cache
def _sum_outcomes(objective: types.Objective) -> Callable:
    @jax.jit
    def score(params, batch, frozen):
        loss = objective(params, batch, key=jax.random.key(0), frozen=frozen)
        means = {"loss": loss.total, **loss.metrics, "pairs": loss.weight}
        return jax.tree.map(mesh.replicate, means)

    return score
