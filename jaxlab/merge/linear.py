"""Linear merges: averages, interpolations and task vectors of trees of parameters.

    average              theta = sum_k w_k theta_k / sum_k w_k
    interpolate          theta = (1 - t) a + t b
    task vector          tau   = theta_finetuned - theta_base
    apply task vectors   theta = theta_base + lam * sum_k s_k tau_k

Averages of models finetuned from one point: Wortsman et al. 2022, *Model soups*,
arXiv:2203.05482. Interpolation with the starting point (WiSE-FT): Wortsman et al. 2022,
arXiv:2109.01903. Task vectors: Ilharco et al. 2023, arXiv:2212.04089. Adding skills to
a general model: Morrison et al. 2024, arXiv:2410.12937. There `theta_G + omega * tau`
is meant with the `tau` of a skill tuned from the *pretrained* model; and for models D
and G tuned from one base

    average([theta_D, theta_G], [omega, 1 - omega])
        = theta_base + omega tau_D + (1 - omega) tau_G.

All are differentiable: d loss / d w_k of an unnormalised average is <g, theta_k>, g the
gradient at the merged point. `merge.trees.leafwise` says what holds for every
merge.

Deviations: merges of equal numbers and endpoints are exact. `(1 - 1/3) x + (1/3) x` is
not `x` in floating point, and `-0.0 + 0 * y` is not `-0.0`; where the answer is known
without arithmetic it is returned, with the derivatives of the formula.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import types
from jaxlab.merge.trees import checks, leafwise


def average(
    trees: Sequence[types.Params],
    weights: Any = None,
    *,
    normalize: bool = True,
    donate: bool = False,
) -> types.Params:
    """The weighted average of trees.

    Args:
        trees: M >= 1 trees of one structure, shapes and dtypes.
        weights: f32[M] of any sign, or None for equal weights; each may be a
            `weights_by_path`. Traced: one compiled program serves all weights.
        normalize: divide by the sum of the weights; False gives the plain sum.
        donate: let the result overwrite the first tree's buffers (one tree less of
            memory); the first tree is then gone.

    Returns:
        A tree like the first, with its dtypes and shardings. Where all trees hold the
        same number a normalised average is that number, bit for bit.

    Raises:
        ValueError: before any computation, one line with everything that is wrong:
            structure, shapes, dtypes, devices, number of weights, non-finite weights,
            weights that sum to 0. Traced weights are not checked: a sum of 0 gives NaN
            or infinity.

    >>> average([{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 6.0])}], [3, 1])
    {'w': Array([2., 3.], dtype=float32)}
    """
    trees = _sequence(trees, "trees")
    if not trees:
        raise ValueError("average needs at least one tree")
    weights, wrong = checks.coefficients(
        weights, len(trees), name="weights", like=trees[0], normalize=normalize
    )
    checks.refuse(checks.problems(trees) + wrong, "these trees cannot be averaged")
    op = weighted_mean if normalize else weighted_sum
    return leafwise.apply(op, trees, weights, donate=donate)


def interpolate(
    a: types.Params, b: types.Params, t: Any, *, donate: bool = False
) -> types.Params:
    """The point `(1 - t) a + t b`: at 0 it is `a` bit for bit, at 1 `b`.

    WiSE-FT is `interpolate(general, finetuned_from_general, omega)`.

    Args:
        a: a tree.
        b: a tree like it.
        t: scalar or `weights_by_path`, traced; below 0 and above 1 it extrapolates.
        donate: let the result overwrite the buffers of `a`.

    Raises:
        ValueError: the trees differ, or `t` is no finite scalar; everything at once.

    >>> interpolate({"w": jnp.array([0.0, 2.0])}, {"w": jnp.array([4.0, 2.0])}, 0.25)
    {'w': Array([1., 2.], dtype=float32)}
    """
    t, wrong = checks.scalar(t, name="t", like=a)
    checks.refuse(checks.problems([a, b]) + wrong, "these trees cannot be interpolated")
    return leafwise.apply(_interpolate, [a, b], t, donate=donate)


def task_vector(
    finetuned: types.Params, base: types.Params, *, dtype: Any = None
) -> types.Params:
    """The difference `finetuned - base`.

    Args:
        finetuned: a tree.
        base: a tree like it.
        dtype: of the floating leaves; None for their own. Differences of bf16 leaves
            are rounded to bf16 then; `jnp.float32` keeps them exact, at twice the
            memory, and `apply_task_vectors` takes either.

    Raises:
        ValueError: the trees differ; every difference is listed.

    >>> task_vector({"w": jnp.array([3.0])}, {"w": jnp.array([1.0])})
    {'w': Array([2.], dtype=float32)}
    """
    checks.refuse(checks.problems([finetuned, base]), "these trees have no task vector")
    dtype = None if dtype is None else jnp.dtype(dtype)
    return leafwise.apply(_difference, [finetuned, base], dtype=dtype)


def apply_task_vectors(
    base: types.Params,
    vectors: Sequence[types.Params],
    scales: Any,
    *,
    lam: Any = 1.0,
    donate: bool = False,
) -> types.Params:
    """The sum `base + lam * sum_k scales_k vectors_k`.

    Args:
        base: a tree: the base itself (linear interpolation of skills), or any model
            that shares it, e.g. a general instruction-tuned one (task arithmetic).
        vectors: M trees like `base`, of its dtypes or of float32.
        scales: f32[M], or one for all, each a number or a `weights_by_path`; traced.
            Where `lam * scales` is all 0 the result is `base` bit for bit.
        lam: scales everything: a number or a `weights_by_path`; traced.
        donate: let the result overwrite the buffers of `base`.

    Raises:
        ValueError: the trees differ, or scales are wrong in number or not finite.

    >>> apply_task_vectors({"w": jnp.array([1.0])}, [{"w": jnp.array([2.0])}], [0.5])
    {'w': Array([2.], dtype=float32)}
    """
    vectors = _sequence(vectors, "vectors")
    scales, wrong_scales = checks.coefficients(
        scales, len(vectors), name="scales", like=base
    )
    lam, wrong_lam = checks.scalar(lam, name="lam", like=base)
    checks.refuse(
        checks.problems([base, *vectors], wide=True) + wrong_scales + wrong_lam,
        "these task vectors cannot be applied",
    )
    return leafwise.apply(_add_vectors, [base, *vectors], scales, lam, donate=donate)


def weighted_mean(leaves: list[jax.Array], weights: jax.Array) -> jax.Array:
    """`sum_k w_k leaf_k / sum_k w_k`; exact where all leaves are equal."""
    total = jnp.sum(weights, axis=0)
    mean = weighted_sum(leaves, weights) / total
    defined = (total != 0) & jnp.isfinite(total)
    same = functools.reduce(
        jnp.logical_and, [leaf == leaves[0] for leaf in leaves[1:]], defined
    )
    return leafwise.pin(mean, jnp.where(same, leaves[0], mean))


def weighted_sum(leaves: list[jax.Array], weights: jax.Array) -> jax.Array:
    """`sum_k w_k leaf_k`, in the order of the leaves."""
    return functools.reduce(
        jnp.add, [weights[k] * leaf for k, leaf in enumerate(leaves)]
    )


def _interpolate(leaves, t):
    a, b = leaves
    point = (1 - t) * a + t * b
    exact = jnp.where(t == 1, b, jnp.where(a == b, a, point))
    return leafwise.pin(point, jnp.where(t == 0, a, exact))


def _difference(leaves):
    finetuned, base = leaves
    return finetuned - base


def _add_vectors(leaves, scales, lam):
    base, *vectors = leaves
    if not vectors:
        return base
    # One by one: either may have the leaf's axes behind its own.
    scales = jnp.stack(jnp.broadcast_arrays(*[lam * scale for scale in scales]))
    moved = base + weighted_sum(vectors, scales)
    return leafwise.pin(moved, jnp.where(jnp.all(scales == 0, axis=0), base, moved))


def _sequence(trees, name: str) -> list:
    if isinstance(trees, Mapping):
        raise ValueError(f"{name} must be a sequence of trees, not one mapping")
    return list(trees)
