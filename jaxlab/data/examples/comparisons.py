"""Right and wrong answers to prompts, to be told apart: pairs, RewardBench 1 and 2.

    {"prompt": ..., "chosen": text, "rejected": text, "subset": ..., "id": ...}
    {"prompt": ..., "chosen": [text, ...], "rejected": [text, ...], "subset": ...}

The first is RewardBench 1's, or any file of pairs (`conversations.read_pairs`); the
second RewardBench 2's, of whose rows most have one right answer and three wrong ones.
And a judge's verdicts on them: {"id": ..., "verdict": "chosen"}, or "rejected", "tie";
or {"id": ..., "scores": [number per answer, the right ones first]}.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxlab.core import errors
from jaxlab.data import lines
from jaxlab.data.examples import chat, conversations
from jaxlab.data.examples import fields as fields_lib

_EXPECTED = (
    'expected "chosen" and "rejected", each a text beside "prompt", a list of texts, '
    "or a list of messages"
)
_VERDICTS = {"chosen": (1.0, 0.0), "rejected": (0.0, 1.0), "tie": (0.0, 0.0)}


class Comparison(NamedTuple):
    """Conversations that differ in their last answer, the right ones first.

    Attributes:
        id: the data's own, or FILE:ROW.
        subset: that it belongs to; "" of none.
        answers: conversations, right ones, then wrong ones.
        num_correct: how many are right.
    """

    id: str
    subset: str
    answers: tuple[conversations.Messages, ...]
    num_correct: int


def read(source: str) -> list[Comparison]:
    """The comparisons of files or folders of them, separated by commas.

    Raises:
        UserError: nothing to read, or a row that is not a comparison (file and row).
    """
    return conversations.read_rows(source, _comparison, _EXPECTED)


def _comparison(row: fields_lib.Fields, id: str, remarks: set[str]) -> Comparison:
    sides = [row.values.get(name) for name in ("chosen", "rejected")]
    if not all(_is_texts(side) for side in sides):
        pair = conversations.parse_pair(row, id, remarks, of_rewards=True)
        return Comparison(id, pair.subset, (pair.chosen, pair.rejected), 1)
    if not all(sides):
        raise row.error("it needs a right and a wrong answer; remove the row")
    asked = chat.Message("user", row.text("prompt"))
    right, wrong = (
        [
            (asked, chat.Message("assistant", lines.require_utf8(text, row.place)))
            for text in side
        ]
        for side in sides
    )
    subset = row.text("subset") if row.says("subset") else ""
    return Comparison(id, subset, (*right, *wrong), len(right))


def _is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def read_verdicts(file: str, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """A judge's numbers for the answers of comparisons, in their order.

    Args:
        file: .jsonl, one row for each comparison, by id; NaNs where a judge said none.
        comparisons: all of them.

    Raises:
        UserError: a comparison without a verdict, or a row that is none (file and row).
    """
    wanted = {one.id: one for one in comparisons}
    found: dict[str, list[float]] = {}
    for number, row in lines.read_json(file):
        place = f"{file}:{number}"
        if not isinstance(row, dict) or str(row.get("id")) not in wanted:
            raise errors.UserError(
                f"{place} has no id of one of the pairs; write the id that they have, "
                "or the pairs' FILE:ROW"
            )
        id = str(row["id"])
        if id in found:
            raise errors.UserError(f"{place}: {id} has two verdicts; leave out one")
        found[id] = _numbers(row, place, wanted[id])
    if lost := [id for id in wanted if id not in found]:
        raise errors.UserError(
            f"{file} has no verdict on {len(lost)} of {len(wanted)} rows, e.g. "
            f"{lost[0]}; add them"
        )
    return [found[one.id] for one in comparisons]


def _numbers(row: dict, place: str, one: Comparison) -> list[float]:
    count = len(one.answers)
    if "verdict" in row:
        if row["verdict"] not in _VERDICTS or count != 2:
            raise errors.UserError(
                f"{place}: the verdict is {row['verdict']!r} on {count} answers; write "
                "chosen, rejected or tie on two, or scores"
            )
        return [*_VERDICTS[row["verdict"]]]
    scores = row.get("scores")
    is_list = isinstance(scores, list) and len(scores) == count
    if not is_list or not all(x is None or _is_number(x) for x in scores):
        raise errors.UserError(
            f"{place}: no verdict, and scores is not a list of {count} numbers"
        )
    return [math.nan if x is None else float(x) for x in scores]


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
