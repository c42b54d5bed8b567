"""The magnitudes at which trees are cut: every leaf on its own, or all as one vector.

Which way a cut is found does not change it, to the bit:

- on the host (`merge.sparse.select_on_host`), for concrete arrays of one CPU
  device, also while somebody else's `jit` over the weights is traced;
- by counting (`merge.sparse.select_on_device`), under `jit`, on accelerators,
  sharded.

Tied leaves (one array object at two paths) are one vector, counted once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.merge import by_path
from jaxlab.merge.sparse import select_on_device, select_on_host, sums
from jaxlab.merge.trees import checks

SELECT = ("auto", "host", "bisect")
SCOPES = ("leaf", "global")


def of_sizes(
    trees: Sequence[Any],
    ranks: Callable[[int, int], Any],
    *,
    scope: str = "leaf",
    select: str = "auto",
    exact: bool = False,
) -> tuple[Any, Any]:
    """Cuts of `|theta_k - base|`.

    Args:
        trees: base and M models, found alike.
        ranks: (number of the leaf, elements) -> integers [R, M]: which largest
            magnitudes; concrete, or traced as in `ranks_of`.
        scope: "leaf" or "global".
        select: "auto", "host" (refused where it cannot be) or "bisect".
        exact: find also where to stop among the elements equal to the first cut.

    Returns:
        Patterns `uint[R, M]` for the first and, if `exact`, indices `uint32[M]`, each
        a `ByLeaf` or one array for all leaves; else None.
    """
    leaves = [jax.tree.leaves(tree) for tree in trees]
    columns = list(zip(*leaves, strict=True))
    first_of = {}
    for i, column in enumerate(columns):
        if checks.is_inexact(column[0]):
            first_of.setdefault(tuple(map(id, column)), i)
    merged = [columns[i] for i in first_of.values()]
    sizes = [int(np.prod(np.shape(column[0]))) for column in merged]
    if scope == "global":
        groups, wanted = [merged] if merged else [], [ranks(0, sum(sizes))]
    else:
        groups = [[column] for column in merged]
        wanted = [ranks(i, n) for i, n in zip(first_of.values(), sizes, strict=True)]
    results = _cut_groups(groups, wanted, select, exact)
    by_column = {}
    for group, (cut, stops) in zip(groups, results, strict=True):
        for column, stop in zip(group, stops, strict=True):
            by_column[tuple(map(id, column))] = cut, stop
    rows = [by_column.get(tuple(map(id, column)), (None, None)) for column in columns]
    return tuple(by_path.ByLeaf([row[i] for row in rows]) for i in (0, 1))


def of_variances(trees: Sequence[Any], share: Any, *, select: str = "auto") -> Any:
    """Cuts of the variance over models that keep a share of its non-zero elements.

    Args:
        trees: base and M models, found alike.
        share: scalar in [0, 1]; the number kept is rounded down in float32.

    Returns:
        A `ByLeaf` of patterns, scalar.
    """
    cuts = {}
    for column in zip(*map(jax.tree.leaves, trees), strict=True):
        name = tuple(map(id, column))
        if name not in cuts and checks.is_inexact(column[0]):
            cuts[name] = _variance_cut(column, share, select)
    columns = zip(*map(jax.tree.leaves, trees), strict=True)
    return by_path.ByLeaf([cuts.get(tuple(map(id, column))) for column in columns])


def ranks_of(density: Any, size: int) -> Any:
    """The rank of the smallest element that a density keeps: how many it keeps.

    That is `max(1, int(density * size))`; 0, above all elements, for density 0; and
    `size + 1`, below all, for density 1, where there is nothing to look for.

    Args:
        density: [M] in [0, 1]. A float32 stands for the shortest decimal that it
            prints as: 0.7 of 10 elements are 7. Traced, the product is rounded to
            float32 first: of leaves above 2^24 elements it may be off by their 2^-24.
        size: elements.

    Returns:
        [M]: int64; traced uint32, or float32 where the size is beyond that.
    """
    if checks.is_traced(density):
        count = _floor(jnp.asarray(density, jnp.float32), size)
        count = jnp.clip(count, min(1, size), count.dtype.type(size))
        count = jnp.where(density >= 1, count.dtype.type(size + 1), count)
        return jnp.where(density <= 0, count.dtype.type(0), count)
    return np.array([_rank(decimal(d), size) for d in np.asarray(density)], np.int64)


def ranks_between(density: Any, gamma: Any, size: int) -> Any:
    """The ranks [2, M] of the smallest and of the largest element of Breadcrumbs.

    Of `int(gamma * size)` largest elements dropped so many stay that `int(density *
    size)` are kept. For all elements that is (size + 1, 0), for none (0, 0).

    Args:
        density, gamma: [M] in [0, 1], read and rounded as in `ranks_of`.
        size: elements.
    """
    if checks.is_traced((density, gamma)):
        density, gamma = (jnp.asarray(x, jnp.float32) for x in (density, gamma))
        count, top = (_floor(x, size) for x in (density, gamma))
        count = jnp.minimum(count, count.dtype.type(size))
        module, whole = jnp, density >= 1
    else:
        count, top = (
            np.array([int(decimal(x) * size) for x in np.asarray(values)], np.int64)
            for values in (density, gamma)
        )
        module, whole = np, np.asarray(density) >= 1
    top = module.minimum(top, count.dtype.type(size) - count)
    beyond = count.dtype.type(size + 1)
    last = module.where(whole, beyond, module.where(count == 0, 0, top + count))
    first = module.where(whole | (top == 0), 0, top + 1)
    return module.stack([last, first]).astype(count.dtype)


def decimal(value: Any) -> float:
    """A number; of a float32 the shortest decimal that it prints as."""
    narrow = np.float32(value)
    return float(str(narrow)) if narrow == value else float(value)


def _floor(share, size):
    count = jnp.floor(share * np.float32(size))
    return count.astype(jnp.uint32) if size < select_on_device.LIMIT else count


def _rank(density, size):
    if density >= 1:
        return size + 1
    return 0 if density <= 0 else min(size, max(1, int(density * size)))


def _cut_groups(groups, wanted, select, exact):
    """(cut [R, M], stops of each leaf [M]) for groups of leaves cut together."""
    on_host = [
        _selects_on_host(select, group, own)
        for group, own in zip(groups, wanted, strict=True)
    ]
    if select == "host" and not all(on_host):
        raise ValueError(
            "select='host' needs concrete arrays of one CPU device and a density that "
            "is not traced; use select='auto'"
        )
    counted = [i for i, host in enumerate(on_host) if not host]
    words = [select_on_device.words(wanted[i]) for i in counted]
    by_counting = _count([groups[i] for i in counted], words, exact) if counted else []
    results = dict(zip(counted, by_counting, strict=True))
    for i in range(len(groups)):
        if i not in results:
            results[i] = _cut_on_host(groups[i], np.asarray(wanted[i]), exact)
    return [results[i] for i in range(len(groups))]


def _selects_on_host(select, columns, ranks) -> bool:
    """The choice between the two ways; `ranks` or a share says which magnitudes."""
    if select == "bisect" or checks.is_traced(ranks):
        return False
    return all(map(is_host, columns))


def _cut_on_host(group, ranks, exact):
    arrays = [[to_numpy(leaf) for leaf in column] for column in group]
    rows, stops = [], []
    for k in range(ranks.shape[1]):
        parts = [(column[0], column[1 + k]) for column in arrays]
        cuts = select_on_host.cuts(parts, ranks[:, k].tolist())
        rows.append([cut for cut, _ in cuts])
        if exact:
            stops.append(select_on_host.stop_after(parts, *cuts[0]))
    size = max(select_on_host.wide(column[0].dtype).itemsize for column in arrays)
    cut = np.array(rows, f"u{size}").T
    by_leaf = [np.array(row, np.uint32) for row in zip(*stops, strict=True)]
    return cut, by_leaf or [None] * len(group)


@functools.partial(jax.jit, static_argnums=2)
def _count(groups, words, exact):
    results = []
    for group, ranks in zip(groups, words, strict=True):
        rows = []
        for k in range(ranks.shape[1]):
            parts = [_patterns(column[0], column[1 + k]) for column in group]
            cut = jax.vmap(select_on_device.largest, (None, 0))(parts, ranks[:, k])
            stops = select_on_device.stops(parts, cut[0], ranks[0, k]) if exact else []
            rows.append((cut, stops))
            # One model after another: the patterns of one are alive at a time.
            group, rows = jax.lax.optimization_barrier((group, rows))
        cuts, stops = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        results.append((cuts.T, stops or [None] * len(group)))
    return results


def _patterns(base, finetuned):
    base, finetuned = jnp.asarray(base), jnp.asarray(finetuned)
    wide = checks.wide_dtype(base)
    return select_on_device.bits(finetuned.astype(wide) - base.astype(wide))


def _variance_cut(column, share, select):
    if _selects_on_host(select, [column], share):
        # These arrays are constants inside somebody's jit, too.
        with jax.ensure_compile_time_eval():
            spread = np.asarray(_spread(column))
        nonzero = np.count_nonzero(select_on_host.bits(None, spread))
        rank = int(np.float32(nonzero) * np.float32(share))
        ((cut, _),) = select_on_host.cuts([(None, spread)], [rank])
        return np.array(cut, f"u{spread.dtype.itemsize}")
    if select == "host":
        raise ValueError("select='host' needs concrete arrays of one CPU device")
    return _count_variance(column, share)


@jax.jit
def _spread(column):
    base, *finetuned = (jnp.asarray(leaf) for leaf in column)
    wide = checks.wide_dtype(base)
    return sums.variance([x.astype(wide) - base.astype(wide) for x in finetuned])


@jax.jit
def _count_variance(column, share):
    patterns = select_on_device.bits(_spread(column))
    high, low = select_on_device.total(patterns > 0).astype(jnp.float32)
    rank = jnp.floor((high * 2**16 + low) * jnp.asarray(share, jnp.float32))
    return select_on_device.largest([patterns], select_on_device.words(rank))


def is_host(column: Sequence[Any]) -> bool:
    """Whether leaves are concrete arrays of one CPU device, or of numpy."""
    return all(map(_is_host_leaf, column))


def _is_host_leaf(leaf) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return False
    if not isinstance(leaf, jax.Array):
        return True
    (device, *others) = leaf.sharding.device_set
    return not others and device.platform == "cpu"


def to_numpy(leaf: Any) -> np.ndarray:
    """A leaf for the host, of the dtype that jax would give it; no copy if possible."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
