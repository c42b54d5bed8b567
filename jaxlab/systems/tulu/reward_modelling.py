"""Reward models: a score of a conversation, learnt from which answer is preferred.

Ouyang et al. 2022 (arXiv:2203.02155); Ivison et al. 2024 (arXiv:2406.09279).

    init_from -> its trunk with a new score head -> pairs -> reward -> AdamW

The score is read at the last token of the conversation, which ends the answer's turn.
Pairs of which a side is longer than `data.length` are left out: a cut one would be
scored in the middle of a sentence.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, models, objectives
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import types
from jaxlab.data.examples import conversation_rows, conversations
from jaxlab.evals import preferences, rewards
from jaxlab.systems import experiments
from jaxlab.systems.planning import untrained as planning
from jaxlab.systems.tulu import start as start_lib

_log = logging.getLogger(__name__)


def reward(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """Reward modelling: the experiment that `configs/tulu.py` describes."""
    start_lib.check(config)
    pairs = conversations.read_pairs(config.data.source, of_rewards=True)
    start, config = start_lib.load_start(config, workdir, mesh)
    data, most = read(config, start, pairs), config.eval_batches

    # ---- the experiment
    model = models.Scorer(dataclasses.replace(start.config, head="score"))
    config.model.head = "score"
    params = start.params
    if params is not None:
        params = with_score(model, params, jax.random.key(config.seed), mesh)
    evals = {}
    if len(data.parts) > 1:
        objective, part = _objective(config, model), data.parts[1]
        subsets = [pairs[i].subset for i in part.sides[0].number]
        evals["held_out"] = lambda params: held_out(
            objective, model, params, part, subsets, most
        )
    config = start_lib.with_steps(config, data.parts[0].count)
    return reward_experiment(
        config,
        model,
        batches=data.parts[0],
        init_from=params,
        evals=evals,
        config={
            **config.to_dict(),
            "data_order": data.parts[0].fingerprint,
            "truncated": data.truncated,
            "dropped": data.dropped,
        },
    )


def read(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    pairs: Sequence[conversations.Pair] | None = None,
) -> start_lib.Reading:
    """The pairs of a run; arguments as for `preference_tuning.read`."""
    data = config.data
    if pairs is None:
        pairs = conversations.read_pairs(data.source, of_rewards=True)
    sides, truncated = _encode(start, pairs, data)
    parts = [
        conversation_rows.PairRows(
            *part,
            length=data.length,
            batch_size=data.batch_size,
            seed=data.seed,
            margins=np.array([pairs[i].margin for i in part[0].number], np.float32),
        )
        for part in conversation_rows.parts(
            sides, data.held_out_fraction, data.split_seed
        )
    ]
    names, left_out = [pair.id for pair in pairs], len(pairs) - len(sides[0].ends)
    return start_lib.Reading(parts, names, truncated, left_out)


def with_score(
    model: models.Scorer, params: types.Params, key: jax.Array, mesh: jax.sharding.Mesh
) -> types.Params:
    """A decoder's parameters as those of a reward model: the head is a new one."""
    example = np.zeros((1, 2), np.int32), np.ones(1, np.int32)
    boxed = jax.eval_shape(model.init, key, *example)["params"]["score"]

    @functools.partial(jax.jit, out_shardings=mesh_lib.param_shardings(boxed, mesh))
    def draw(key):
        return mesh_lib.unbox(model.init(key, *example)["params"]["score"])

    trunk = {name: x for name, x in params.items() if name != "lm_head"}
    return trunk | {"score": draw(key)}


def held_out(
    objective: types.Objective,
    model: models.Scorer,
    params: types.Params,
    part: conversation_rows.PairRows,
    subsets: Sequence[str],
    most: int = 0,
) -> dict[str, float]:
    """The metrics of held-out pairs, and their accuracy by subset where there are."""
    batches = conversation_rows.eval_batches(part, most)
    found = preferences.evaluate(objective, params, batches)
    if not any(subsets):
        return found
    batches = conversation_rows.eval_batches(part, most)
    scores = rewards.scores(model.apply, params, batches)[: part.count]
    shares = rewards.accuracy(scores[:, 0], scores[:, 1], subsets[: len(scores)])
    del shares["overall"]
    return found | {f"accuracy/{name}": one.value for name, one in shares.items()}


def reward_experiment(
    config: ml_collections.ConfigDict, model: models.Scorer, /, **data: Any
) -> types.Experiment:
    """What a config of `reward` trains; `data`: what needs data or a start."""
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def _build(model, config, /, **data: Any) -> types.Experiment:
    made = experiments.of_decoder(config, model, _objective(config, model), **data)
    example = np.zeros((1, 8), np.int32), np.ones(1, np.int32)
    return dataclasses.replace(made, example=example)


def reward_untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles for `reward`."""
    data = config.data
    scorer = models.Scorer(dataclasses.replace(model.config, head="score"))
    spec = conversation_rows.pair_spec(data.batch_size, data.length, margins=True)
    return planning.Untrained(reward_experiment(config, scorer, batches=None), spec)


def _objective(config, model) -> types.Objective:
    return objectives.reward(model.apply, **config.reward.to_dict())


def _encode(start, pairs, data):
    """Both sides as examples, and how many sides are too long."""
    longer = ml_collections.ConfigDict(data.to_dict())
    longer.length += 1  # what is cut there is too long
    names = [pair.id for pair in pairs]
    encoded = [
        start_lib.encode(start, side, names, longer, last_only=True)
        for side in ([x.chosen for x in pairs], [x.rejected for x in pairs])
    ]
    fitting = [side.take(np.flatnonzero(side.sizes <= data.length)) for side in encoded]
    sides = conversation_rows.match_sides(*fitting)
    if left_out := len(pairs) - len(sides[0].ends):
        _log.warning(
            "%d of %d pairs left out: a side is longer than %d tokens",
            *(left_out, len(pairs), data.length),
        )
    return sides, sum(int((side.sizes > data.length).sum()) for side in encoded)
