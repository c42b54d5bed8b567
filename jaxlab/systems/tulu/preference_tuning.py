"""TULU 2's preference tuning: DPO and its relatives on pairs of answers.

Ivison et al. 2023 (arXiv:2311.10702); Rafailov et al. 2023 (arXiv:2305.18290).

    init_from -> pairs -> log-probabilities of the start, once -> preference -> AdamW

Deviations: the reference is not in memory but its log-probabilities, computed once, in
f32; `preference.reference="step"` keeps it in memory, as others do.
"""

import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from jaxlab import load, models, objectives
from jaxlab.core import errors, types
from jaxlab.data.examples import conversation_rows, conversations
from jaxlab.evals import preferences
from jaxlab.systems import adapters, experiments
from jaxlab.systems.planning import untrained as planning
from jaxlab.systems.tulu import config as config_lib
from jaxlab.systems.tulu import reference
from jaxlab.systems.tulu import start as start_lib

_log = logging.getLogger(__name__)


def dpo(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Preference optimisation: the experiment that `configs/tulu.py` describes."""
    asks, init_from = config.preference.reference, config.init_from
    if asks not in ("before", "step"):
        raise errors.UserError(f"preference.reference {asks!r}; use before or step")
    if not objectives.asks_reference(config.preference.loss):
        asks = "never"

    # ---- the model to tune, and pairs as rows
    start_lib.check(config)
    pairs = conversations.read_pairs(config.data.source)
    if equal := sum(pair.chosen == pair.rejected for pair in pairs):
        _log.warning(
            "%d of %d pairs have equal answers, of which nothing can be learnt",
            *(equal, len(pairs)),
        )
    start, config = start_lib.load_start(config, workdir, mesh)
    start, config, base = adapters.open_base(config, start, mesh)
    data, most = config.data, config.eval_batches
    reading = read(config, start, pairs)
    parts = reading.parts

    # ---- what the reference policy says of them
    frozen, evals, objective = None, {}, _preference(config, start.model)
    if asks == "step":
        frozen = reference.ask_in_step(config, start, base, workdir, mesh)
    elif asks == "before":
        reference.attach_reference_logps(
            parts,
            start,
            workdir,
            init_from,
            folder=config.preference.cache,
            style=f"{data.style} {data.begin}",
            tail_weight=config.preference.tail_weight,
        )

    # ---- the experiment
    if len(parts) > 1:
        evals["held_out"] = lambda params: preferences.evaluate(
            objective, params, conversation_rows.eval_batches(parts[1], most), frozen
        )
    config = start_lib.with_steps(config, parts[0].count)
    return dpo_experiment(
        config,
        start.model,
        batches=parts[0],
        base=base,
        init_from=start.params,
        frozen=frozen,
        evals=evals,
        config={
            **_without_new_defaults(config),
            "data_order": parts[0].fingerprint,
            "truncated": reading.truncated,
            "dropped": reading.dropped,
        },
    )


def read(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    pairs: Sequence[conversations.Pair] | None = None,
) -> start_lib.Reading:
    """The pairs of a run.

    Args:
        config: of `dpo`.
        start: whose tokenizer and template reads them.
        pairs: of `data.source`, if they were read already.
    """
    data = config.data
    pairs = conversations.read_pairs(data.source) if pairs is None else pairs
    names = [pair.id for pair in pairs]
    chosen, rejected = (
        start_lib.encode(start, side, names, data, last_only=data.last_only)
        for side in ([x.chosen for x in pairs], [x.rejected for x in pairs])
    )
    matched = conversation_rows.match_sides(chosen, rejected)
    parts = [
        conversation_rows.PairRows(
            *part, length=data.length, batch_size=data.batch_size, seed=data.seed
        )
        for part in conversation_rows.parts(
            matched, data.held_out_fraction, data.split_seed
        )
    ]
    truncated = chosen.truncated + rejected.truncated
    return start_lib.Reading(parts, names, truncated, len(pairs) - len(matched[0].ends))


def dpo_experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config of `dpo` trains; `data`: the fields that need data or a start."""
    data = adapters.split(data)
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def _build(model, config, /, **data: Any) -> types.Experiment:
    return experiments.of_decoder(config, model, _preference(config, model), **data)


def dpo_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `dpo`."""
    model = adapters.of_config(config, model)
    data, preference = config.data, config.preference
    asks = preference.reference
    if not objectives.asks_reference(preference.loss):
        asks = "never"
    return planning.Untrained(
        dpo_experiment(config, model, batches=None),
        conversation_rows.pair_spec(
            data.batch_size, data.length, reference=asks == "before"
        ),
        frozen_is_start=asks == "step",
        base_kept_in=adapters.planned_base(config),
    )


def _preference(config, model) -> types.Objective:
    settings, rows = config.preference.to_dict(), config.data.batch_size
    for name in ("reference", "cache"):
        settings.pop(name, None)
    if settings.get("nll_weight", -1) == -1:
        settings["nll_weight"] = None
    whole = objectives.needs_whole_batch(config.preference.loss, settings["nll_weight"])
    check_parts(config, whole=whole)
    if whole:
        settings["pairs"] = rows
    return objectives.preference(model.apply, **settings)


def check_parts(config: ml_collections.ConfigDict, *, whole: bool) -> None:
    """Refuses microbatches of a loss of whole batches, and chunks that leave rows over.

    Raises:
        UserError: with what to set.
    """
    rows, parts, loss = config.data.batch_size, config.micro_batches, config.preference
    if whole and parts != 1:
        raise errors.UserError(
            f"micro_batches {parts} would change the loss {loss.loss}, which is of a "
            f"whole batch: use 1, and --config.preference.chunks={parts} to save memory"
        )
    if (rows // parts) % loss.chunks:
        raise errors.UserError(
            f"preference.chunks {loss.chunks} does not divide {rows // parts} rows; "
            "set it to a divisor of data.batch_size / micro_batches"
        )


def _without_new_defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as it is saved: runs from before a setting was there go on."""
    saved, plain = config.to_dict(), config_lib.preferences().preference
    old = ("loss", "beta", "label_smoothing", "target_margin", "reference")
    saved["preference"] = {
        name: value
        for name, value in saved["preference"].items()
        if name in old or (name != "cache" and value != plain[name])
    }
    return saved
