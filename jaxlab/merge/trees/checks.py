"""What keeps trees from being merged, found before any computation and listed at once.

Every check is honest under somebody else's `jit`, `vmap` or `grad`: what a tracer hides
(values) is skipped, what it knows (structure, shape, dtype) is checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import tree
from jaxlab.merge import by_path


def problems(trees: Sequence[Any], *, wide: bool = False) -> list[str]:
    """Everything that keeps trees from being merged, as lines; [] when nothing does.

    Missing and extra leaves, containers, shapes, dtypes, and arrays that are committed
    to different devices, or sharded differently: merging those would move one of them
    behind the caller's back.

    Args:
        trees: M trees.
        wide: the other trees may hold the float32 that a narrower leaf of the first
            tree is wide_dtype to (task vectors of bf16 parameters).
    """
    structures = [jax.tree.structure(t) for t in trees]
    if len(set(structures)) > 1:
        return tree.differences(trees) or [
            f"tree {number} is built of other containers: {other} vs {structures[0]}"
            for number, other in enumerate(structures)
            if other != structures[0]
        ]
    lines = []
    paths, _ = jax.tree_util.tree_flatten_with_path(trees[0])
    others = [jax.tree.leaves(t) for t in trees[1:]]
    for index, (path, first) in enumerate(paths):
        name, expected = tree.path_name(path), tree.describe(first)
        allowed = {expected}
        if wide and is_inexact(first):
            allowed.add(expected.replace(dtype_of(first).name, wide_dtype(first).name))
        for number, leaves in enumerate(others, start=1):
            leaf = leaves[index]
            if (own := tree.describe(leaf)) not in allowed:
                lines.append(f"{name}: {expected} in tree 0 vs {own} in tree {number}")
            elif differs := _placed_differently(first, leaf):
                lines.append(f"{name}: {differs} in tree 0 than in tree {number}")
    return lines


def coefficients(
    values: Any, size: int, *, name: str, like: Any = None, normalize: bool = False
) -> tuple[Any, list[str]]:
    """Weights as one vector, and everything that is wrong with them, as lines.

    Args:
        values: None (ones), a scalar (the same for all), a sequence or an array [size];
            numbers are checked, tracers only for their shape. `weights_by_path` may
            stand for all of them or for any.
        size: how many are wanted.
        name: what the caller calls them.
        like: a tree with the leaves that weights by path are for.
        normalize: they will be divided by their sum, which then may not be 0.

    Returns:
        An array [size], or a `by_path.ByLeaf` of arrays [size, ...].
    """
    values = 1.0 if values is None else values
    if _depends_on_path(values):
        return _by_leaf(values, size, name, like, normalize)
    if traced := is_traced(values):
        array = values if isinstance(values, jax.Array) else _stack_scalars(values)
    else:  # on the host: no device to be committed to, no computation before checks
        try:
            array = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            return values, [f"{name} {values!r} are not numbers"]
    if array.ndim == 0:
        array = (jnp if traced else np).broadcast_to(array, (size,))
    if array.shape != (size,):
        shape = ", ".join(map(str, array.shape))
        return array, [f"{name} of shape [{shape}] given, {size} needed"]
    return array, _wrong_values(array, name, normalize)


def scalar(value: Any, *, name: str, like: Any = None) -> tuple[Any, list[str]]:
    """One coefficient, or one a leaf, and what is wrong with it."""
    if not _depends_on_path(value) and np.shape(value):
        return value, [f"{name} must be a scalar; use jax.vmap for several"]
    coefficient, lines = coefficients(value, 1, name=name, like=like)
    if isinstance(coefficient, by_path.ByLeaf):
        # One object a rule, still: see `leafwise.apply` on tied leaves.
        first = {id(array): array[0] for array in coefficient.values}
        return by_path.ByLeaf([first[id(array)] for array in coefficient.values]), lines
    return (coefficient if lines else coefficient[0]), lines


def _depends_on_path(values) -> bool:
    if isinstance(values, list | tuple):
        return any(isinstance(value, by_path.PathWeights) for value in values)
    return isinstance(values, by_path.PathWeights)


def _by_leaf(values, size, name, like, normalize):
    """Weights [size, ...] for each leaf of `like`; one array object a combination."""
    several = values if isinstance(values, list | tuple) else [values] * size
    if len(several) != size:
        return values, [f"{name} of shape [{len(several)}] given, {size} needed"]
    leaves = jax.tree.leaves(like)
    try:
        columns = [
            by_path.resolve(value, like)
            if isinstance(value, by_path.PathWeights)
            else [value] * len(leaves)
            for value in several
        ]
    except ValueError as error:
        return values, [f"{name}: {error}"]
    joined: dict[tuple[int, ...], Any] = {}
    wrong: dict[str, None] = {}
    by_leaf = []
    for row in zip(*columns, strict=True):
        key = tuple(map(id, row))
        if key not in joined:
            joined[key], lines = _join(row, name, normalize)
            wrong |= dict.fromkeys(lines)
        by_leaf.append(joined[key])
    return by_path.ByLeaf(by_leaf), list(wrong)


def _join(row, name, normalize):
    """One weight [...] for each of M trees -> an array [M, ...]."""
    try:
        array = jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(x, float) for x in row)))
    except (TypeError, ValueError):
        return row, [f"{name} by path {row!r} are not numbers"]
    return array, _wrong_values(array, name, normalize)


def _wrong_values(array, name, normalize) -> list[str]:
    if is_traced(array):
        return []
    array = np.asarray(array, np.float64)
    if not np.isfinite(array).all():
        return [f"{name} {array.tolist()} are not all finite"]
    # A sum that is zero up to float32's rounding would divide noise by noise.
    tiny = 1e-6 * np.abs(array).sum(axis=0)
    if normalize and (np.abs(array.sum(axis=0)) <= tiny).any():
        return [f"{name} {array.tolist()} sum to 0; change them or use normalize=False"]
    return []


def refuse(lines: Sequence[str], what: str) -> None:
    """Raises one ValueError that lists every line, if there is any."""
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ValueError(f"{what}; {count}: " + "; ".join(lines))


def unequal(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Leaves by path, one a tree -> a line for each that is not equal to the first."""
    known = {name: c for name, c in columns.items() if not is_traced(c)}
    arrays = {
        name: column
        for name, column in known.items()
        if any(isinstance(leaf, jax.Array) for leaf in column)
    }
    # Also inside somebody's jit these arrays are constants, and their values known.
    with jax.ensure_compile_time_eval():
        flags = jax.device_get(_all_equal(arrays)) if arrays else {}
    host = {
        name: [np.all(np.equal(column[0], leaf)) for leaf in column[1:]]
        for name, column in known.items()
        if name not in arrays
    }
    return [
        f"{name} in tree {number} is not that of tree 0"
        for name in known
        for number, equal in enumerate((flags | host)[name], start=1)
        if not equal
    ]


