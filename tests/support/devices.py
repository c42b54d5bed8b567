"""Meshes of the fake devices that `conftest.py` makes."""

import jax

from jaxlab.core import mesh


def one() -> jax.sharding.Mesh:
    """The mesh of one device."""
    return mesh.make_mesh({"data": 1}, jax.devices()[:1])
