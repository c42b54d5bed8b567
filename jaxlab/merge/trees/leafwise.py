"""How an operation on numbers becomes an operation on trees, for every merge.

A merge is a formula over corresponding numbers, `op([theta_1 ... theta_M], *weights)`.
What is the same for all formulas is said here once:

- **Rounding.** Leaves are widened (float32; float64 when the leaf is float64), `op`
  runs there, and the result is rounded once to the leaf's own dtype. Accumulating in
  bf16 instead gets about a third of the elements wrong.
- **Weights are traced**, so one compiled program serves any weights, `jax.vmap` runs
  over them and `jax.grad` goes through them.
- **Placement.** A result takes the `NamedSharding` of its leaf in the first tree. What
  is elementwise moves nothing between devices, a norm or a count moves single numbers.
- **Integer, bool and key leaves** (steps, counters, PRNG keys) have no average: they
  must be equal in all trees and are copied. `None` is no leaf; empty leaves pass.
- **Tied leaves** (one array object at two paths of every tree) are merged once and
  stay tied.
- **Checks** come before any computation and list everything that is wrong. Under
  somebody else's `jit`, `vmap` or `grad` values are unknown: shapes are still checked.

Deviation: 64-bit numpy leaves follow `jax_enable_x64` as everywhere in JAX; without it
they are merged, and returned, as float32.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlab.core import tree
from jaxlab.merge import by_path
from jaxlab.merge.trees import checks

ByLeaf = by_path.ByLeaf  # a coefficient that differs between leaves

# M corresponding leaves, widened, and the traced coefficients -> one leaf.
Op = Callable[..., jax.Array]


def apply(
    op: Op,
    trees: Sequence[Any],
    *coefficients: Any,
    options: Mapping[str, Hashable] | None = None,
    dtype: Any = None,
    donate: bool = False,
) -> Any:
    """The tree whose leaves are `op(corresponding leaves, *coefficients)`.

    Args:
        op: a module-level function (it keys the compilation cache), elementwise or
            with reductions over its leaf.
        trees: already found alike by `checks.problems`.
        *coefficients: arrays, traced, given to `op` in the widened dtype (unsigned
            integers as they are), or a `ByLeaf` of them.
        options: keyword arguments of `op` that are compiled in; hashable.
        dtype: of floating results; None for each leaf's own.
        donate: the first tree's floating buffers may be overwritten.

    Raises:
        ValueError: integer, bool or key leaves differ between trees, with their paths;
            or `donate` and the first tree shares an array with another.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(trees[0])
    columns = list(zip(*map(jax.tree.leaves, trees), strict=True))
    copied = {
        tree.path_name(path): column
        for (path, _), column in zip(paths, columns, strict=True)
        if not checks.is_inexact(column[0])
    }
    checks.refuse(
        checks.unequal(copied),
        "integer, bool and key leaves must be equal in all trees",
    )
    own = [c.values for c in coefficients if isinstance(c, ByLeaf)]
    # Tied leaves are merged once, unless they are to be merged differently.
    keys = [
        (*map(id, column), *(id(values[i]) for values in own))
        for i, column in enumerate(columns)
    ]
    first_of = {
        name: i for i, name in enumerate(keys) if checks.is_inexact(columns[i][0])
    }
    coefficients = tuple(
        [c.values[i] for i in first_of.values()] if isinstance(c, ByLeaf) else c
        for c in coefficients
    )
    merging = [columns[i] for i in first_of.values()]
    static = (op, tuple(sorted((options or {}).items())), dtype)
    results = _run(static, merging, coefficients, donate)
    done = dict(zip(first_of, results, strict=True))
    for name, column in zip(keys, columns, strict=True):
        if name not in done:
            done[name] = _copy(column[0])
    return jax.tree.unflatten(structure, [done[name] for name in keys])


