"""Many models as one tree: leaves [M, ...], so that K merges are one compiled call.

    stacked = stack(experts)                                   # leaves [M, ...]
    one = average_stacked(stacked, weights)                    # f32[M] -> one tree
    all_at_once = jax.vmap(average_stacked, (None, 0))(stacked, weight_rows)  # [K, M]

`jax.lax.map` over the rows instead keeps one merged model alive at a time: memory of
M + 1 models and not of M + K, which is what `jaxlab.ablation` does by default.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.core import tree, types
from jaxlab.merge import linear
from jaxlab.merge.trees import checks, leafwise


def stack(trees: Sequence[types.Params]) -> types.Params:
    """M trees -> one tree with leaves [M, ...], of the same dtypes.

    A leaf's NamedSharding is that of the first tree, with the model axis not sharded.

    Raises:
        ValueError: no trees; every difference between them; integer, bool or key leaves
            that are not equal in all trees.

    >>> stack([{"w": np.float32([1, 2])}, {"w": np.float32([3, 4])}])["w"].shape
    (2, 2)
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack needs at least one tree")
    checks.refuse(checks.problems(trees), "these trees cannot be stacked")
    return leafwise.stack(trees)


def average_stacked(
    stacked: types.Params, weights: Any, *, normalize: bool = True
) -> types.Params:
    """`average` of the M models in a stacked tree.

    Args:
        stacked: leaves [M, ...].
        weights: f32[M], traced; `vmap` and `lax.map` over f32[K, M] give K merges.
        normalize: divide by the sum of the weights.

    Returns:
        One tree of leaves [...].

    Raises:
        ValueError: leaves do not share a first axis of size M, or the weights are wrong
            in number, not finite or sum to 0.

    >>> stacked = stack([{"w": np.float32([1, 2])}, {"w": np.float32([5, 6])}])
    >>> average_stacked(stacked, [3, 1])
    {'w': Array([2., 3.], dtype=float32)}
    """
    shapes = {name: np.shape(leaf) for name, leaf in tree.flatten(stacked).items()}
    size = next((shape[0] for shape in shapes.values() if shape), 0)
    wrong = [
        f"{name}: shape {shape} does not begin with the {size} models"
        for name, shape in shapes.items()
        if shape[:1] != (size,)
    ]
    wrong += [] if size else ["it holds no models"]
    weights, wrong_weights = checks.coefficients(
        weights, size, name="weights", normalize=normalize
    )
    checks.refuse(wrong + wrong_weights, "this stacked tree cannot be averaged")
    op = linear.weighted_mean if normalize else linear.weighted_sum
    return leafwise.apply_stacked(op, stacked, weights)
