"""Where a verb computes: the first device, or a mesh of all of them."""

import contextlib
from collections.abc import Iterator, Mapping

import jax

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import process


@contextlib.contextmanager
def using(shape: Mapping[str, int] | None) -> Iterator[jax.sharding.Mesh | None]:
    """Starts jax; yields the mesh in use, or None for the first device.

    Args:
        shape: sizes by axis, as for `mesh.make_mesh`; None for no mesh.

    Raises:
        UserError: the mesh does not fit the devices.
    """
    process.start()
    if shape is None:
        yield None
        return
    mesh = mesh_lib.make_mesh(shape)
    with mesh_lib.use(mesh):
        yield mesh
