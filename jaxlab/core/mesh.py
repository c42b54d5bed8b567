"""Device meshes, logical axes and their rules: which device holds which part.

Models name the axes of their parameters and activations (`embed`, `mlp`, ...);
`RULES` maps those names to mesh axes; no other room depends on the mesh axes.
The mesh axes are `slice` (between TPU slices), `data` (replicas), `fsdp` (parameters
and batch sharded together; ZeRO-3, Rajbhandari et al. 2019, arXiv:1910.02054),
`context` (parameters as fsdp, and the length of rows that are too long for one device;
Llama Team 2024, arXiv:2407.21783, section 3.3.2) and `tensor` (Megatron, Shoeybi et al.
2019, arXiv:1909.08053).

Flax replicates an unknown logical name without a word; `logical` and `constrain`
refuse it.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.core import errors, tree, types

MESH_AXES = ("slice", "data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes. A parameter of shape (embed, mlp) on a data x fsdp x tensor
# mesh is split over fsdp in its first axis and over tensor in its second.
RULES: tuple[tuple[str, tuple[str, ...] | None], ...] = (
    ("batch", ("slice", "data", "fsdp")),
    # Batch and length flattened together: where every data shard has one row, context
    # shards have its parts.
    ("tokens", ("slice", "data", "fsdp", "context")),
    # Tokens between the parts of a layer, where every one is treated alone: tensor
    # shards split them too (Korthikanti et al. 2022, arXiv:2205.05198).
    ("stream", ("slice", "data", "fsdp", "context", "tensor")),
    # All tokens of the shards that split the model's width, see `embed_lookup`.
    ("embed_lookup", ("slice", "data")),
    ("length", None),
    ("embed", ("fsdp", "context")),
    ("mlp", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("vocab", ("tensor",)),
    ("layers", None),
    ("norm", None),
    ("activation", None),  # the model width of activations, which fsdp must not split
    ("features", None),
)
AXES = tuple(name for name, _ in RULES)

_log = logging.getLogger(__name__)


def make_mesh(
    shape: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The device mesh, e.g. `make_mesh({"data": 2, "fsdp": 4})`.

    Args:
        shape: sizes by axis name; missing axes are 1, and one axis may be -1 for
            "all remaining devices". None puts every device on `data`.
        devices: defaults to all devices of all hosts.

    Raises:
        UserError: an unknown axis, or sizes that do not multiply to the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": -1} if not shape else dict(shape)
    if unknown := sorted(set(sizes) - set(MESH_AXES)):
        raise errors.UserError(
            f"unknown mesh axis {', '.join(unknown)}; use {', '.join(MESH_AXES)}"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    fits = fixed > 0 and len(devices) % fixed == 0 and (free or fixed == len(devices))
    if len(free) > 1 or not fits or min(sizes.values()) < -1:
        wanted = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise errors.UserError(
            f"mesh {wanted} does not fit {len(devices)} devices; the sizes must "
            f"multiply to {len(devices)}, with at most one -1{_smaller(sizes, devices)}"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    dims = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    # Auto, not the default Explicit: linen's logical partitioning fails under Explicit
    # axes (unbox asserts on with_sharding_constraint, the embedding gather raises).
    return jax.make_mesh(
        dims, MESH_AXES, axis_types=(AxisType.Auto,) * len(dims), devices=devices
    )


def _smaller(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> str:
    """What to do about a mesh that is too large for the devices."""
    large = [axis for axis, size in sizes.items() if size > 1]
    if not large or math.prod(sizes[axis] for axis in large) <= len(devices):
        return ""
    flags = " ".join(f"--config.mesh.{axis}=1" for axis in large)
    return (
        f"; to try it here: {flags} (of other verbs: --mesh); `jaxlab plan` says which "
        "chips it fits"
    )


@contextlib.contextmanager
def use(mesh: Mesh):
    """Makes `mesh` and `RULES` the ones that `logical` and `constrain` use."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield mesh


