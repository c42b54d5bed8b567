"""TULU: instruction tuning, and direct preference optimisation.

Wang et al. 2023 (arXiv:2306.04751); Ivison et al. 2023 (arXiv:2311.10702).

    init_from -> conversations as rows -> next_token on answers -> AdamW      sft
    init_from -> pairs -> log-probabilities of the start, once
                       -> preference -> AdamW                                 dpo

Deviations: the loss is the sum over all labels of a batch by their number, not a mean
of the means of devices or microbatches, in which short answers weigh more; DPO's
reference is not in memory but its log-probabilities, computed once, in f32.
"""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import ml_collections

from jaxlab import load, models, objectives
from jaxlab.core import checkpoint, errors, runs, types
from jaxlab.data.examples import chat, conversation_rows, conversations
from jaxlab.evals import perplexity, preferences
from jaxlab.models import sections as sections_lib
from jaxlab.systems import trust_methods, trust_regions
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.planning import untrained as planning
from jaxlab.systems.tulu import reference

# Settings of `model` that say how it is computed; the others are those of init_from.
_FREE = ("dtype", "attention", "remat", "scan")
_DRAWN = ("vocab", "initializer", "initializer_std")  # may differ: padded; not used

_log = logging.getLogger(__name__)


def sft(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Instruction tuning: the experiment that `configs/tulu.py` describes."""
    opened, config = _start(config, workdir, mesh)
    data = config.data
    found = [row.messages for row in conversations.read(data.source)]
    examples = _encoded(opened.tokenizer, found, data)
    parts = [
        conversation_rows.Rows(
            part,
            length=data.length,
            batch_size=data.batch_size,
            seed=data.seed,
            packed=data.packed,
        )
        for (part,) in _split((examples,), data)
    ]
    apply, evals = opened.model.apply, {}
    if len(parts) > 1:
        evals["held_out"] = lambda params: perplexity.evaluate(
            apply, params, conversation_rows.eval_batches(parts[1], config.eval_batches)
        )
    config = _with_steps(config, parts[0].count)
    return sft_experiment(
        config,
        opened.model,
        batches=parts[0],
        init_from=opened.params,
        evals=evals,
        config={
            **config.to_dict(),
            "data_order": parts[0].fingerprint,
            "truncated": examples.truncated,
            "dropped": examples.dropped,
        },
    )


def sft_experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config of `sft` trains; `data`: the fields that need data or a start."""
    objective = objectives.next_token(model.apply, z_loss=config.z_loss)
    found = pretraining.of_decoder(config, model, objective, **data)
    region = trust_methods.TrustConfig(**config.trust.to_dict())
    return trust_regions.of_decoder(found, region, z_loss=config.z_loss)


def sft_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `sft`."""
    spec = conversation_rows.row_spec(config.data.batch_size, config.data.length)
    return planning.Untrained(sft_experiment(config, model, batches=None), spec)


def dpo(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Preference optimisation: the experiment that `configs/tulu.py` describes."""
    opened, config = _start(config, workdir, mesh)
    data, asks = config.data, config.preference.reference
    if asks not in ("before", "step"):
        raise errors.UserError(f"preference.reference {asks!r}; use before or step")
    pairs = conversations.read_pairs(data.source)
    both = [
        _encoded(opened.tokenizer, side, data, last_only=data.last_only)
        for side in ([x.chosen for x in pairs], [x.rejected for x in pairs])
    ]
    matched = conversation_rows.matched(*both)
    parts = [
        conversation_rows.PairRows(
            *part, length=data.length, batch_size=data.batch_size, seed=data.seed
        )
        for part in _split(matched, data)
    ]
    frozen, evals, objective = None, {}, _preference(config, opened.model)
    if not objectives.asks_reference(config.preference.loss):
        asks = "never"
    if asks == "step":
        frozen = opened.params or load.params(config.init_from, mesh=mesh)
    elif asks == "before":
        reference.give(parts, opened, workdir, config.init_from)
    if len(parts) > 1:
        evals["held_out"] = lambda params: preferences.evaluate(
            objective,
            params,
            conversation_rows.eval_batches(parts[1], config.eval_batches),
            frozen,
        )
    config = _with_steps(config, parts[0].count)
    return dpo_experiment(
        config,
        opened.model,
        batches=parts[0],
        init_from=opened.params,
        frozen=frozen,
        evals=evals,
        config={
            **config.to_dict(),
            "data_order": parts[0].fingerprint,
            "truncated": sum(side.truncated for side in both),
            "dropped": len(pairs) - len(matched[0].ends),
        },
    )


def dpo_experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config of `dpo` trains; `data`: the fields that need data or a start."""
    objective = _preference(config, model)
    return pretraining.of_decoder(config, model, objective, **data)


def dpo_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `dpo`."""
    data, asks = config.data, config.preference.reference
    return planning.Untrained(
        dpo_experiment(config, model, batches=None),
        conversation_rows.pair_spec(
            data.batch_size, data.length, reference=asks == "before"
        ),
        frozen_is_start=asks == "step",
    )


def _preference(config, model) -> types.Objective:
    settings = config.preference.to_dict()
    del settings["reference"]
    return objectives.preference(model.apply, **settings)


# ------------------------------------------------------------------ the start


def _start(config, workdir, mesh) -> tuple[load.Loaded, ml_collections.ConfigDict]:
    """The model to tune, and the config with its sizes; a run that resumes has them."""
    if not config.data.source:
        raise errors.UserError(
            "no data: set --config.data.source to .jsonl files of conversations"
        )
    if not config.init_from:
        raise errors.UserError(
            "set --config.init_from to the model to tune: a run of jaxlab train, or a "
            "Hugging Face folder"
        )
    if checkpoint.steps(runs.checkpoints(workdir)):
        start = load.architecture(workdir)
    else:
        own = config.data.tokenizer or None
        start = load.decoder(config.init_from, tokenizer=own, mesh=mesh)
        pretraining.keep_tokenizer(start.tokenizer, workdir)
    made = start.config
    _check_sizes(config, made)
    if config.data.length > made.length:
        _log.warning(
            "rows of %d tokens, %s was trained on %d",
            *(config.data.length, config.init_from, made.length),
        )
    settings = {name: config.model[name] for name in _FREE}
    length = max(config.data.length, made.length)
    made = dataclasses.replace(made, length=length, **settings)
    found = ml_collections.ConfigDict(config.to_dict())
    found.model = ml_collections.ConfigDict(sections_lib.section(made))
    return start._replace(config=made, model=models.Decoder(made)), found


def _check_sizes(config, made: models.TransformerConfig) -> None:
    """Refuses a config with other sizes than the model that it starts from."""
    if not config.model.embed:
        return
    values = {**config.model.to_dict(), "vocab": made.vocab}
    stated = sections_lib.transformer_config(ml_collections.ConfigDict(values), None)
    names = [name for name in config.model if name not in (*_FREE, *_DRAWN)]
    lines = [
        f"{name} {getattr(stated, name)} and {getattr(made, name)}"
        for name in names
        if getattr(stated, name) != getattr(made, name)
    ]
    if lines:
        raise errors.UserError(
            f"config.model and {config.init_from} differ: {'; '.join(lines)}. Set "
            "--config.model.embed=0 to take the model as it is"
        )


def _encoded(tokenizer, found, data, last_only: bool = False) -> chat.Examples:
    examples = chat.encode(
        tokenizer,
        found,
        style=data.style,
        length=data.length,
        begin=chat.begin_id(tokenizer, data.begin),
        last_only=last_only,
    )
    if examples.truncated or examples.dropped:
        _log.warning(
            "%d of %d conversations cut at %d tokens; %d left out, of which no answer "
            "is left", examples.truncated, len(found), data.length, examples.dropped,
        )  # fmt: skip
    return examples


def _split(sides: tuple, data) -> list[tuple]:
    """What is trained on and what is held out, of each side."""
    if not 0 <= data.held_out_fraction < 1:
        raise errors.UserError(
            f"data.held_out_fraction {data.held_out_fraction}; use 0 to below 1"
        )
    count = len(sides[0].ends)
    parts = conversation_rows.split(count, data.held_out_fraction, data.split_seed)
    return [
        tuple(side.take(part) for side in sides)
        for part, is_needed in zip(parts, (True, len(parts[1]) > 0), strict=True)
        if is_needed
    ]


def _with_steps(config, rows: int) -> ml_collections.ConfigDict:
    """The config with the steps of its epochs and those of its warm-up."""
    found = ml_collections.ConfigDict(config.to_dict())
    found.steps = config.steps or math.ceil(
        config.epochs * rows / config.data.batch_size
    )
    found.optim.warmup_steps = config.optim.warmup_steps or round(
        config.warmup * found.steps
    )
    return found
