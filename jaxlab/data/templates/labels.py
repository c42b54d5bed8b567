"""Which characters of a rendered conversation an assistant wrote.

    header | content as rendered, calls of tools | end marker | line end
           |<------------- labels -------------------------->|

They follow from where a character came from (`traced`), not from the lengths of
prefixes, which templates change that rewrite earlier turns. A template with
{% generation %} says itself what its answers are.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.data.templates import control, traced

_RUNS = re.compile(r"(.)\1*", re.DOTALL)


class Frame(NamedTuple):
    """What a template writes around an answer; found by `find_frame`.

    Attributes:
        headers: what may stand in front of it, the likelier first.
        ends: ids of tokens that end a turn.
    """

    headers: tuple[str, ...]
    ends: frozenset[int]


def find_frame(
    asked: str,
    prompt: str,
    answered: traced.Traced,
    tokens: Sequence[control.Token],
    eos: int,
) -> Frame:
    """The frame of answers.

    Args:
        asked: a conversation of one question, rendered.
        prompt: the same with a generation prompt.
        answered: the same with an answer, message 1.
        tokens: of `answered`.
        eos: the tokenizer's end of text.
    """
    mark = traced.of_message(1)
    start, stop = answered.marks.find(mark), answered.marks.rfind(mark) + 1
    texts = (answered[: max(start, 0)], prompt)
    headers = [t[len(asked) :] for t in texts if t.startswith(asked)]
    behind = (t.id for t in tokens if t.is_control and t.start >= stop)
    return Frame(
        tuple(header for header in headers if header),
        frozenset([eos, *itertools.islice(behind, 1)]),
    )


def find_spans(
    text: traced.Traced,
    tokens: Sequence[control.Token],
    messages: Sequence[Mapping[str, Any]],
    frame: Frame,
    learnt: Collection[int],
) -> list[tuple[int, int]]:
    """(start, stop) of the characters of answers, in their order.

    Args:
        text: the conversation.
        tokens: of it.
        messages: of it.
        frame: of its template.
        learnt: numbers of the messages whose answers count.
    """
    runs = [(m[1], m.start(), m.end()) for m in _RUNS.finditer(text.marks)]
    if any(traced.is_generated(mark) for mark, _, _ in runs):
        answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
        return _find_generated(runs, answers, learnt)
    bounds = _find_bounds(runs)
    ends = [t for t in tokens if t.is_control]
    spans, at = [], 0
    for number, message in enumerate(messages):
        start, stop = bounds.get(number, (None, None))
        later = (first for n, (first, _) in bounds.items() if n > number)
        limit = min((first for first in later if first >= at), default=len(text))
        if message["role"] == "assistant":
            before = limit if start is None else start
            header = _find_header(text, frame.headers, at, before)
            if start is None or not message.get("content"):
                start = header if start is None or header is not None else start
                stop = stop if stop is not None else start
            if start is not None:
                stop = _find_end(text, ends, stop, limit, frame)
                if number in learnt:
                    spans.append((start, stop))
        at = max(at, stop or 0)
    return spans


def _find_generated(runs, answers, learnt) -> list[tuple[int, int]]:
    """Blocks of {% generation %} of the answers that count."""
    blocks: list[tuple[int, int, set[int | None]]] = []
    for mark, start, stop in runs:
        if traced.is_generated(mark):
            if not (blocks and blocks[-1][1] == start):
                blocks.append((start, start, set()))
            first, _, said = blocks.pop()
            blocks.append((first, stop, said | {traced.message_of(mark)}))
    if len(blocks) == len(answers):
        pairs = zip(blocks, answers, strict=True)
        return [block[:2] for block, number in pairs if number in learnt]
    unlearnt = {*answers} - {*learnt}
    return [(start, stop) for start, stop, said in blocks if not said & unlearnt]


def _find_bounds(runs) -> dict[int, tuple[int, int]]:
    """Message -> from its first to its last character."""
    bounds: dict[int, tuple[int, int]] = {}
    for mark, start, stop in runs:
        number = traced.message_of(mark)
        if number is not None:
            bounds[number] = (bounds.get(number, (start, stop))[0], stop)
    return bounds


def _find_header(text, headers, start, stop) -> int | None:
    """Where the text behind the next header begins."""
    for header in headers:
        at = text.find(header, start, stop)
        if at >= 0 and all(map(traced.is_own, text.marks[at : at + len(header)])):
            return at + len(header)
    return None


def _find_end(text, tokens, stop, limit, frame) -> int:
    """The end of the marker that ends a turn whose text ends at `stop`."""
    behind = [t for t in tokens if stop <= t.start and t.stop <= limit]
    named = [t for t in behind if t.id in frame.ends]
    near = [t for t in behind[:1] if not text[stop : t.start].strip()]
    return next((t.stop for t in (*named, *near)), stop)
