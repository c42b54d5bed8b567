"""A merge of a config's models, compiled for chips that are not here.

The functions are those of `jaxlab.merge`, on parameters placed as training places them,
so that the compiler says what a merge on a pod holds and whether it gathers anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from jaxlab import merge
from jaxlab.core import errors, state
from jaxlab.core import mesh as mesh_lib
from jaxlab.plan import compiled, merging
from jaxlab.systems.planning import steps

_DENSITY = 0.5  # what is kept changes no shape


def _task_arithmetic(base, models):
    vectors = [merge.task_vector(model, base) for model in models]
    return merge.apply_task_vectors(base, vectors, 1 / len(models))


def _random(function: Callable) -> Callable:
    return lambda base, models: function(
        base, models, density=_DENSITY, key=jax.random.key(0)
    )


# Method -> (base, models) -> merged; the base of methods without one is None.
CALLS: dict[str, Callable[[Any, list], Any]] = {
    "linear": lambda base, models: merge.average(models),
    "slerp": lambda base, models: merge.slerp(*models, 0.5),
    "karcher": lambda base, models: merge.karcher(models),
    "task_arithmetic": _task_arithmetic,
    "ties": lambda base, models: merge.ties(base, models, density=_DENSITY),
    "dare_linear": _random(merge.dare),
    "breadcrumbs": lambda base, models: merge.breadcrumbs(
        base, models, density=_DENSITY
    ),
    "della": _random(merge.della),
    "sce": lambda base, models: merge.sce(base, models, select_topk=_DENSITY),
    "model_stock": lambda base, models: merge.model_stock(base, models),
}


def compile_merge(
    config: ml_collections.ConfigDict, plan: merging.Merge
) -> compiled.Compiled:
    """Compiles a merge.

    Args:
        config: of the models.
        plan: which merge, and where.

    Raises:
        UserError: the model refuses its settings, the merge its leaves, or the compiler
            the merge.
    """
    mesh = compiled.device_mesh(plan.topology, plan.mesh)
    program, arguments = trace(config, plan, mesh)
    with mesh_lib.use(mesh):
        return compiled.compile_program(program, arguments, plan.topology, plan.mesh)


def trace(
    config: ml_collections.ConfigDict, plan: merging.Merge, mesh: jax.sharding.Mesh
) -> tuple:
    """The traced merge, and its shapes: (base or None, models).

    Raises:
        UserError: the model refuses its settings, or the merge its leaves.
    """
    platform = plan.topology.chip.platform
    with mesh_lib.use(mesh):
        models = steps.untrained(config, mesh, platform).experiment
        target, _ = state.abstract(models, mesh)
        params = target.params
        base = params if plan.trees > plan.models else None
        arguments = (base, [params] * plan.models)
        try:
            return jax.jit(CALLS[plan.method]).trace(*arguments), arguments
        except ValueError as error:  # of jaxlab.merge: it says what and why
            raise errors.UserError(f"--merge {plan.method}: {error}") from error
