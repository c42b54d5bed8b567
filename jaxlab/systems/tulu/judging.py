"""What a model says of answers: a reward model's scores, or a policy's log-ratios.

    reward model    its score of the conversation
    policy          log p(answer) - log q(answer), q its reference: DPO's implicit
                    reward without beta; without a reference log p(answer)

Rafailov et al. 2023 (arXiv:2305.18290), eq. 5; Lambert et al. 2024 (arXiv:2403.13787),
section 3, for both.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxlab import load, objectives
from jaxlab.core import errors, progress, runs
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import chat, comparisons, conversation_rows
from jaxlab.evals import rewards
from jaxlab.stats import proportions

NO_REFERENCE = "none"
_MULTIPLE = 64  # rows have a multiple of it, so that few lengths are compiled

_log = logging.getLogger(__name__)


def judge(
    path: str,
    compared: Sequence[comparisons.Comparison],
    *,
    step: int | None = None,
    reference: str = "",
    length: int | None = None,
    batch_size: int = 8,
    mesh: jax.sharding.Mesh | None = None,
) -> list[list[float]]:
    """A number for each answer of comparisons, NaN of one that does not fit.

    Args:
        path: of a reward model, or of a language model.
        compared: what is judged.
        step: which checkpoint of a run.
        reference: of a language model; "" is the start of its run, "none" is none.
        length: of the longest rows; None is the model's.
        batch_size: rows at once.
        mesh: whose devices share the model.

    Raises:
        UserError: neither kind of model, or no reference is known.
    """
    if load.is_reward(path):
        if reference:
            raise errors.UserError(
                f"{path} is a reward model, it has no reference; leave out --reference"
            )
        found = _ask(path, compared, _score, length, batch_size, mesh, step)
    else:
        reference = reference or _start(path)
        found = _ask(path, compared, _log_probability, length, batch_size, mesh, step)
        if reference != NO_REFERENCE:
            rows = length, batch_size, mesh
            found = found - _ask(reference, compared, _log_probability, *rows)
    ends = np.cumsum([len(one.answers) for one in compared])
    return [part.tolist() for part in np.split(found, ends[:-1])]


def summarise(
    compared: Sequence[comparisons.Comparison], scores: Sequence[Sequence[float]]
) -> dict[str, proportions.Share]:
    """Subset -> share of right choices, and "overall"; without RewardBench 2's Ties.

    A choice of two is right where the right answer's number is greater; of more,
    `rewards.best_of_four` says what it is worth.
    """
    credits: dict[str, list[float]] = {}
    for one, numbers in zip(compared, scores, strict=True):
        if one.num_correct > 1 or _is_tied(one):
            continue
        known = [-math.inf if math.isnan(x) else x for x in numbers]
        if math.isnan(numbers[0]):
            credit = 0.0
        elif len(numbers) == 2:
            credit = float(known[0] > known[1])
        else:
            credit = float(rewards.best_of_four([known])[0])
        credits.setdefault(one.subset, []).append(credit)
    shares = {
        name: proportions.share(sum(own), len(own))
        for name, own in credits.items()
        if name
    }
    every = [x for own in credits.values() for x in own]
    return shares | {"overall": proportions.share(sum(every), len(every))}


def ties(
    compared: Sequence[comparisons.Comparison], scores: Sequence[Sequence[float]]
) -> rewards.Ties | None:
    """RewardBench 2's Ties among comparisons; None where there are none."""
    rows = [
        rewards.TiedRow(one.id, one.num_correct, _below_all(numbers))
        for one, numbers in zip(compared, scores, strict=True)
        if _is_tied(one)
    ]
    return rewards.ties(rows) if rows else None


def _below_all(numbers: Sequence[float]) -> list[float]:
    """The numbers, with what has none below all others."""
    known = [x for x in numbers if not math.isnan(x)]
    return [min(known, default=0.0) - 1 if math.isnan(x) else x for x in numbers]


def _is_tied(one: comparisons.Comparison) -> bool:
    return one.id.partition(":")[0] in ("tied", "ref") and len(one.answers) > 2


def _start(path: str) -> str:
    """What a run was tuned from."""
    run = runs.find(path) if runs.has_checkpoints(path) else None
    start = "" if run is None else run.config.get("init_from") or ""
    if not start:
        raise errors.UserError(
            f"{path} does not say what it was tuned from; give --reference, or "
            f"--reference={NO_REFERENCE} to compare log-probabilities alone"
        )
    return start


def _ask(path, compared, ask, length, batch_size, mesh, step=None) -> np.ndarray:
    """f64 numbers of all answers, one comparison's after the other's."""
    is_score = ask is _score
    opened = load.scorer if is_score else load.decoder
    loaded = opened(path, step=step, mesh=mesh)
    most = min(length or loaded.config.length, loaded.config.length)
    examples = _encode(path, loaded, compared, most)
    longest = int(examples.sizes.max(initial=1))
    rows = conversation_rows.Rows(
        examples,
        length=min(-(-longest // _MULTIPLE) * _MULTIPLE, most),
        batch_size=batch_size,
        packed=False,
    )
    found = np.full(sum(len(one.answers) for one in compared), np.nan)
    meter, apply = progress.Meter("answers"), _numbers_of(loaded.model.apply, ask)
    for first in range(0, rows.count, batch_size):
        chosen = np.arange(first, min(first + batch_size, rows.count))
        padding = np.full(batch_size - len(chosen), -1)
        batch = rows.fill(np.concatenate([chosen, padding]))
        numbers = np.asarray(apply(loaded.params, batch))[: len(chosen)]
        found[examples.number[chosen]] = numbers
        meter(int(chosen[-1]) + 1, rows.count)
    return found


@functools.cache
def _numbers_of(apply: Callable, ask: Callable) -> Callable:
    @jax.jit
    def numbers(params, batch):
        return mesh_lib.replicate(ask(apply, params, batch))

    return numbers


def _score(apply, params, batch):
    lengths = (batch["segment_ids"] > 0).sum(axis=1)
    return apply({"params": params}, batch["tokens"], jax.numpy.maximum(lengths, 1))


def _log_probability(apply, params, batch):
    return objectives.single_logps(apply, params, batch)[0]


def _encode(path, loaded, compared, most) -> chat.Examples:
    """The answers in the model's own format; without those that are longer than it."""
    messages = [answer for one in compared for answer in one.answers]
    names = [one.id for one in compared for _ in one.answers]
    settings = {"length": most + 1, "last_only": True}
    try:
        style, begin = load.chat_format(path) or ("open_instruct", "bos")
    except errors.UserError:  # a template of its own
        from jaxlab.data.examples import own_template  # here: nothing else needs jinja2

        template = load.chat_template(path)
        examples = own_template.encode(template, messages, names, **settings)
    else:
        begin = chat.begin_id(loaded.tokenizer, begin)
        examples = chat.encode(
            loaded.tokenizer, messages, style=style, begin=begin, **settings
        )
    fitting = examples.take(np.flatnonzero(examples.sizes <= most))
    if left_out := len(messages) - len(fitting.ends):
        _log.warning(
            "%d of %d answers do not fit into %d tokens of %s, and win nothing",
            *(left_out, len(messages), most, path),
        )
    return fitting
