"""Merges along spheres, and the one that finds its own weight from angles.

    slerp        (sin((1-t) phi) a + sin(t phi) b) / sin phi,   phi = angle(a, b)
    nuslerp      the same with t = w_b / (w_a + w_b), of a whole leaf or of each row
    multislerp   exp_m(sum_k w_k P u_k) sum_k w_k |theta_k|,  m = sum_k w_k u_k normed
    karcher      sum_k w_k |theta_k| argmin_{|m| = 1} sum_k w_k angle(m, u_k)^2
    model stock  t mean_k theta_k + (1 - t) base,   t = N c / (1 + (N - 1) c)

with u_k = theta_k / |theta_k|, P the projection onto the tangent space at m, and c the
mean cosine between the N differences theta_k - base. Shoemake 1985 (slerp); mergekit
(nuslerp, multislerp); Karcher 1977, *Riemannian center of mass*; Jang et al. 2024,
*Model Stock*, arXiv:2403.19522.

None of them leaves the span of its inputs: the maths is in
`merge.spheres.coefficients`, over inner products; here it is applied to trees.

All are leaf by leaf. Where layers are stacked on a leading axis, a leaf is all layers:
`jax.vmap` the merge over that axis to merge layer by layer.

Deviations: karcher takes weights (mergekit: uniform only). nuslerp, multislerp and
karcher follow mergekit 0.1.5 where they have no paper, up to rounding: inner products
are taken before normalisation.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlab.core import types
from jaxlab.merge import linear
from jaxlab.merge.spheres import coefficients as coefficients_lib
from jaxlab.merge.trees import checks, leafwise


def slerp(
    a: types.Params, b: types.Params, t: Any, *, donate: bool = False
) -> types.Params:
    """Spherical interpolation, leaf by leaf: at t = 0 it is `a`, at 1 `b`.

    Where the vectors are parallel or opposite (|cos| > 0.9995) it is linear; a vector
    of zeros is at a right angle to all.

    Args:
        a: a tree.
        b: a tree like it.
        t: scalar or `weights_by_path`, traced.
        donate: let the result overwrite the buffers of `a`.

    Raises:
        ValueError: the trees differ, or `t` is no finite scalar; everything at once.

    >>> slerp({"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}, 0.5)["w"]
    Array([1.4142135, 1.4142135], dtype=float32)
    """
    t, wrong = checks.scalar(t, name="t", like=a)
    checks.refuse(checks.problems([a, b]) + wrong, "these trees cannot be interpolated")
    return leafwise.apply(_slerp, [a, b], t, donate=donate)


def nuslerp(
    a: types.Params,
    b: types.Params,
    weights: Any = (0.5, 0.5),
    *,
    base: types.Params | None = None,
    along: Literal["leaf", "row", "column"] = "leaf",
    donate: bool = False,
) -> types.Params:
    """Spherical interpolation with two weights, of leaves, rows or columns.

    Args:
        a: a tree.
        b: a tree like it.
        weights: f32[2], traced; t = w_b / (w_a + w_b), 0.5 where they sum to 0.
        base: interpolate the differences from it, and add it again.
        along: what is one vector: the flattened leaf, each slice along the last axis
            (mergekit's `nuslerp_flatten: false`), or each along the first
            (`nuslerp_row_wise: true` beside it).
        donate: let the result overwrite the buffers of the base, or else of `a`.

    Raises:
        ValueError: trees that differ, weights not two finite numbers, unknown `along`.

    >>> a, b = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> nuslerp(a, b, [2, 1])["w"].round(2)  # 30 degrees from a
    Array([0.87, 0.5 ], dtype=float32)
    """
    trees = [a, b] if base is None else [base, a, b]
    weights, wrong = checks.coefficients(weights, 2, name="weights", like=a)
    if along not in ("leaf", "row", "column"):
        wrong.append(f"along {along!r}; use 'leaf', 'row' or 'column'")
    checks.refuse(checks.problems(trees) + wrong, "these trees cannot be interpolated")
    options = {"along": along, "has_base": base is not None}
    return leafwise.apply(_nuslerp, trees, weights, options=options, donate=donate)


def multislerp(
    trees: Sequence[types.Params],
    weights: Any = None,
    *,
    base: types.Params | None = None,
    normalize: bool = True,
    donate: bool = False,
) -> types.Params:
    """The mean of M directions through the tangent space at their chord mean.

    Args:
        trees: M >= 2 trees.
        weights: f32[M], traced; None for equal ones.
        base: average the differences from it, and add it again.
        normalize: divide the weights by their sum.
        donate: let the result overwrite the buffers of the base, or else of the first.

    Returns:
        A tree like the first. Where the weighted directions cancel (their sum is
        shorter than 1e-8) it is the weighted sum for two trees, NaN for more: there is
        no mean direction, give other weights.

    Raises:
        ValueError: trees that differ, wrong weights; everything at once.

    >>> x, y = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> multislerp([x, y])["w"].round(2)
    Array([1.41, 1.41], dtype=float32)
    """
    trees, weights = _several(trees, weights, base, normalize)
    options = {"has_base": base is not None, "normalize": normalize}
    return leafwise.apply(_multislerp, trees, weights, options=options, donate=donate)


def karcher(
    trees: Sequence[types.Params],
    weights: Any = None,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    donate: bool = False,
) -> types.Params:
    """The Riemannian mean of M directions, times the mean norm.

    Args:
        trees: M >= 2 trees. A leaf shorter than `tol` has no direction and is left out
            of their mean; its norm, 0, stays in the mean norm. Leaves that all are so
            short have their plain mean.
        weights: f32[M], traced, divided by their sum; None for equal ones.
        max_iter: gradient steps at most.
        tol: of the step, in radians.
        donate: let the result overwrite the buffers of the first tree.

    Raises:
        ValueError: trees that differ, wrong weights; everything at once.

    >>> x, y = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> karcher([x, y], [1, 1])["w"].round(2)
    Array([1.41, 1.41], dtype=float32)
    """
    trees, weights = _several(trees, weights, None, normalize=True)
    options = {"max_iter": max_iter, "tol": tol}
    return leafwise.apply(_karcher, trees, weights, options=options, donate=donate)


def model_stock(
    base: types.Params,
    finetuned: Sequence[types.Params],
    filter_wise: bool = False,
    *,
    donate: bool = False,
) -> types.Params:
    """The point between the base and the average that the angles ask for.

    Jang et al. 2024, equation 7: the more the finetuned models agree in their
    difference from the base, the nearer the result is to their average.

    Args:
        base: what the others were finetuned from.
        finetuned: N >= 2 trees.
        filter_wise: an angle for each slice along the last axis, not for each leaf.
        donate: let the result overwrite the buffers of the base.

    Raises:
        ValueError: trees that differ, or fewer than two; everything at once.

    >>> base, x = {"w": jnp.zeros(2)}, {"w": jnp.array([2.0, 0.0])}
    >>> model_stock(base, [x, x])["w"].tolist()  # they agree: their average
    [2.0, 0.0]
    """
    trees = [base, *finetuned]
    wrong = [] if len(trees) > 2 else ["model_stock needs two finetuned trees or more"]
    checks.refuse(checks.problems(trees) + wrong, "these trees cannot be merged")
    options = {"filter_wise": bool(filter_wise)}
    return leafwise.apply(_stock, trees, options=options, donate=donate)


def _slerp(leaves, t):
    a, b = leaves
    c = coefficients_lib.slerp_coefficients(coefficients_lib.gram(leaves), t)
    point = linear.weighted_sum(leaves, c)
    chord = (c[0] == 1 - t) & (c[1] == t)
    exact = jnp.where(t == 1, b, jnp.where(chord & (a == b), a, point))
    return leafwise.pin(point, jnp.where(t == 0, a, exact))


def _nuslerp(leaves, weights, *, along, has_base):
    return _span(
        leaves, has_base, along, coefficients_lib.nuslerp_coefficients, weights
    )


def _multislerp(leaves, weights, *, has_base, normalize):
    weights = weights / jnp.sum(weights, axis=0) if normalize else weights
    return _span(
        leaves, has_base, "leaf", coefficients_lib.multislerp_coefficients, weights
    )


def _karcher(leaves, weights, *, max_iter, tol):
    weights = weights / jnp.sum(weights, axis=0)
    options = {"max_iter": max_iter, "tol": tol}
    formula = functools.partial(coefficients_lib.karcher_coefficients, **options)
    return _span(leaves, False, "leaf", formula, weights)


def _stock(leaves, *, filter_wise):
    along = "row" if filter_wise else "leaf"
    return _span(leaves, True, along, coefficients_lib.stock_coefficients)


def _span(leaves, has_base, along, formula, *coefficients):
    """The combination of leaves, or of their differences from the first."""
    if not has_base:
        weights = formula(coefficients_lib.gram(leaves, along), *coefficients)
        return linear.weighted_sum(leaves, weights)
    weights = formula(coefficients_lib.gram(_differences(leaves), along), *coefficients)
    # Subtracted again, else compilers keep all differences until there are weights.
    leaves, weights = jax.lax.optimization_barrier((leaves, weights))
    return leaves[0] + linear.weighted_sum(_differences(leaves), weights)


def _differences(leaves):
    base, *others = leaves
    return [leaf - base for leaf in others]


def _several(trees, weights, base, normalize):
    trees = list(trees)
    wrong = [] if len(trees) > 1 else ["two trees are needed, or more"]
    weights, lines = checks.coefficients(
        weights, len(trees), name="weights", normalize=normalize,
        like=trees[0] if trees else None,
    )  # fmt: skip
    trees = trees if base is None else [base, *trees]
    wrong += checks.problems(trees) if trees else []
    checks.refuse(wrong + lines, "these trees cannot be merged")
    return trees, weights
