"""TULU's instruction tuning: next-token loss on the answers of conversations.

Wang et al. 2023 (arXiv:2306.04751); Ivison et al. 2023 (arXiv:2311.10702).

    init_from -> conversations as rows -> next_token on answers -> AdamW

Deviation: the loss is the sum over all labels of a batch by their number, not a mean of
the means of devices or microbatches, in which short answers weigh more.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from jaxlab import load, models, objectives
from jaxlab.core import types
from jaxlab.data.examples import conversation_rows, conversations
from jaxlab.evals import perplexity
from jaxlab.systems import adapters, experiments, trust_regions
from jaxlab.systems.planning import untrained as planning
from jaxlab.systems.tulu import start as start_lib


def sft(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Instruction tuning: the experiment that `configs/tulu.py` describes."""
    start_lib.check(config)
    rows = conversations.read(config.data.source)
    start, config = start_lib.load_start(config, workdir, mesh)
    start, config, base = adapters.open_base(config, start, mesh)
    reading = read(config, start, rows)
    parts, most = reading.parts, config.eval_batches
    apply, evals = start.model.apply, {}
    if len(parts) > 1:
        evals["held_out"] = lambda params: perplexity.evaluate(
            apply, params, conversation_rows.eval_batches(parts[1], most)
        )
    config = start_lib.with_steps(config, parts[0].count)
    return sft_experiment(
        config,
        start.model,
        batches=parts[0],
        base=base,
        init_from=start.params,
        evals=evals,
        config={
            **config.to_dict(),
            "data_order": parts[0].fingerprint,
            "truncated": reading.truncated,
            "dropped": reading.dropped,
        },
    )


def read(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    rows: Sequence[conversations.Conversation] | None = None,
) -> start_lib.Reading:
    """The rows of a run.

    Args:
        config: of `sft`.
        start: whose tokenizer and template reads them.
        rows: of `data.source`, if they were read already.
    """
    data = config.data
    rows = conversations.read(data.source) if rows is None else rows
    names, messages = ([row[i] for row in rows] for i in range(2))
    examples = start_lib.encode(start, messages, names, data)
    parts = [
        conversation_rows.Rows(
            part,
            length=data.length,
            batch_size=data.batch_size,
            seed=data.seed,
            packed=data.packed,
        )
        for (part,) in conversation_rows.parts(
            (examples,), data.held_out_fraction, data.split_seed
        )
    ]
    return start_lib.Reading(parts, names, examples.truncated, examples.dropped)


def sft_experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config of `sft` trains; `data`: the fields that need data or a start."""
    data = adapters.split(data)
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def _build(model, config, /, **data: Any) -> types.Experiment:
    objective = objectives.next_token(model.apply, z_loss=config.z_loss)
    plain = experiments.of_decoder(config, model, objective, **data)
    task = functools.partial(objectives.language_model, z_loss=config.z_loss)
    return trust_regions.from_section(plain, config.trust, task)


def sft_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `sft`."""
    model = adapters.of_config(config, model)
    spec = conversation_rows.row_spec(config.data.batch_size, config.data.length)
    return planning.Untrained(
        sft_experiment(config, model, batches=None),
        spec,
        base_kept_in=adapters.planned_base(config),
    )
