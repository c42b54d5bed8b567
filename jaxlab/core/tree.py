"""Trees of arrays: paths, masks by path, readable differences, fingerprints."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import bits as bits_lib


def path_name(path: tuple) -> str:
    """A key path as `blocks/attn/q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path, in tree order. `None` is not a leaf.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def mask(tree: Any, patterns: Sequence[str]) -> Any:
    """A tree of bools: True where a regular expression is found in the path.

    Raises:
        ValueError: a pattern that matches no path (a typo would go unseen).

    >>> mask({"norm": {"scale": 1}, "mlp": {"kernel": 2}}, ["norm"])
    {'mlp': {'kernel': False}, 'norm': {'scale': True}}
    """
    names = list(flatten(tree))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"pattern {pattern!r} matches no parameter; the paths are like "
                f"{', '.join(names[:4])}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(p, path_name(path)) for p in patterns), tree
    )


def differences(trees: Sequence[Any], *, dtypes: bool = True) -> list[str]:
    """Every difference of structure between trees, as lines; [] when they agree.

    Compares each tree with the first: missing and extra leaves, shapes and, unless
    `dtypes` is False, dtypes.
    """
    first = flatten(trees[0])
    lines = []
    for number, tree in enumerate(trees[1:], start=1):
        other = flatten(tree)
        lines += [f"tree {number} lacks {name}" for name in first if name not in other]
        lines += [f"tree {number} adds {name}" for name in other if name not in first]
        for name in first.keys() & other.keys():
            a, b = describe(first[name], dtypes), describe(other[name], dtypes)
            if a != b:
                lines.append(f"{name}: {a} in tree 0 vs {b} in tree {number}")
    return sorted(lines)


def same_structure(trees: Sequence[Any], *, what: str = "trees") -> None:
    """Raises one ValueError that lists every difference between the trees."""
    if lines := differences(trees):
        raise ValueError(f"{what} differ in {len(lines)} places: " + "; ".join(lines))


def describe(leaf: Any, dtypes: bool = True) -> str:
    """A leaf as `float32[2,32]`."""
    shape = ",".join(str(size) for size in np.shape(leaf))
    if not dtypes:
        return f"[{shape}]"
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}[{shape}]"


def count(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def non_finite(tree: Any) -> list[str]:
    """Paths of the floating leaves that hold a NaN or an infinity."""
    flat = {
        name: leaf
        for name, leaf in flatten(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    finite = jax.device_get(_all_finite(flat))
    return [name for name in flat if not finite[name]]


@jax.jit
def _all_finite(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    # 0 x is NaN where x is not finite. XLA:CPU sums three times as fast as it takes
    # `all`, and its maximum loses a NaN now and then.
    return {name: jnp.sum(leaf * 0) == 0 for name, leaf in flat.items()}


def digest(tree: Any) -> str:
    """One SHA-256 of all checksums of `fingerprint`: two trees are the same, or not."""
    prints = json.dumps(fingerprint(tree), sort_keys=True)
    return hashlib.sha256(prints.encode()).hexdigest()


def fingerprint(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of every leaf's bits, by path; computed on its own device.

    sum_i mix(bits_i + i * 2^32 / golden ratio) mod 2^32 over the flattened leaf
    (`core/bits.py`): integer addition wraps and commutes, so the value does not depend
    on how the leaf is sharded. `mix`, a bijection, makes it see every single changed
    element and, because it is not linear, moved ones: with plain odd factors 2 i + 1 it
    would miss x and -x that change places, whose bits differ by 2^31.
    """
    values = jax.device_get(_fingerprint(flatten(tree)))
    return {name: int(value) for name, value in values.items()}


@jax.jit
def _fingerprint(flat: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: _leaf_fingerprint(leaf) for name, leaf in flat.items()}


def _leaf_fingerprint(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(
        leaf, jnp.dtype(f"uint{min(leaf.dtype.itemsize, 4) * 8}")
    ).astype(jnp.uint32)
    return bits_lib.checksum(bits, bits_lib.indices(bits.shape, jnp))
