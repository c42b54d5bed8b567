"""The systems, one folder each: a config becomes an Experiment or a report.

`SYSTEMS` is the one table of what a config may name as its `system`: training asks it
for the experiment, `jaxlab plan` for what a step computes. Importing it imports none of
them; a "module:function" is imported when it is asked for.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from jaxlab.core import errors


class Entry(NamedTuple):
    """One system.

    Attributes:
        experiment: (config, workdir, mesh) -> Experiment.
        shape: config -> plan.Shape, the sizes of a step, without jax; "" where only
            the model that a run starts from knows them.
        step: (config, model) -> planning.untrained.Untrained, the experiment without
            data and the shapes of its batches; needed where there is a `shape`.
        check: config -> None, what refuses its settings where there is no `step`.
    """

    experiment: str
    shape: str = ""
    step: str = ""
    check: str = ""


SYSTEMS = {
    "olmo.pretrain": Entry(
        "jaxlab.systems.olmo.pretraining:pretrain",
        shape="jaxlab.systems.olmo.step_shape:shape",
        step="jaxlab.systems.olmo.pretraining:untrained",
    ),
    "tulu.sft": Entry(
        "jaxlab.systems.tulu.instruction_tuning:sft",
        shape="jaxlab.systems.tulu.step_shape:sft_shape",
        step="jaxlab.systems.tulu.instruction_tuning:sft_untrained",
    ),
    "tulu.dpo": Entry(
        "jaxlab.systems.tulu.preference_tuning:dpo",
        shape="jaxlab.systems.tulu.step_shape:dpo_shape",
        step="jaxlab.systems.tulu.preference_tuning:dpo_untrained",
    ),
    "tulu.kto": Entry(
        "jaxlab.systems.tulu.judged_tuning:kto",
        shape="jaxlab.systems.tulu.step_shape:kto_shape",
        step="jaxlab.systems.tulu.judged_tuning:kto_untrained",
    ),
    "tulu.reward": Entry(
        "jaxlab.systems.tulu.reward_modelling:reward",
        shape="jaxlab.systems.tulu.step_shape:reward_shape",
        step="jaxlab.systems.tulu.reward_modelling:reward_untrained",
    ),
    "languages.classify": Entry(
        "jaxlab.systems.tram.classification:classify",
        check="jaxlab.systems.tram.classification:check",
    ),
    "encoders.rerank": Entry(
        "jaxlab.systems.refit.training:rerank",
        check="jaxlab.systems.refit.training:check",
    ),
    "encoders.embed": Entry(
        "jaxlab.systems.refit.training:embed",
        check="jaxlab.systems.refit.training:check",
    ),
}


def entry(name: str) -> Entry:
    """The system that a config names.

    Raises:
        UserError: there is none.
    """
    if name not in SYSTEMS:
        raise errors.UserError(
            f"config.system {name!r} is unknown; use one of {', '.join(SYSTEMS)}"
        )
    return SYSTEMS[name]


def resolve(target: str) -> Callable:
    """The function that a "module:function" names."""
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)