@jax.jit
def _all_equal(columns):
    def bits(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return {
        name: [jnp.all(bits(first) == bits(leaf)) for leaf in others]
        for name, (first, *others) in columns.items()
    }


def wide_dtype(leaf: Any) -> np.dtype:
    """The dtype a leaf is computed in: float32, or float64 or complex if it is that."""
    dtype = dtype_of(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64:
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32)


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, or the one numpy gives to a Python value."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf can be averaged: floating or complex."""
    return jnp.issubdtype(dtype_of(leaf), jnp.inexact)


def is_traced(values: Any) -> bool:
    """Whether a tree holds a tracer of some enclosing transformation."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def _stack_scalars(values):
    return jnp.stack([jnp.asarray(value, jnp.result_type(float)) for value in values])


def _placed_differently(first, leaf) -> str:
    """How two arrays are placed differently; "" if not, or if one may go anywhere."""
    for array in (first, leaf):
        if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
            return ""
        if not array.committed:
            return ""
    if first.sharding.device_set != leaf.sharding.device_set:
        return "on other devices"
    if first.sharding.is_equivalent_to(leaf.sharding, first.ndim):
        return ""
    if leaf.sharding.is_fully_replicated:  # every device has its part already
        return ""
    specs = [getattr(x.sharding, "spec", x.sharding) for x in (first, leaf)]
    return f"sharded differently ({specs[0]} and {specs[1]}; use jax.device_put)"
