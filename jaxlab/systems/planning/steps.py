"""The true step of a config, compiled for chips that are not here: `jaxlab plan --aot`.

The experiment is the one that training builds (`systems/olmo/pretraining.py`,
`systems/tulu/tuning.py`), trust region and all, without its data: batches are shapes.
The model runs as it would there, so "auto" attention is the TPU's kernel. Without
cuDNN, GPUs have XLA's.
"""

import jax
import jax.numpy as jnp
import ml_collections

from jaxlab import models
from jaxlab.core import errors, state, step, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import sections as sections_lib
from jaxlab.plan import compiled, flops
from jaxlab.plan import topology as topologies
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.planning import shapes
from jaxlab.systems.tulu import tuning

_EXPERIMENTS = {
    "olmo.pretrain": pretraining.experiment,
    "tulu.sft": tuning.sft_experiment,
    "tulu.dpo": tuning.dpo_experiment,
}


def compile_config(
    config: ml_collections.ConfigDict,
    topology: topologies.Topology,
    sizes: dict[str, int],
) -> compiled.Compiled:
    """Compiles the step of a config.

    Args:
        config: the whole of it.
        topology: where.
        sizes: of the mesh, all axes.

    Raises:
        UserError: the model refuses its settings, or the compiler the step.
    """
    mesh = compiled.device_mesh(topology, sizes)
    program, arguments = trace(config, mesh, topology.chip.platform)
    with mesh_lib.use(mesh):
        return compiled.compile_program(
            program,
            arguments,
            topology,
            sizes,
            kernel_share=flops.block_share(shapes.shape(config)),
        )


def trace(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, platform: str = "tpu"
) -> tuple:
    """The traced step of a config, as `platform` would run it, and its shapes.

    Raises:
        UserError: the model refuses its settings.
    """
    with mesh_lib.use(mesh):
        built = experiment(config, mesh, platform)
        target, _ = state.abstract(built, mesh)
        frozen = built.frozen
        if config.system == "tulu.dpo" and config.preference.reference == "step":
            frozen = target.params
        arguments = (target, _batch(config, mesh), frozen)
        return step.make_step(built, target).trace(*arguments), arguments


def experiment(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, platform: str
) -> types.Experiment:
    """What a config trains, without data; called with the mesh in use.

    Raises:
        UserError: the model refuses its settings.
    """
    vocab = shapes.shape(config).vocab
    model = ml_collections.ConfigDict({**config.model.to_dict(), "vocab": vocab})
    if platform == "cuda" and model.attention in ("auto", "cudnn"):
        model.attention = "xla"
    try:
        built = sections_lib.transformer_config(model, None, mesh).resolved(platform)
        return _EXPERIMENTS[config.system](config, models.Decoder(built), batches=None)
    except ValueError as error:
        raise errors.UserError(f"this config does not work: {error}") from error


def _batch(config, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes that the system's batches would have."""
    data, names = config.data, {"tokens": jnp.int32}
    size, more = (data.batch_size, data.length), {}
    if config.system == "tulu.dpo":
        size = (data.batch_size, 2, data.length)
        names["loss_mask"] = jnp.float32
        if config.preference.reference == "before":
            more["reference_logps"] = size[:2], jnp.float32
    elif config.system == "tulu.sft" or data.layout == "packed":
        names |= {"segment_ids": jnp.int32, "positions": jnp.int32}
        names["loss_mask"] = jnp.float32
    elif data.document_mask:
        names["segment_ids"] = jnp.int32
    more |= {name: (size, dtype) for name, dtype in names.items()}
    sharding = mesh_lib.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in more.items()
    }
