"""Merges that keep a part of every task vector, chosen by size: TIES, Breadcrumbs, SCE.

    theta = base + lam * sum_k w_k s(theta_k - base)   [/ sum_k w_k]

`s` keeps the largest elements (`ties`), or these without the very largest
(`breadcrumbs`); `merge.sparse.sums` has the sum and the election of signs.
Chosen at random: `merge.sparse.at_random`. What holds for every merge (rounding
once, placement, tied and integer leaves) is in `merge.trees.leafwise`.

Yadav et al. 2023, *TIES-Merging*, arXiv:2306.01708. Davari and Belilovsky 2023, *Model
Breadcrumbs*, arXiv:2312.06795. Wan et al. 2024, *FuseChat* (SCE), arXiv:2408.07990.
Where papers and the widely used mergekit 0.1.5 differ, both readings are offered.

Weights and lam are traced, and so are densities (as numbers of elements): one compiled
program serves all of them. The choice of elements is piecewise constant: gradients go
through weights, lam and the elements kept.

Deviations: elements of one size as the cut are all kept, or the first of them by index
(`ties=`), where an unstable sort keeps arbitrary ones: on bf16 checkpoints 1 to 2 % of
the elements tie there. NaN in any model is NaN in the result.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import types
from jaxlab.merge import by_path
from jaxlab.merge.sparse import select_on_device, sums, thresholds
from jaxlab.merge.trees import checks, leafwise

TIES = ("keep", "lowest_index")


def ties(
    base: types.Params,
    finetuned: Sequence[types.Params],
    weights: Any = None,
    density: Any = 1.0,
    *,
    lam: Any = 1.0,
    scope: str = "leaf",
    ties: str = "keep",
    select: str = "auto",
    rescale: str | None = None,
    normalize: bool = True,
    donate: bool = False,
) -> types.Params:
    """TIES: trim to the largest elements, elect signs, average those that agree.

    Args:
        base: a tree.
        finetuned: M >= 1 trees like it.
        weights: f32[M], a scalar for all, None for ones, or `weights_by_path`; traced.
        density: share of each task vector that is kept, in [0, 1]: a scalar, [M], or by
            path. `max(1, int(density * n))` of n elements; 0 keeps none.
        lam: scales the merged task vector; traced.
        scope: "leaf" trims each leaf on its own, as mergekit; "global" each task vector
            as one, over all floating leaves, as the paper.
        ties: "keep" keeps every element as large as the smallest one kept;
            "lowest_index" exactly the number asked for, of equals those that come
            first. It costs as much again where selection is by counting, and on the
            host one pass more over leaves that have such equals.
        select: "auto", "host" or "bisect"; the result is the same.
            See `merge.sparse.thresholds`.
        rescale: "l1" scales what is kept of each leaf to the L1 norm of the whole, as
            mergekit's `rescale`; None, its default and the paper, does not.
        normalize: divide by the weights of the models that agree, element by element.
        donate: let the result overwrite the buffers of `base`.

    Returns:
        A tree like `base`; its equal, bit for bit, where lam or all weights are 0.

    Raises:
        ValueError: trees that differ, numbers that are wrong; everything at once.

    >>> base, math = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1.0, -3.0, 0.5])}
    >>> ties(base, [math], density=0.5)
    {'w': Array([ 4.,  0., -3.,  0.], dtype=float32)}
    """
    wrong = one_of("scope", scope, thresholds.SCOPES) + one_of("ties", ties, TIES)
    trees, weights, lam, (density,) = check(
        base, finetuned, weights, lam, {"density": (density, 0.0, 1.0)},
        wrong + _choices(select, rescale), varies=scope == "leaf",
        exact=ties == "lowest_index",
    )  # fmt: skip
    exact = ties == "lowest_index"
    cuts, stops = thresholds.of_sizes(
        trees,
        lambda leaf, size: thresholds.ranks_of(of_leaf(density, leaf), size)[None],
        scope=scope,
        select=select,
        exact=exact,
    )
    options = {"consensus": True, "normalize": normalize, "rescale": rescale}
    coefficients = (weights, lam, cuts, *([stops] if exact else []))
    return leafwise.apply(_trim, trees, *coefficients, options=options, donate=donate)


def breadcrumbs(
    base: types.Params,
    finetuned: Sequence[types.Params],
    weights: Any = None,
    density: Any = 1.0,
    gamma: Any = 0.01,
    *,
    consensus: bool = False,
    lam: Any = 1.0,
    select: str = "auto",
    rescale: str | None = None,
    normalize: bool = False,
    donate: bool = False,
) -> types.Params:
    """Breadcrumbs: drop the largest elements of each leaf and the smallest.

    Of n elements the `int(gamma n)` largest go, and then the smallest, until
    `int(density n)` are left; fewer large ones go where too few would be left. As in
    mergekit a density of 1 keeps everything. The paper names the two thresholds by
    percentiles beta and 1 - gamma; density is their distance.

    Args:
        base, finetuned, weights, lam, select, rescale, donate: as for `ties`.
        density: share that is kept, in [0, 1]: a scalar, [M], or by path.
        gamma: share of the largest that is dropped, in [0, 1]: likewise.
        consensus: elect signs as `ties` does (mergekit's `breadcrumbs_ties`).
        normalize: divide by the sum of the weights (that agree, with consensus).

    Raises:
        ValueError: trees that differ, numbers that are wrong; everything at once.

    >>> base, math = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1.0, -3.0, 0.5])}
    >>> breadcrumbs(base, [math], density=0.5, gamma=0.25)
    {'w': Array([ 0.,  1., -3.,  0.], dtype=float32)}
    """
    trees, weights, lam, (density, gamma) = check(
        base, finetuned, weights, lam,
        {"density": (density, 0.0, 1.0), "gamma": (gamma, 0.0, 1.0)},
        _choices(select, rescale),
    )  # fmt: skip
    cuts, _ = thresholds.of_sizes(
        trees,
        lambda leaf, size: thresholds.ranks_between(
            of_leaf(density, leaf), of_leaf(gamma, leaf), size
        ),
        select=select,
    )
    options = {"consensus": consensus, "normalize": normalize, "rescale": rescale}
    return leafwise.apply(
        _trim, trees, weights, lam, cuts, options=options, donate=donate
    )


def sce(
    base: types.Params,
    finetuned: Sequence[types.Params],
    *,
    select_topk: Any = 1.0,
    select: str = "auto",
    donate: bool = False,
) -> types.Params:
    """SCE: select by variance, calculate weights from energies, erase by sign.

    Leaf by leaf: keep the elements in which the models' task vectors vary most; weigh
    each model by the mean square of what is kept; add the weighted mean of the elements
    that have the elected sign, as in `ties` but elected without weights.

    Args:
        base, finetuned, select, donate: as for `ties`.
        select_topk: share of the elements with non-zero variance that is kept; 1 keeps
            all elements, those of no variance too. Traced.

    Raises:
        ValueError: trees that differ, numbers that are wrong; everything at once.

    >>> models = [{"w": jnp.array([3.0, 2.0])}, {"w": jnp.array([1.0, 1.0])}]
    >>> sce({"w": jnp.zeros(2)}, models, select_topk=0.5)
    {'w': Array([2.8, 0. ], dtype=float32)}
    """
    trees, _, _, (share,) = check(
        base, finetuned, None, 1.0, {"select_topk": (select_topk, 0.0, 1.0)},
        one_of("select", select, thresholds.SELECT), varies=False,
    )  # fmt: skip
    share = share[0]
    is_known = not checks.is_traced(share)
    if is_known and share >= 1:
        cut = np.uint32(0)
    elif is_known and share <= 0:
        cut = np.uint32(0xFFFFFFFF)
    else:
        cut = thresholds.of_variances(trees, share, select=select)
    return leafwise.apply(_select, trees, cut, jnp.asarray(share), donate=donate)


def check(
    base: Any,
    finetuned: Sequence[Any],
    weights: Any,
    lam: Any,
    shares: dict[str, tuple[Any, float, float]],
    wrong: Sequence[str],
    *,
    varies: bool = True,
    exact: bool = False,
) -> tuple[list[Any], Any, Any, list[Any]]:
    """What every sparse merge is given, or one ValueError with all that is wrong.

    Args:
        base, finetuned, weights, lam: as for `ties`.
        shares: by name, (value, least, most) of numbers that each model has.
        wrong: lines found already.
        varies: shares by path make sense.
        exact: every element of a leaf has its index in one word.

    Returns:
        The trees, base first; weights [M] and lam, or `ByLeaf`; shares [M] or `ByLeaf`.
    """
    if isinstance(finetuned, dict):
        raise ValueError("finetuned must be a sequence of trees, not one mapping")
    trees = [base, *finetuned]
    size = len(trees) - 1
    lines = [*checks.problems(trees), *wrong]
    lines += [] if size else ["no finetuned trees are given"]
    for name, leaf in checks.tree.flatten(base).items():
        if jnp.issubdtype(checks.dtype_of(leaf), jnp.complexfloating):
            lines.append(f"{name}: complex numbers have no sign")
        lines += _too_large(name, np.shape(leaf), exact)
    weights, more = checks.coefficients(weights, size, name="weights", like=base)
    lines += more
    lam, more = checks.scalar(lam, name="lam", like=base)
    lines += more
    values = []
    for name, (value, least, most) in shares.items():
        value, more = checks.coefficients(value, size, name=name, like=base)
        lines += more or _outside(value, name, least, most, varies)
        values.append(value)
    checks.refuse(lines, "these trees cannot be merged")
    return trees, weights, lam, values


def of_leaf(value: Any, leaf: int) -> Any:
    """A coefficient for one leaf."""
    return value.values[leaf] if isinstance(value, by_path.ByLeaf) else value


def one_of(name: str, value: Any, known: Sequence[Any]) -> list[str]:
    """A line on an option that is not one of those known; none where it is."""
    return [] if value in known else [f"{name} {value!r} is not one of {known}"]


def _too_large(name, shape, exact):
    size = int(np.prod(shape, dtype=object))
    if size <= select_on_device.LIMIT:
        return []
    if exact:
        return [f"{name} has {size} elements: ties='lowest_index' takes less than 2^32"]
    if shape[0] > 2**16 or size // shape[0] > select_on_device.LIMIT:
        return [
            f"{name} has {size} elements: reshape it to at most 2^16 slices of less "
            "than 2^32 along its first axis"
        ]
    return []


def _outside(value, name, least, most, varies):
    by_leaf = isinstance(value, by_path.ByLeaf)
    if by_leaf and not varies:
        return [f"{name} by path: it is one number for all leaves here"]
    for array in value.values if by_leaf else [value]:
        if np.ndim(array) != 1:
            return [f"{name} must be one number per leaf; unstack layers to vary it"]
        if not checks.is_traced(array) and not all(least <= x <= most for x in array):
            return [f"{name} {np.asarray(array).tolist()} not in [{least}, {most}]"]
    return []


def _choices(select, rescale):
    return one_of("select", select, thresholds.SELECT) + one_of(
        "rescale", rescale, (None, "l1")
    )


def _trim(leaves, weights, lam, cuts, stop=None, *, consensus, normalize, rescale):
    """Leaf or chunk: keeps what lies between the `cuts` [1 or 2, M].

    With `rescale` it needs the whole leaf.
    """
    base, *finetuned = leaves
    thinned = []
    for k, model in enumerate(finetuned):
        delta = model - base
        upper = cuts[1, k] if len(cuts) > 1 else None
        mask = sums.within(delta, cuts[0, k], upper, None if stop is None else stop[k])
        thin = sums.keep(delta, mask)
        if rescale:
            thin = thin * sums.factor(sums.size(delta), sums.size(thin))
        thinned.append(thin)
    return sums.combine(
        base, thinned, weights, lam, consensus=consensus, normalize=normalize
    )


def _select(leaves, cut, share):
    # Each time anew from the models, else compilers keep all their differences.
    leaves, cut = jax.lax.optimization_barrier((leaves, cut))
    energies = jnp.stack([sums.energy(d) for d in _varying(leaves, cut, share)])
    shares = sums.shares(energies, float(leaves[0].size))
    leaves, shares = jax.lax.optimization_barrier((leaves, shares))
    return sums.combine_by_shares(leaves[0], _varying(leaves, cut, share), shares)


def _varying(leaves, cut, share):
    """Differences from the base, where they vary enough."""
    base, *finetuned = leaves
    differences = [model - base for model in finetuned]
    patterns = select_on_device.bits(sums.variance(differences))
    mask = (share >= 1) | ((patterns >= cut) & (share > 0))
    return [sums.keep(delta, mask) for delta in differences]
