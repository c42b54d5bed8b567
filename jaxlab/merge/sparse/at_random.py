"""Merges that keep a random part of every task vector: DARE and DELLA.

    theta = base + lam * sum_k w_k s(theta_k - base)   [/ sum_k w_k]

`s` drops elements with one probability (`dare`) or with one that falls with their size
(`della`), and scales the rest up. `merge.sparse.by_size` keeps elements by size.

Yu et al. 2023, *Language Models are Super Mario* (DARE), arXiv:2311.03099. Deep et al.
2024, *DELLA-Merging*, arXiv:2406.11617. Two readings of the rescaling:

    "l1"           a leaf gets the L1 norm back that it had before (mergekit 0.1.5)
    "expectation"  an element is divided by its probability of being kept (the papers),
                   so that its expectation is what it was

The masks come from `merge.sparse.random_bits`: they depend on the key, the
leaf's path (of tied leaves the first) and the model's place among the finetuned ones,
and on nothing else: not on sharding, nor on the other leaves. Or they are given.
mergekit's own masks cannot be repeated: it draws from torch's global generator.

Deviation: NaN in any model is NaN in the result; rescaled by L1, a leaf with a NaN is
NaN wherever that model's mask keeps it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import tree, types
from jaxlab.merge import by_path
from jaxlab.merge.sparse import (
    by_size,
    random_bits,
    select_on_device,
    select_on_host,
    sums,
    thresholds,
)
from jaxlab.merge.trees import checks, leafwise

RESCALE = (None, "l1", "expectation")


def dare(
    base: types.Params,
    finetuned: Sequence[types.Params],
    weights: Any = None,
    density: Any = 1.0,
    *,
    key: jax.Array | None = None,
    masks: Sequence[Any] | None = None,
    rescale: str | None = "l1",
    consensus: bool = False,
    lam: Any = 1.0,
    normalize: bool = False,
    donate: bool = False,
) -> types.Params:
    """DARE: drop elements at random, rescale the rest.

    Args:
        base: a tree.
        finetuned: M >= 1 trees like it.
        weights: f32[M], a scalar for all, None for ones, or `weights_by_path`; traced.
        density: probability of being kept, in [0, 1]: a scalar, [M], or by path;
            traced.
        key: `jax.random.key` or a legacy key; traced.
        masks: instead of a key, M trees like `base`, True (or not 0) where an element
            is kept; `density` then serves only the "expectation". Leaves in the place
            of integer leaves are ignored.
        rescale: "l1", "expectation" or None; see the top of the file.
        consensus: elect signs as `ties` does (mergekit's `dare_ties`).
        lam: scales the merged task vector; traced.
        normalize: divide by the sum of the weights (that agree, with consensus).
        donate: let the result overwrite the buffers of `base`.

    Returns:
        A tree like `base`; its equal, bit for bit, where lam or all weights are 0.

    Raises:
        ValueError: trees that differ, numbers that are wrong, neither key nor masks;
            everything at once.

    >>> base, masks = {"w": jnp.zeros(4)}, [{"w": np.array([1, 0, 0, 1])}]
    >>> dare(base, [{"w": jnp.ones(4)}], density=0.5, masks=masks)
    {'w': Array([2., 0., 0., 2.], dtype=float32)}
    """
    shares = {"density": (density, 0.0, 1.0)}
    return _drop(
        base, finetuned, weights, lam, shares, key, masks, rescale, donate,
        {"consensus": consensus, "normalize": normalize},
    )  # fmt: skip


def della(
    base: types.Params,
    finetuned: Sequence[types.Params],
    weights: Any = None,
    density: Any = 1.0,
    epsilon: Any = 0.15,
    *,
    key: jax.Array | None = None,
    masks: Sequence[Any] | None = None,
    rescale: str | None = "l1",
    consensus: bool = True,
    lam: Any = 1.0,
    normalize: bool | None = None,
    donate: bool = False,
) -> types.Params:
    """DELLA: drop small elements with a higher probability than large ones.

    In each row the element of rank r of n, 0 the smallest in magnitude, is kept with
    probability `density - epsilon + 2 epsilon r / (n - 1)`. A row runs along axis 1, as
    in mergekit; vectors are one row. Of equal elements the first ranks lower. A row of
    one element is kept with probability `density` (mergekit fails there). A density of
    1 keeps all, of 0 none.

    The ranks need a sort of every row (on the host for concrete CPU arrays, with the
    same result), and of a leaf that is sharded along axis 1 the whole rows: those are
    gathered. With `masks` nothing is sorted for "l1" and None.

    Args:
        base, finetuned, weights, key, masks, rescale, lam, donate: as for `dare`.
        density: mean probability of being kept, in [0, 1]: a scalar, [M], or by path.
        epsilon: half the range of the probabilities; `density - epsilon` and
            `density + epsilon` must lie strictly between 0 and 1 unless density is 0
            or 1.
        consensus: elect signs (mergekit's `della`; False is its `della_linear`).
        normalize: divide by the sum of the weights (that agree, with consensus). None:
            as mergekit does, with consensus only.

    Raises:
        ValueError: as for `dare`.

    >>> base, model = {"w": jnp.zeros(4)}, {"w": jnp.ones(4)}
    >>> della(base, [model], density=1.0, key=jax.random.key(0))
    {'w': Array([1., 1., 1., 1.], dtype=float32)}
    """
    shares = {"density": (density, 0.0, 1.0), "epsilon": (epsilon, 0.0, 0.5)}
    normalize = consensus if normalize is None else normalize
    return _drop(
        base, finetuned, weights, lam, shares, key, masks, rescale, donate,
        {"consensus": consensus, "normalize": normalize},
    )  # fmt: skip


def probabilities(
    delta: jax.Array, density: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """DELLA's probability of being kept, for f32[...] of whole rows (axis 1)."""
    return chances(row_ranks(delta), density, epsilon)


def row_ranks(delta: jax.Array) -> jax.Array:
    """The rank of every magnitude in its row, from 0; as of `select_on_host`, traced.

    Rows run along axis 1; a vector or a scalar is one row.
    """
    axis = min(1, delta.ndim - 1)
    if not delta.ndim:
        return jnp.zeros((), delta.dtype)
    order = jnp.argsort(select_on_device.bits(delta), axis=axis, stable=True)
    return jnp.argsort(order, axis=axis).astype(delta.dtype)


def chances(ranks: jax.Array, density: jax.Array, epsilon: jax.Array) -> jax.Array:
    """DELLA's probability of being kept.

    Args:
        ranks: f32[...] from `row_ranks`, of whole rows.
        density, epsilon: scalars.
    """
    last = ranks.shape[min(1, ranks.ndim - 1)] - 1 if ranks.ndim else 0
    share = ranks / last if last > 0 else jnp.full(ranks.shape, 0.5, ranks.dtype)
    between = density - epsilon + sums.narrow_product(2 * epsilon * share)
    return jnp.where(density >= 1, 1, jnp.where(density <= 0, 0, between))


def _drop(base, finetuned, weights, lam, shares, key, masks, rescale, donate, options):
    """What `dare` and `della` share: checks, masks or streams, the run."""
    wrong = by_size.one_of("rescale", rescale, RESCALE)
    if (key is None) == (masks is None):
        wrong.append(
            "random masks need a key: key=jax.random.key(seed), or masks=[...]"
            if key is None
            else "a key and masks are given; only one of them can decide"
        )
    if masks is not None:
        masks = list(masks)
        wrong += _wrong_masks(base, masks, len(finetuned))
    trees, weights, lam, shares = by_size.check(
        base, finetuned, weights, lam, shares, wrong
    )
    if len(shares) > 1:
        checks.refuse(_wrong_range(*shares), "these trees cannot be merged")
    more, extra = [], None
    if masks is None:
        streams = _streams(_words(key), trees)
        if len(shares) > 1 and _all_on_host(trees):
            more, extra = _host_ranks(trees), "ranks"
    else:
        streams = np.zeros((len(finetuned), 2), np.uint32)
        # Integer leaves are copied: there the base stands in for the mask.
        more, extra = [_where_inexact(mask, base) for mask in masks], "masks"
    options = options | {"rescale": rescale, "extra": extra}
    return leafwise.apply(
        _drop_in_leaf, trees + more, weights, lam, streams, *shares,
        options=options, donate=donate,
    )  # fmt: skip


def _drop_in_leaf(
    leaves, weights, lam, streams, density, epsilon=None, *, extra, rescale, **options
):
    """One leaf; behind the models come M masks or ranks, as `extra` says."""
    count = len(density)
    leaves, more = leaves[: 1 + count], leaves[1 + count :]
    thinned = []
    for k in range(count):
        delta = leaves[1 + k] - leaves[0]
        chance = density[k]
        if epsilon is not None:
            ranks = more[k] if extra == "ranks" else row_ranks(delta)
            chance = chances(ranks, density[k], epsilon[k])
        if extra == "masks":
            mask = more[k] != 0
        else:
            mask = random_bits.uniform(streams[k], delta.shape, xp=jnp) < chance
        if extra != "masks":  # one mask, and its sort, after another
            leaves, mask = jax.lax.optimization_barrier((leaves, mask))
        thin = sums.keep(leaves[1 + k] - leaves[0], mask)
        if rescale == "l1":
            thin = thin * sums.factor(sums.size(delta), sums.size(thin))
        elif rescale == "expectation":
            thin = thin / jnp.where(chance > 0, chance, 1)
        thinned.append(thin)
    return sums.combine(leaves[0], thinned, weights, lam, **options)


def _all_on_host(trees) -> bool:
    columns = zip(*map(jax.tree.leaves, trees), strict=True)
    return all(thresholds.is_host(c) for c in columns if checks.is_inexact(c[0]))


def _host_ranks(trees):
    """Trees of ranks for the models: sorting is several times faster in numpy."""
    columns = list(zip(*map(jax.tree.leaves, trees), strict=True))
    ranks = {}
    for column in columns:
        name = tuple(map(id, column))
        if name not in ranks and checks.is_inexact(column[0]):
            base, *tuned = map(thresholds.to_numpy, column)
            ranks[name] = [select_on_host.row_ranks(base, model) for model in tuned]
    rows = [ranks.get(tuple(map(id, c)), c[1:]) for c in columns]
    structure = jax.tree.structure(trees[0])
    return [jax.tree.unflatten(structure, column) for column in zip(*rows, strict=True)]


def _words(key) -> Any:
    """A key's words, on the host where they are known."""
    if jnp.issubdtype(checks.dtype_of(key), jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.dtype != jnp.uint32 or key.ndim != 1:
        raise ValueError(
            f"key of {tree.describe(key)} is not one key; use jax.random.key(seed), "
            "and jax.vmap for several"
        )
    return key if checks.is_traced(key) else np.asarray(key)


def _streams(words, trees):
    """`uint32[M, 2]` by leaf; tied leaves share those of the first path."""
    columns = list(zip(*map(jax.tree.leaves, trees), strict=True))
    streams = {}
    for name, column in zip(tree.flatten(trees[0]), columns, strict=True):
        if checks.is_inexact(column[0]) and tuple(map(id, column)) not in streams:
            each = [random_bits.stream(words, name, k) for k in range(len(trees) - 1)]
            module = jnp if checks.is_traced(each) else np
            streams[tuple(map(id, column))] = module.stack(each)
    return by_path.ByLeaf([streams.get(tuple(map(id, column))) for column in columns])


def _wrong_masks(base, masks, count):
    lines = [] if len(masks) == count else [f"{len(masks)} masks for {count} trees"]
    for number, mask in enumerate(masks):
        differences = tree.differences([base, mask], dtypes=False)
        lines += [line.replace("tree 1", f"mask {number}") for line in differences]
    return lines


def _where_inexact(mask, base):
    leaves, structure = jax.tree.flatten(base)
    return jax.tree.unflatten(
        structure,
        [
            chosen if checks.is_inexact(leaf) else leaf
            for leaf, chosen in zip(leaves, jax.tree.leaves(mask), strict=True)
        ],
    )


def _wrong_range(density, epsilon):
    """Lines on epsilons that lead out of the range of probabilities."""
    by_leaf = [x for x in (density, epsilon) if isinstance(x, by_path.ByLeaf)]
    lines = {}
    for leaf in range(len(by_leaf[0].values) if by_leaf else 1):
        pair = [by_size.of_leaf(x, leaf) for x in (density, epsilon)]
        if checks.is_traced(pair):
            continue
        for d, e in zip(*map(np.asarray, pair), strict=True):
            if 0 < d < 1 and (d <= e or d + e >= 1):
                line = f"density {d:g} +- epsilon {e:g} must lie between 0 and 1"
                lines[line + f"; use an epsilon below {min(d, 1 - d):g}"] = None
    return list(lines)
