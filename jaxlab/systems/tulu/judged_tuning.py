"""KTO: preference tuning on single answers that are good or bad.

Ethayarajh et al. 2024 (arXiv:2402.01306).

    init_from -> judged answers -> log-probabilities of the start, once -> kto -> AdamW

Rows are answers with a label, or pairs, whose sides count as a good and as a bad one.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, models, objectives
from jaxlab.core import types
from jaxlab.data.examples import conversation_rows, conversations, judged_rows
from jaxlab.evals import preferences
from jaxlab.systems import adapters, experiments
from jaxlab.systems.planning import untrained as planning
from jaxlab.systems.tulu import preference_tuning, reference
from jaxlab.systems.tulu import start as start_lib


def kto(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Tuning on judged answers: the experiment that `configs/tulu.py` describes."""
    start_lib.check(config)
    answers = conversations.read_judged(config.data.source)
    start, config = start_lib.load_start(config, workdir, mesh)
    start, config, base = adapters.open_base(config, start, mesh)
    found, most, asks = (
        read(config, start, answers),
        config.eval_batches,
        config.preference,
    )
    parts, data = found.parts, config.data

    # ---- what the reference policy says of them
    frozen, evals, objective = None, {}, _objective(config, start.model)
    if asks.reference == "step":
        frozen = reference.ask_in_step(config, start, base, workdir, mesh)
    else:
        reference.attach_reference_logps(
            parts,
            start,
            workdir,
            config.init_from,
            folder=asks.cache,
            style=f"{data.style} {data.begin}",
        )

    # ---- the experiment
    if len(parts) > 1:
        evals["held_out"] = lambda params: preferences.evaluate(
            objective, params, conversation_rows.eval_batches(parts[1], most), frozen
        )
    config = start_lib.with_steps(config, parts[0].count)
    saved = config.to_dict()
    del saved["preference"]["cache"]  # it is only where they are kept
    return kto_experiment(
        config,
        start.model,
        batches=parts[0],
        base=base,
        init_from=start.params,
        frozen=frozen,
        evals=evals,
        config={
            **saved,
            "data_order": parts[0].fingerprint,
            "truncated": found.truncated,
            "dropped": found.dropped,
        },
    )


def read(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    answers: Sequence[conversations.Judged] | None = None,
) -> start_lib.Reading:
    """The answers of a run; arguments as for `preference_tuning.read`."""
    data = config.data
    answers = conversations.read_judged(data.source) if answers is None else answers
    messages, names = [x.messages for x in answers], [x.id for x in answers]
    examples = start_lib.encode(start, messages, names, data, last_only=True)
    parts = [
        judged_rows.JudgedRows(
            part,
            np.array([answers[i].is_good for i in part.number], bool),
            length=data.length,
            batch_size=data.batch_size,
            seed=data.seed,
        )
        for (part,) in conversation_rows.parts(
            (examples,), data.held_out_fraction, data.split_seed
        )
    ]
    said = [f"{x.id} {'good' if x.is_good else 'bad'}" for x in answers]
    return start_lib.Reading(parts, said, examples.truncated, examples.dropped)


def kto_experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config of `kto` trains; `data`: the fields that need data or a start."""
    data = adapters.split(data)
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def _build(model, config, /, **data: Any) -> types.Experiment:
    return experiments.of_decoder(config, model, _objective(config, model), **data)


def kto_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `kto`."""
    model = adapters.of_config(config, model)
    data, asks = config.data, config.preference.reference
    return planning.Untrained(
        kto_experiment(config, model, batches=None),
        judged_rows.spec(data.batch_size, data.length, reference=asks == "before"),
        frozen_is_start=asks == "step",
        base_kept_in=adapters.planned_base(config),
    )


def _objective(config, model) -> types.Objective:
    settings = config.preference.to_dict()
    for name in ("reference", "cache"):
        del settings[name]
    whole = config.preference.loss == "kto"
    preference_tuning.check_parts(config, whole=whole)
    if whole:
        settings["rows"] = config.data.batch_size
    return objectives.kto(model.apply, **settings)
