"""Experiments from configs: the parts that systems share, whatever they train.

of_decoder    sizes, optimizer and steps of a config, around any objective
with_numbers  one whose rates and strengths are arguments of its compiled step
finish       an experiment to its last step, or Interrupt
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import models, objectives, optim, train
from jaxlab.core import interrupts, shares, types
from jaxlab.models import lora

# Section ("" is the config itself) -> the numbers that a step may take as arguments.
_NUMBERS = {
    "": ("z_loss",),
    "optim": (
        *("learning_rate", "weight_decay", "epsilon", "clip_norm", "clip_norm_start"),
        *("beta1", "beta2", "momentum", "ema", "warmup_start", "final"),
    ),
    "trust": (
        *("rho", "gamma", "eta", "radius_scale", "max_radius", "sigma", "weight"),
        "anchor_decay",
    ),
    "preference": ("beta", "label_smoothing", "target_margin"),
}
# Those of which 1 - x is taken.
_SHARES = {
    *("optim.beta1", "optim.beta2", "optim.ema", "optim.warmup_start", "optim.final"),
    *("trust.anchor_decay", "preference.label_smoothing"),
}
# 0 is a program of its own: one that leaves out work, a metric, or a part of the state.
_OFF_AT_ZERO = {
    *("z_loss", "optim.weight_decay", "optim.clip_norm", "optim.clip_norm_start"),
    *("optim.momentum", "optim.ema", "trust.max_radius"),
}
# Losses that compute more of a number than float32 keeps: there it is compiled in.
_COMPILED_IN = {
    **dict.fromkeys(("ipo", "ipo_sum", "cpo_ipo", "sppo_hard"), "preference.beta"),
    **dict.fromkeys(("robust", "exo_pair"), "preference.label_smoothing"),
}

_log = logging.getLogger(__name__)


def of_decoder(
    config: ml_collections.ConfigDict,
    model: models.Decoder | lora.Adapted,
    objective: types.Objective,
    /,
    **data: Any,
) -> types.Experiment:
    """An experiment of any objective of a decoder.

    Args:
        config: has `optim`, `steps`, `micro_batches`, `seed` and `data.length`.
        model: of its sizes, with adapters or without.
        objective: of the model's `apply`.
        **data: the fields of an Experiment that need data or a run directory.
    """
    settings = optim.OptimConfig(**config.optim.to_dict())
    flops = model.config.flops_per_token
    if isinstance(model, lora.Adapted):
        objective = objectives.beside_base(objective, dropout=model.lora.dropout > 0)
        settings = dataclasses.replace(settings, no_decay=())  # names of the base's
        flops = model.flops_per_token
    tx, rate = optim.build(settings, config.steps)
    return types.Experiment(
        model=model,
        objective=objective,
        tx=tx,
        steps=config.steps,
        example=(np.zeros((1, 8), np.int32),),
        micro_batches=config.micro_batches,
        seed=config.seed,
        flops_per_token=flops(config.data.length),
        learning_rate=rate,
        **data,
    )


def with_numbers(
    config: ml_collections.ConfigDict,
    build: Callable[..., types.Experiment],
    data: Mapping[str, Any],
) -> types.Experiment:
    """`build(config, **data)`, whose step is compiled once for all its numbers."""
    values = _numbers(config)

    def remake(traced):
        changed = ml_collections.ConfigDict(config.to_dict(), allow_dotted_keys=True)
        with changed.ignore_type():
            for key in values:
                number = traced[key]
                if key in _SHARES:
                    number = shares.Share(number, traced[_rest_of(key)])
                section, _, name = key.rpartition(".")
                (changed[section] if section else changed)[name] = number
        return build(changed, batches=None)

    rests = {
        _rest_of(key): 1 - value for key, value in values.items() if key in _SHARES
    }
    made = build(config, **data)
    return dataclasses.replace(
        made, numbers=types.Numbers(values | rests, remake, made.parts)
    )


def _numbers(config: ml_collections.ConfigDict) -> dict[str, float]:
    """The numbers of a config that are arguments of its step, by their flags' names."""
    losses = []
    if "preference" in config:
        losses = re.split(r"[\s+*]+", config.preference.loss)  # a sum has several
    compiled_in = {_COMPILED_IN.get(name) for name in losses}
    found = {}
    for section, names in _NUMBERS.items():
        values = config.get(section, {}) if section else config
        for name in names:
            key = f"{section}.{name}" if section else name
            value = values.get(name)
            is_off = not value and key in _OFF_AT_ZERO
            if value is not None and not is_off and key not in compiled_in:
                found[key] = float(value)
    return found


def _rest_of(key: str) -> str:
    return f"1 - {key}"


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
