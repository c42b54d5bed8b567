"""Small trees of several leaves, on one device and on a mesh of eight."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def random_tree(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": {"w": jax.random.normal(keys[0], (8, 6), dtype)},
        "b": [jax.random.normal(keys[1], (2, 3, 4), dtype)],
        "c": jax.random.normal(keys[2], (5,), dtype),
    }


def models(dtype=jnp.float32):
    return random_tree(0, dtype), [random_tree(i, dtype) for i in (1, 2, 3)]


def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def place(tree):
    specs = {"a": {"w": P("x", "y")}, "b": [P("y", None, "x")], "c": P()}

    def put(leaf, spec):
        return jax.device_put(leaf, NamedSharding(mesh(), spec))

    return jax.tree.map(put, tree, specs)


def random_trees(count, dtype=jnp.float32, seed=0):
    """Trees of one structure: a nested mapping, a list, a vector."""
    keys = jax.random.split(jax.random.key(seed), (count, 2))
    return [
        {
            "a": {"w": jax.random.normal(k[0], (4, 3), dtype)},
            "b": [jnp.ones((2,), dtype)],
            "c": jax.random.normal(k[1], (5,), dtype),
        }
        for k in keys
    ]
