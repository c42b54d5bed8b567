"""What the reference policy of preference optimisation says, asked once for all runs.

    r(pair) = sum of log p(token) over the answer's labels, chosen and rejected

They are computed by the model that the run starts from, before its first step, so the
run holds one model and not two. `reference_cache` keeps them for other runs from that
start: what it has is not asked again. WORKDIR/reference.json has those of this run with
what they were computed of. A run that resumes has the weights of the start no more: it
reads that file, and refuses one of other pairs.

Where the reference is asked in every step it is read again by its path, at which there
may be another model by then: the file keeps a digest of its weights.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, objectives
from jaxlab.core import errors, folders, json_text, paths, progress, tree, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import conversation_rows
from jaxlab.systems import adapters
from jaxlab.systems.tulu import reference_cache

_PART_SECONDS = 30.0  # of work that a killed run asks again at most


Rows = conversation_rows.PairRows


def ask_in_step(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    base: Any,
    workdir: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
) -> types.Params:
    """The reference policy in memory, for a run that asks it in every step.

    Args:
        config: of the run.
        start: what it tunes.
        base: of its adapter, `adapters.open_base`; None where it tunes all parameters.
        workdir: the run directory.
        mesh: where the policy goes.

    Raises:
        UserError: the run began with other weights.
    """
    path = config.init_from
    if base is None:
        policy = start.params or load.params(path, mesh=mesh)
    else:
        policy = adapters.reference(config, start.model, base)
    check_policy(policy, workdir, path, is_new=start.params is not None)
    return policy


def attach_reference_logps(
    parts: Sequence[Rows],
    loaded: load.Loaded,
    workdir: str | pathlib.Path,
    start: str,
    *,
    folder: str = "",
    style: str = "",
    tail_weight: float = 1.0,
) -> None:
    """Sets `reference` of pairs: read from the run directory, kept ones, or computed.

    Args:
        parts: of the run: trained on, and held out.
        loaded: the start; its `params` are None where the run resumes.
        workdir: the run directory.
        start: the name of the start.
        folder: of the cache; "" is the user's.
        style: of the conversations.
        tail_weight: as for `objectives.preference`.

    Raises:
        UserError: a run resumes and its file is missing, or is of other pairs.
    """
    file = paths.path(workdir) / "reference.json"
    made_of = {"init_from": start, "pairs": [part.fingerprint for part in parts]}
    fix = "restore it from a copy, or start again with another --workdir"
    saved = json_text.read_object(file, fix) or {}
    if loaded.params is not None:
        made_with = _made_with(loaded, parts[0].length, style, tail_weight)
        cache = reference_cache.Cache(folder, made_with)
        score = _scorer(loaded.model.apply, tail_weight)
        known = cache.read() if jax.process_index() == 0 else {}
        logps = [
            _reference_logps(part, loaded.params, score, cache, known) for part in parts
        ]
        saved = {**made_of, "logps": [x.tolist() for x in logps]}
        if jax.process_index() == 0:
            paths.make_folder(file.parent)
            folders.write_text(file, json.dumps(saved))
    elif saved.get("pairs") != made_of["pairs"]:  # another start is refused by `train`
        raise errors.UserError(
            f"{file} is missing or is of other pairs; restore it and the data, or "
            "start again with another --workdir"
        )
    for part, logps in zip(parts, saved["logps"], strict=True):
        part.reference = np.array(logps, np.float32)


def check_policy(
    params: types.Params, workdir: str | pathlib.Path, start: str, *, is_new: bool
) -> None:
    """Keeps a digest of the reference policy, or compares it with the one kept.

    Args:
        params: of the policy, as it was read by its path.
        workdir: the run directory.
        start: the path.
        is_new: the run begins; a run of older commits that kept no digest is believed.

    Raises:
        UserError: the run began with other weights.
    """
    file = paths.path(workdir) / "reference.json"
    digest = tree.digest(params)
    if is_new:
        if jax.process_index() == 0:
            paths.make_folder(file.parent)
            policy = {"init_from": start, "sha256": digest}
            folders.write_text(file, json.dumps(policy))
        return
    fix = "restore it from a copy, or start again with another --workdir"
    saved = json_text.read_object(file, fix) or {}
    if saved.get("sha256", digest) != digest:
        raise errors.UserError(
            f"{start} is not the model that {workdir} began with, its reference: "
            "restore that one, or start again with another --workdir"
        )


def _made_with(loaded: load.Loaded, length: int, style: str, tail_weight: float):
    """All that the log-probabilities of a row depend on, besides the row."""
    config = dataclasses.asdict(loaded.config)
    free = set(loaded.config.FREE) - {"dtype"}
    return {
        "weights": tree.digest(loaded.params),
        "config": {name: repr(x) for name, x in config.items() if name not in free},
        "length": length,
        "style": style,
        "tail_weight": tail_weight,
    }


def _reference_logps(
    part: Rows,
    params: types.Params,
    score: Callable,
    cache: reference_cache.Cache,
    known: Mapping[str, tuple[float, float]],
) -> np.ndarray:
    """f32[N, 2]: what is known of a part, and the rest as it is asked now."""
    names = [
        name
        for batch in conversation_rows.eval_batches(part)
        for name in (reference_cache.row_names(batch) if known else ())
    ][: part.count]
    is_known = np.array([name in known for name in names] or [False] * part.count)
    logps = np.zeros((part.count, 2), np.float32)
    logps[is_known] = [known[name] for name in names if name in known] or 0.0
    is_known, logps = _of_first_host(is_known, logps)

    meter, asked = progress.Meter("reference pairs"), np.flatnonzero(~is_known)
    waiting: list[int] = []
    kept_at = time.monotonic()
    for first in range(0, len(asked), part.rows):
        rows = asked[first : first + part.rows]
        batch = part.fill(np.pad(rows, (0, part.rows - len(rows)), constant_values=-1))
        logps[rows] = np.asarray(score(params, batch))[: len(rows)]
        if jax.process_index() != 0:
            continue
        waiting += rows.tolist()
        done = first + len(rows)
        meter(done, len(asked))
        if done == len(asked) or time.monotonic() - kept_at > _PART_SECONDS:
            cache.add(_names(part, waiting), logps[waiting])
            waiting, kept_at = [], time.monotonic()
    return logps


def _names(part: Rows, rows: Sequence[int]) -> list[str]:
    """Names of rows by number, of a few at a time: they are wide."""
    parts = np.array_split(np.array(rows), -(-len(rows) // part.rows))
    return [name for x in parts for name in reference_cache.row_names(part.fill(x))]


def _of_first_host(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the first host has, for all: they ask for the same rows together."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    given = multihost_utils.broadcast_one_to_all(arrays)
    return tuple(np.array(x) for x in given)


@functools.cache
def _scorer(apply: Callable, tail_weight: float = 1.0) -> Callable:
    @jax.jit
    def score(params, batch):
        logps = objectives.answer_logps(apply, params, batch, tail_weight)[0]
        return mesh_lib.replicate(logps)

    return score
