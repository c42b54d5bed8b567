"""The state of a run before its first step: shapes, placement, initial values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxlab.core import errors, tree, types
from jaxlab.core import mesh as mesh_lib


def abstract(
    experiment: types.Experiment, mesh: Mesh
) -> tuple[types.TrainState, dict[str, list]]:
    """Shapes, dtypes and shardings of the whole state, without computing anything.

    Returns:
        (a TrainState of ShapeDtypeStructs, logical axis names by parameter path).
    """
    seed = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    boxed = jax.eval_shape(lambda seed: _init_params(experiment, seed), seed)
    params = mesh_lib.unbox(boxed)
    shardings = tree.flatten(mesh_lib.param_shardings(boxed, mesh))
    shapes = {name: leaf.shape for name, leaf in tree.flatten(params).items()}

    def place(path, leaf):
        name = tree.path_name(path)
        sharding = mesh_lib.replicated_sharding(mesh)
        # Optimizer states repeat the parameter tree, e.g. opt_state/1/mu/blocks/...
        for param, shape in shapes.items():
            if name.endswith("/" + param) and leaf.shape == shape:
                sharding = shardings[param]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    whole = jax.eval_shape(
        lambda params, seed: _assemble(experiment, params, seed), params, seed
    )
    return jax.tree_util.tree_map_with_path(place, whole), mesh_lib.axis_names(boxed)


def initial(experiment: types.Experiment, target: types.TrainState) -> types.TrainState:
    """The first state, placed like `target`: `init_from` (copied) or fresh.

    Raises:
        UserError: `init_from` does not have the model's structure; all differences.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    if experiment.init_from is None:
        params = jax.jit(
            lambda seed: nn.unbox(_init_params(experiment, seed)),
            out_shardings=shardings.params,
        )(_key_data(experiment))
    else:
        params = _copy(experiment.init_from, target.params)
    assemble = jax.jit(
        lambda params, seed: _assemble(experiment, params, seed).replace(params=None),
        out_shardings=shardings.replace(params=None),
    )
    return assemble(params, _key_data(experiment)).replace(params=params)


def _key_data(experiment) -> np.ndarray:
    """The bits of the seed's key: an argument, so that no seed is another program."""
    return np.asarray(jax.random.key_data(jax.random.key(experiment.seed)))


def _init_params(experiment, seed):
    key, _ = jax.random.split(jax.random.wrap_key_data(seed))
    return experiment.model.init(key, *experiment.example)["params"]


def _assemble(experiment, params, seed) -> types.TrainState:
    _, key = jax.random.split(jax.random.wrap_key_data(seed))
    step = jnp.zeros((), jnp.int32)
    return types.TrainState(step, params, experiment.tx.init(params), key)


def _copy(source: Any, target: Any) -> Any:
    if lines := tree.differences([target, source], dtypes=False):
        first = lines[0].replace("tree 0", "the model").replace("tree 1", "init_from")
        raise errors.UserError(
            f"init_from is another model than the config's, in {len(lines)} of its "
            f"parameters; {first}. Set config.model to its sizes (its config.json has "
            "them), or start without it"
        )

    def copy(leaf, to):
        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf)
        # A copy even when nothing moves: the step donates its state, and would
        # otherwise delete the arrays that the caller or `frozen` still holds.
        return jnp.copy(jax.device_put(leaf.astype(to.dtype), to.sharding))

    return jax.tree.map(copy, source, target)
