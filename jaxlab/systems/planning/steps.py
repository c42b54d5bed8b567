"""The true step of a config, compiled for chips that are not here: `jaxlab plan --aot`.

The experiment is the one that training builds, trust region and all, without its data:
batches are shapes. Each system makes it (`systems.SYSTEMS`).
The model runs as it would there, so "auto" attention is the TPU's kernel. Without
cuDNN, GPUs have XLA's.
"""

import jax
import ml_collections

from jaxlab import models, systems
from jaxlab.core import errors, state, step
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import lora
from jaxlab.models import sections as sections_lib
from jaxlab.plan import compiled, flops
from jaxlab.plan import topology as topologies
from jaxlab.systems.planning import shapes
from jaxlab.systems.planning import untrained as untrained_lib


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
        built = untrained(config, mesh, platform)
        target, _ = state.abstract(built.experiment, mesh)
        frozen = target.params if built.frozen_is_start else built.experiment.frozen
        if built.base_kept_in:
            decoder = built.experiment.model.module
            base = lora.abstract_base(decoder, built.base_kept_in, mesh)
            inner = {"base": base} if built.frozen_is_start else None
            frozen = {"base": base, "inner": inner}
        sharding = mesh_lib.batch_sharding(mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in built.batch.items()
        }
        arguments = (target, batch, frozen)
        return step.make_step(built.experiment, target).trace(*arguments), arguments


def untrained(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, platform: str
) -> untrained_lib.Untrained:
    """What a config trains, without data; called with the mesh in use.

    Raises:
        UserError: the model refuses its settings.
    """
    sized = ml_collections.ConfigDict(config.to_dict())
    sized.model.vocab = shapes.shape(config).vocab
    try:
        return build(sized, mesh, platform)
    except errors.ArgumentError as error:
        raise errors.UserError(f"this config does not work: {error}") from error


def build(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None, platform: str
) -> untrained_lib.Untrained:
    """What a config trains, without data or devices.

    Args:
        config: whose `model` has a vocabulary.
        mesh: in use; None where nothing is traced.
        platform: whose implementations "auto" becomes.

    Raises:
        UserError: the model, the objective or the optimizer refuses its settings.
    """
    model = ml_collections.ConfigDict(config.model.to_dict())
    if platform == "cuda" and model.attention in ("auto", "cudnn"):
        model.attention = "xla"
    make = systems.resolve(systems.entry(config.system).step)
    sizes = sections_lib.transformer_config(model, None, mesh).resolve(platform)
    return make(config, models.Decoder(sizes))
