"""Experiments from configs: the parts that systems share, whatever they train.

of_decoder    sizes, optimizer and steps of a config, around any objective
with_numbers  one whose rates and strengths are arguments of its compiled step
finish       an experiment to its last step, or Interrupt
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import models, optim, train
from jaxlab.core import interrupts, types

# Those of which 1 - x is taken are not among them: in float32 it would be another.
_NUMBERS = {
    "optim": ("learning_rate", "weight_decay", "epsilon", "clip_norm"),
    "trust": ("rho", "gamma", "eta", "radius_scale", "sigma", "weight"),
}

_log = logging.getLogger(__name__)


def of_decoder(
    config: ml_collections.ConfigDict,
    model: models.Decoder,
    objective: types.Objective,
    /,
    **data: Any,
) -> types.Experiment:
    """An experiment of any objective of a decoder.

    Args:
        config: has `optim`, `steps`, `micro_batches`, `seed` and `data.length`.
        model: of its sizes.
        objective: of the model's `apply`.
        **data: the fields of an Experiment that need data or a run directory.
    """
    tx, rate = optim.build(optim.OptimConfig(**config.optim.to_dict()), config.steps)
    return types.Experiment(
        model=model,
        objective=objective,
        tx=tx,
        steps=config.steps,
        example=(np.zeros((1, 8), np.int32),),
        micro_batches=config.micro_batches,
        seed=config.seed,
        flops_per_token=model.config.flops_per_token(config.data.length),
        learning_rate=rate,
        **data,
    )


def with_numbers(
    config: ml_collections.ConfigDict,
    build: Callable[..., types.Experiment],
    data: Mapping[str, Any],
) -> types.Experiment:
    """`build(config, **data)`; its step is compiled once for all rates and strengths.

    A number that is 0 is compiled in: it may turn something off.
    """
    values = {
        f"{section}.{name}": float(config[section][name])
        for section, names in _NUMBERS.items()
        for name in names
        if section in config and config[section][name]
    }

    def remake(traced):
        changed = ml_collections.ConfigDict(config.to_dict(), allow_dotted_keys=True)
        with changed.ignore_type():
            for key, value in traced.items():
                section, name = key.split(".")
                changed[section][name] = value
        return build(changed, batches=None)

    made = build(config, **data)
    return dataclasses.replace(made, numbers=types.Numbers(values, remake, made.parts))


def finish(
    experiment: types.Experiment,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    run: ml_collections.ConfigDict,
    *,
    name: str,
    programs: dict | None = None,
) -> types.TrainState:
    """Trains an experiment of a study to its last step, or goes on with it.

    It is said in a line; with -v, as much as `jaxlab train` says.

    Args:
        experiment, workdir, mesh, name, programs: as for `train.fit`.
        run: the `run` section of its config.

    Raises:
        Interrupt: a signal stopped it; the same call goes on.
    """
    result = train.fit(
        experiment,
        workdir,
        mesh=mesh,
        name=name,
        programs=programs,
        is_brief=not _log.isEnabledFor(logging.INFO),
        **run.to_dict(),
    )
    if not result.finished:
        raise interrupts.Interrupt(result.signal)
    return result.state