def apply_stacked(op: Op, stacked: Any, *coefficients: Any) -> Any:
    """`apply` for M trees stacked into leaves [M, ...]; copied leaves lose the axis.

    Raises:
        ValueError: an integer, bool or key leaf differs along its first axis.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(stacked)
    copied = {
        tree.path_name(p): leaf for p, leaf in paths if not checks.is_inexact(leaf)
    }
    checks.refuse(
        checks.unequal({name: list(leaf) for name, leaf in copied.items()}),
        "integer, bool and key leaves must be equal in all stacked trees",
    )
    leaves = [leaf for _, leaf in paths if checks.is_inexact(leaf)]
    shardings = tuple(_sharding(leaf, lambda spec: spec[1:]) for leaf in leaves)
    results = iter(_compile_stacked(op, shardings)(leaves, coefficients))
    return jax.tree.unflatten(
        structure,
        [next(results) if checks.is_inexact(leaf) else leaf[0] for _, leaf in paths],
    )


def stack(trees: Sequence[Any]) -> Any:
    """Trees already found alike -> one tree of leaves [M, ...], placed like the first.

    Raises:
        ValueError: integer, bool or key leaves differ between trees.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(trees[0])
    columns = list(zip(*map(jax.tree.leaves, trees), strict=True))
    named = zip((tree.path_name(path) for path, _ in paths), columns, strict=True)
    checks.refuse(
        checks.unequal({name: c for name, c in named if not checks.is_inexact(c[0])}),
        "integer, bool and key leaves must be equal in all trees",
    )
    shardings = tuple(_sharding(c[0], lambda spec: (None, *spec)) for c in columns)
    return jax.tree.unflatten(structure, _compiled_stack(shardings)(columns))


@jax.custom_jvp
def pin(smooth: jax.Array, exact: jax.Array) -> jax.Array:
    """The value of `exact` with the derivatives of `smooth`.

    For results that are known without rounding in special cases (an endpoint, equal
    inputs): a plain `where` would give those cases a derivative of zero.
    """
    del smooth
    return exact


@pin.defjvp
def _pinned_jvp(primals, tangents):
    return pin(*primals), tangents[0]


def _run(static, columns, coefficients, donate):
    firsts = [column[0] for column in columns]
    rests = [column[1:] for column in columns]
    if donate and {id(x) for x in firsts} & {id(x) for rest in rests for x in rest}:
        raise ValueError("donate=True, but the first tree shares arrays with another")
    donate = donate and not checks.is_traced(columns)
    shardings = tuple(_sharding(first) for first in firsts)
    return _compile(*static, shardings, donate)(firsts, rests, coefficients)


@functools.lru_cache(maxsize=256)
def _compile(op, options, dtype, shardings, donate):
    def merge_leaves(firsts, rests, coefficients):
        results = []
        for i, (first, rest) in enumerate(zip(firsts, rests, strict=True)):
            own = [c[i] if isinstance(c, list) else c for c in coefficients]
            result = _leaf(op, [first, *rest], own, dict(options), dtype)
            results.append(_place(result, shardings[i]))
        return results

    return jax.jit(merge_leaves, donate_argnums=(0,) if donate else ())


@functools.lru_cache(maxsize=256)
def _compile_stacked(op, shardings):
    def merge_leaves(leaves, coefficients):
        # Unrolled over M: on CPU 3 to 20 times faster than a reduction or a dot, since
        # slices, widening and sum fuse into one pass without a widened copy.
        models = [[leaf[k] for k in range(len(leaf))] for leaf in leaves]
        return [
            _place(_leaf(op, column, coefficients, {}, None), sharding)
            for column, sharding in zip(models, shardings, strict=True)
        ]

    return jax.jit(merge_leaves)


@functools.lru_cache(maxsize=256)
def _compiled_stack(shardings):
    return jax.jit(
        lambda columns: [
            _place(jnp.stack(column), sharding)
            for column, sharding in zip(columns, shardings, strict=True)
        ]
    )


def _leaf(op, leaves, coefficients, options, dtype):
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    wide = checks.wide_dtype(leaves[0])
    real = jnp.finfo(wide).dtype  # weights stay real when leaves are complex
    coefficients = map(jnp.asarray, coefficients)
    result = op(
        [leaf.astype(wide) for leaf in leaves],
        *(c if c.dtype.kind == "u" else c.astype(real) for c in coefficients),
        **options,
    )
    return result.astype(dtype or leaves[0].dtype)


def _sharding(leaf, change=tuple):
    """The NamedSharding for a result, its spec changed; None where nothing is to say.

    On a mesh of Explicit axes the type of an array carries its sharding by itself.
    """
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return None
    if not isinstance(sharding := leaf.sharding, NamedSharding):
        return None
    if set(sharding.mesh.axis_types) != {AxisType.Auto}:
        return None
    spec = PartitionSpec(*change(tuple(sharding.spec)))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _place(result, sharding):
    # A constraint, not out_shardings: those would also be demanded of cotangents, and
    # jax.grad over weights would fail.
    if sharding is None:
        return result
    return jax.lax.with_sharding_constraint(result, sharding)


def _copy(leaf):
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        return jnp.copy(leaf)  # not an alias: somebody may donate the merged tree
    return leaf
