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


def problems(trees: Sequence[Any], *, wide: bool = False) -> list[str]:
    """Everything that keeps trees from being merged, as lines; [] when nothing does.

    Missing and extra leaves, containers, shapes, dtypes, and arrays that are committed
    to different devices.

    Args:
        trees: M trees.
        wide: the other trees may hold the float32 that a narrower leaf of the first
            tree is widened to (task vectors of bf16 parameters).
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
        allowed, devices = {expected}, _devices(first)
        if wide and is_inexact(first):
            allowed.add(expected.replace(dtype_of(first).name, widened(first).name))
        for number, leaves in enumerate(others, start=1):
            leaf = leaves[index]
            if (found := tree.describe(leaf)) not in allowed:
                lines.append(
                    f"{name}: {expected} in tree 0 vs {found} in tree {number}"
                )
            elif devices and _devices(leaf) and _devices(leaf) != devices:
                lines.append(
                    f"{name}: on other devices in tree 0 than in tree {number}"
                )
    return lines


def coefficients(
    values: Any, size: int, *, name: str, normalize: bool = False
) -> tuple[Any, list[str]]:
    """Weights as one vector, and everything that is wrong with them, as lines.

    Args:
        values: None (ones), a scalar (the same for all), a sequence or an array [size];
            numbers are checked, tracers only for their shape.
        size: how many are wanted.
        name: what the caller calls them.
        normalize: they will be divided by their sum, which then may not be 0.
    """
    values = 1.0 if values is None else values
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
    if traced:
        return array, []
    if not np.isfinite(array).all():
        return array, [f"{name} {array.tolist()} are not all finite"]
    # A sum that is zero up to float32's rounding would divide noise by noise.
    if normalize and abs(array.sum()) <= 1e-6 * np.abs(array).sum():
        return array, [
            f"{name} {array.tolist()} sum to 0; change them or use normalize=False"
        ]
    return array, []


def scalar(value: Any, *, name: str) -> tuple[Any, list[str]]:
    """One coefficient, and what is wrong with it."""
    if np.shape(value):
        return value, [f"{name} must be a scalar; use jax.vmap for several"]
    array, lines = coefficients(value, 1, name=name)
    return array[0], lines


def refuse(lines: Sequence[str], what: str) -> None:
    """Raises one ValueError that lists every line, if there is any."""
    if lines:
        places = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ValueError(f"{what}; {places}: " + "; ".join(lines))


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


def widened(leaf: Any) -> np.dtype:
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


def _devices(leaf):
    """The devices that an array is committed to, or None where it may go anywhere."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return None
    return leaf.sharding.device_set if leaf.committed else None
