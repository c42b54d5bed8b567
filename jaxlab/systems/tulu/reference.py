"""What the reference policy of preference optimisation says, asked once for a run.

    r(pair) = sum of log p(token) over the answer's labels, chosen and rejected

They are computed by the model that the run starts from, before its first step, and
kept in WORKDIR/reference.json with what they were computed of; so the run holds one
model and not two. A run that resumes has the weights of the start no more: it reads the
file, and refuses one of other pairs.

Where the reference is asked in every step it is read again by its path, at which there
may be another model by then: the file keeps a digest of its weights.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxlab import load, objectives
from jaxlab.core import errors, folders, json_text, paths, progress, tree, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import conversation_rows


def attach_reference_logps(
    parts: Sequence[conversation_rows.PairRows],
    loaded: load.Loaded,
    workdir: str | pathlib.Path,
    start: str,
) -> None:
    """Sets `reference` of pairs: read from the run directory, or computed and kept.

    Args:
        parts: of the run: trained on, and held out.
        loaded: the start; its `params` are None where the run resumes.
        workdir: the run directory.
        start: the name of the start.

    Raises:
        UserError: a run resumes and its file is missing, or is of other pairs.
    """
    file = paths.path(workdir) / "reference.json"
    made_of = {"init_from": start, "pairs": [part.fingerprint for part in parts]}
    fix = "restore it from a copy, or start again with another --workdir"
    saved = json_text.read_object(file, fix) or {}
    if loaded.params is not None:
        logps = [_reference_logps(part, loaded) for part in parts]
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
    prints = json.dumps(tree.fingerprint(params), sort_keys=True)
    digest = hashlib.sha256(prints.encode()).hexdigest()
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


def _reference_logps(
    part: conversation_rows.PairRows, loaded: load.Loaded
) -> np.ndarray:
    """f32[N, 2]."""
    score, logps = _scorer(loaded.model.apply), []
    meter, batches = progress.Meter("reference batches"), -(-part.count // part.rows)
    for done, batch in enumerate(conversation_rows.eval_batches(part), start=1):
        logps.append(np.asarray(score(loaded.params, batch)))
        if jax.process_index() == 0:
            meter(done, batches)
    return np.concatenate(logps)[: part.count]


@functools.cache
def _scorer(apply: Callable) -> Callable:
    @jax.jit
    def score(params, batch):
        return mesh_lib.replicate(objectives.answer_logps(apply, params, batch)[0])

    return score