def logical(initializer: Callable, *names: str) -> Callable:
    """An initializer whose parameter carries the logical axis names.

    Raises:
        ValueError: a name that RULES does not have, or one mesh axis wanted twice.
    """
    _check(names)
    return nn.with_logical_partitioning(initializer, names)


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Pins an activation to its logical axes; a no-op without a mesh."""
    _check(names)
    return nn.with_logical_constraint(x, names)


def shard_tokens(x: jax.Array) -> jax.Array:
    """Pins flat tokens, [T, D], where each is treated alone: over tensor shards too.

    Then a norm is computed once and not on every tensor shard, what waits for the
    backward pass is split, and an all-reduce becomes a reduce-scatter now and a gather
    where the next matrix needs all tokens. Too few tokens for that stay as they are.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), dict(RULES)["stream"]
    shards = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    return constrain(x, "tokens" if x.shape[0] % shards else "stream", "activation")


def embed_lookup(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of an embedding whose width fsdp splits.

    Every shard looks its columns up for all tokens of its group and exchanges rows,
    here and in the gradient: less than gathering the table and summing a whole gradient
    of it, as long as a device has fewer tokens than the table rows. With tensor shards,
    which split the rows, that would hold more; the partitioner decides there.

    Args:
        table: [V, D], axes vocab and embed.
        tokens: i32[T].
        dtype: of the rows.

    Returns:
        [T, D].
    """
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    tokens = constrain(tokens, "embed_lookup")
    rows = jnp.take(table, tokens, axis=0).astype(dtype)
    return constrain(rows, "embed_lookup", "embed")


def gather_fsdp(kernel: jax.Array, *names: str) -> jax.Array:
    """A matrix for a product on tensor shards: gathered over fsdp, its gradient not.

    Left to itself the partitioner gathers the tokens instead, of all fsdp shards, and
    sums products over both axes. Without tensor shards it does right alone.

    Args:
        kernel: [inputs, outputs], axes `names`.
        *names: as of the parameter; "embed" is what fsdp and context split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("tensor", 1) == 1:
        return kernel
    whole = ["activation" if name == "embed" else name for name in names]
    return jax.custom_derivatives.linear_call(
        lambda _, kernel: constrain(kernel, *whole),
        # In two steps, else tokens are gathered so that no sum is needed.
        lambda _, gradient: constrain(constrain(gradient, *whole), *names),
        (),
        kernel,
    )


def replicate(x: jax.Array) -> jax.Array:
    """Pins a result to every device, so that every host can read it."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and keys."""
    return NamedSharding(mesh, P())


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
    """NamedShardings of boxed abstract parameters (`jax.eval_shape` of `model.init`).

    Raises:
        UserError: an axis that the mesh does not divide, with its path.
    """
    specs = nn.get_partition_spec(abstract_params)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    shapes = unbox(abstract_params)

    def check(path, leaf, sharding):
        for size, axes in zip(leaf.shape, tuple(sharding.spec), strict=False):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            shards = math.prod(mesh.shape[axis] for axis in axes)
            if size % shards:
                used = "*".join(axis for axis in axes if mesh.shape[axis] > 1)
                raise errors.UserError(
                    f"{tree.path_name(path)}: size {size} is not divisible by "
                    f"{shards} shards of mesh axis {used}; change the mesh or the "
                    "model's width"
                )

    jax.tree_util.tree_map_with_path(check, shapes, shardings)
    return shardings


def unbox(params: Any) -> Any:
    """Boxed parameters as plain arrays or shapes.

    `nn.unbox` would pin them to the mesh at once, which abstract shapes cannot be.
    """
    return jax.tree.map(
        lambda box: box.value if _is_box(box) else box, params, is_leaf=_is_box
    )


def axis_names(params: Any) -> dict[str, list[str | None]]:
    """Logical axis names of boxed parameters, by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
    return {
        tree.path_name(path): list(leaf.names) for path, leaf in leaves if _is_box(leaf)
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over every axis that holds a share of the batch."""
    return NamedSharding(mesh, P(dict(RULES)["batch"]))


def batch_shards(mesh: Mesh) -> int:
    """How many shards the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in dict(RULES)["batch"])


def global_batch(batches: types.Batches, step: int, mesh: Mesh) -> types.Batch:
    """The global batch of `step` as sharded arrays; each host reads only its rows.

    Raises:
        UserError: the rows are not a multiple of the data shards.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        batch = batches(step)
        _check_rows(batch, batch_shards(mesh))
        return jax.device_put(dict(batch), sharding)
    rows = batches.rows  # `check_batches` has seen that it is there
    if rows % batch_shards(mesh):
        raise errors.UserError(_rows_message(rows, batch_shards(mesh)))
    index = sharding.addressable_devices_indices_map((rows,)).values()
    start_row = min(i[0].start or 0 for i in index)
    stop_row = max(rows if i[0].stop is None else i[0].stop for i in index)
    local = batches(step, rows=slice(start_row, stop_row))

    def put(value: np.ndarray) -> jax.Array:
        shape = (rows, *value.shape[1:])

        def read_part(index):
            first = (index[0].start or 0) - start_row
            last = (rows if index[0].stop is None else index[0].stop) - start_row
            return value[(slice(first, last), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, read_part)

    return {name: put(value) for name, value in local.items()}


def padded_rows(rows: int, mesh: Mesh | None) -> int:
    """Rows of a batch, rounded up so that the mesh divides them.

    >>> padded_rows(6, None)
    6
    """
    shards = 1 if mesh is None else batch_shards(mesh)
    return -(-rows // shards) * shards


def check_batches(batches: types.Batches) -> int:
    """The rows of the global batch, which several hosts must agree on.

    Raises:
        UserError: a function that does not say them, or that takes no `rows`.
    """
    if not isinstance(rows := getattr(batches, "rows", None), int):
        raise errors.UserError(
            "several hosts need the rows of the global batch: set batches.rows, e.g. "
            "batches.rows = 8 after the function"
        )
    try:
        first = batches(0, rows=slice(0, 1))
    except TypeError as error:
        raise errors.UserError(
            f"several hosts need batches(step, rows=slice): {error}"
        ) from error
    if len(next(iter(first.values()))) != 1:
        raise errors.UserError(
            "batches(0, rows=slice(0, 1)) must return one row; apply `rows` to every "
            "array"
        )
    return rows


def padded_vocab(size: int, mesh: Mesh | None = None, multiple: int = 1) -> int:
    """Rows of the embedding: `size` rounded up for the mesh, with a log line.

    JAX refuses an axis that its shards do not divide, and TPUs like multiples of 128.

    >>> padded_vocab(50280, multiple=128)
    50304
    """
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    step = math.lcm(multiple, tensor)
    rows = -(-size // step) * step
    if rows != size:
        _log.info("vocabulary padded from %d to %d rows (x%d)", size, rows, step)
    return rows


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _check(names: Sequence[str]) -> None:
    for name in names:
        if name not in AXES:
            raise ValueError(f"unknown logical axis {name!r}; use one of {AXES}")
    mesh_axes = [axis for name in names for axis in dict(RULES)[name] or ()]
    if len(mesh_axes) != len(set(mesh_axes)):
        raise ValueError(f"logical axes {names} use a mesh axis twice: {mesh_axes}")


def _check_rows(batch: Mapping[str, np.ndarray], shards: int) -> None:
    for name, value in batch.items():
        if value.shape[0] % shards:
            raise errors.UserError(_rows_message(value.shape[0], shards, name))


def _rows_message(rows: int, shards: int, name: str = "batch_size") -> str:
    return (
        f"{name}: {rows} rows are not divisible by {shards} data shards; use a "
        f"multiple of {shards}"
    )
