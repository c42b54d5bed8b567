"""The check of a config that `train` and `plan` ask before any device or file.

What a system trains is built here as training builds it, but for its data and for the
model that it starts from. So the model, the objective and the optimizer refuse their
settings themselves, and `plan` refuses what `train` would.
"""

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from jaxlab import systems
from jaxlab.core import errors, ranges, types
from jaxlab.data.batches import loader
from jaxlab.data.examples import chat
from jaxlab.systems.planning import steps as steps_lib

_SOME_VOCAB = 128  # where the tokenizer's is not known yet
# Where they are those of the model that a run starts from.
_SOME_SIZES = {"embed": 64, "layers": 1, "heads": 1, "kv_heads": 0, "mlp": 64}
_SOME_STEPS = 10**9  # where the epochs' are not known yet
_LENGTH = ranges.Range("2 or more", 2.0)
_RANGES = {
    "": {
        "seed": ranges.Range("0 to 2^62", 0.0, 2.0**62),
        "steps": ranges.Range("0 to 2^31 - 1", 0.0, 2.0**31 - 1),  # the counter's
        "epochs": ranges.AT_LEAST_0,
        "warmup": ranges.SHARE,
        "micro_batches": ranges.AT_LEAST_1,
        "eval_batches": ranges.AT_LEAST_0,
        "z_loss": ranges.AT_LEAST_0,
        "prior": ranges.AT_LEAST_0,
    },
    "data": {
        "length": _LENGTH,
        "batch_size": ranges.AT_LEAST_1,
        "seed": ranges.AT_LEAST_0,
        "split_seed": ranges.AT_LEAST_0,
        "parts": ranges.AT_LEAST_1,
        "vocab_size": ranges.AT_LEAST_1,
        "held_out_fraction": ranges.BELOW_1,
        "held_out": ranges.BELOW_1,
        "max_bytes_per_domain": ranges.AT_LEAST_0,
        "query_length": _LENGTH,
        "candidates": ranges.Range("2 or more", 2.0),
        "negatives": ranges.AT_LEAST_0,
    },
    "preference": {"chunks": ranges.AT_LEAST_1},
    "contrastive": {"temperature": ranges.ABOVE_0, "chunks": ranges.AT_LEAST_1},
    "mine": {"length": ranges.AT_LEAST_0, "depth": ranges.AT_LEAST_1},
    "eval": {
        "depth": ranges.AT_LEAST_1,
        "queries": ranges.AT_LEAST_0,
        "prior": ranges.AT_LEAST_0,
    },
    "run": dict.fromkeys(
        (
            *("save_every", "eval_every", "keep", "keep_every", "log_seconds"),
            *("profile", "max_skipped"),
        ),
        ranges.AT_LEAST_0,
    ),
}
_CHOICES = {
    "data": {
        "layout": loader.LAYOUTS,
        "style": (*chat.STYLES, chat.OWN),
        "begin": chat.BEGINS,
        "files_dtype": ("", "uint16", "uint32"),
    },
    "preference": {"reference": ("before", "step")},
}


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a config that no run could follow; opens no device and no file.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    entry = systems.entry(config.system)
    try:
        _check_numbers(config)
        _check_mesh(config.mesh)
        _check_choices(config)
        if entry.step:
            built = steps_lib.build(_with_sizes(config), None, "cpu")
            if config.model.embed:  # else its parameters are not known yet
                _check_optimizer(built.experiment)
        else:
            systems.resolve(entry.check)(config)
    except errors.ArgumentError as error:
        raise errors.UserError(f"this config does not work: {error}") from error


def _with_sizes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with sizes in place of those that data will say."""
    sized = ml_collections.ConfigDict(config.to_dict())
    if "vocab" in sized.model:
        sized.model.vocab = sized.model.vocab or _SOME_VOCAB
        if not sized.model.embed:
            sized.model.update(_SOME_SIZES)
    if "epochs" in sized:
        sized.steps = sized.steps or _SOME_STEPS
    return sized


def _check_optimizer(experiment: types.Experiment) -> None:
    """Asks the optimizer for its state: patterns must match parameters."""

    def opt_state(key, *example):
        return experiment.tx.init(experiment.model.init(key, *example)["params"])

    key = jax.ShapeDtypeStruct((2,), np.uint32)
    jax.eval_shape(opt_state, key, *experiment.example)


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    for section, allowed in _RANGES.items():
        if not section or section in config:
            values = config[section] if section else config
            ranges.check(section and f"{section}.", dict(values), allowed)
    if "weights" in config.data:
        shares = dict(config.data.weights)
        ranges.check("data.weights.", shares, dict.fromkeys(shares, ranges.AT_LEAST_0))
    rows = config.data.batch_size
    if rows % config.micro_batches:
        raise errors.UserError(
            f"micro_batches {config.micro_batches} does not divide a batch of {rows} "
            "rows; set --config.micro_batches to a divisor of data.batch_size"
        )


def _check_mesh(mesh: Mapping[str, int]) -> None:
    sizes = dict(mesh)
    wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if wrong or [*sizes.values()].count(-1) > 1:
        axis = (wrong or [a for a, size in sizes.items() if size == -1][1:])[0]
        raise errors.UserError(
            f"mesh.{axis} {sizes[axis]}; use 1 or more, or -1 on one axis for all "
            f"devices that are left: --config.mesh.{axis}=1"
        )


def _check_choices(config: ml_collections.ConfigDict) -> None:
    for section in _CHOICES.keys() & config.keys():
        for key, allowed in _CHOICES[section].items():
            if key in config[section] and config[section][key] not in allowed:
                value, words = config[section][key], [each or "''" for each in allowed]
                raise errors.UserError(
                    f"{section}.{key} {value!r}; use one of {', '.join(words)}"
                )
    if config.data.get("allowed") and config.data.style != chat.OWN:
        raise errors.UserError(
            "data.allowed names tokens of a chat template, and data.style is "
            f"{config.data.style}; set --config.data.style={chat.OWN}"
        )
