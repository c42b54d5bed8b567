"""Which characters of a rendered conversation an assistant wrote.

    header | content as rendered, calls of tools | end marker | line end
           |<------------- labels -------------------------->|

What a template writes between the header that ends a prompt and the content is a label,
too: a model that is asked has to write it (<think>, [TOOL_CALLS]). All follows from
where a character came from (`traced`), not from the lengths of prefixes: templates
rewrite earlier turns. One with {% generation %} says itself what its answers are.
"""

import bisect
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
        asks: what stands between a question and an answer that is to be written; "" if
            unknown.
    """

    headers: tuple[str, ...]
    ends: frozenset[int]
    asks: str = ""


def find_frame(
    asked: str,
    prompt: traced.Traced,
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
    question = prompt.marks.rfind(traced.of_message(0)) + 1
    asks = prompt[question:] if question else ""
    if str.__eq__(prompt, asked) and headers and headers[0].strip():
        asks += headers[0]  # a template that has no generation prompt
    return Frame(
        tuple(header for header in headers if header),
        frozenset([eos, *itertools.islice(behind, 1)]),
        asks,
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
    nearest = _find_nearest(bounds, len(messages), len(text))
    ends = [t for t in tokens if t.is_control]
    spans, at, is_asked = [], 0, False
    for number, message in enumerate(messages):
        start, stop = bounds.get(number, (None, None))
        limit = nearest[number + 1]
        if limit < at:  # what a template moves forward is no limit
            later = (first for n, (first, _) in bounds.items() if n > number)
            limit = min((first for first in later if first >= at), default=len(text))
        if message["role"] == "assistant":
            before = limit if start is None else start
            header = _find_header(text, frame, at, before, is_asked)
            if start is None or not message.get("content"):
                start = header if start is None or header is not None else start
                stop = stop if stop is not None else start
            if start is not None:
                if header is not None and _is_written(text[header:start]):
                    start = header
                near = not message.get("tool_calls")
                stop = _find_end(text, ends, stop, limit, frame, near)
                if number in learnt:
                    spans.append((start, stop))
        is_asked = message["role"] == "user" and stop is not None and stop >= at
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


def _find_nearest(bounds, count, size) -> list[int]:
    """Where the first character is of each message and all behind it."""
    firsts = [bounds.get(number, (size, size))[0] for number in range(count)]
    return [*itertools.accumulate(reversed([*firsts, size]), min)][::-1]


def _find_bounds(runs) -> dict[int, tuple[int, int]]:
    """Message -> from its first to its last character."""
    bounds: dict[int, tuple[int, int]] = {}
    for mark, start, stop in runs:
        number = traced.message_of(mark)
        if number is not None:
            bounds[number] = (bounds.get(number, (start, stop))[0], stop)
    return bounds


def _find_header(text, frame, start, stop, is_asked) -> int | None:
    """Where the text behind the next header begins.

    Args:
        text: the conversation.
        frame: of its template.
        start, stop: it lies between them.
        is_asked: a question ends at `start`.
    """
    if is_asked and frame.asks and text.startswith(frame.asks, start, stop):
        return start + len(frame.asks)
    for header in frame.headers:
        at = text.find(header, start, stop)
        if at >= 0 and all(map(traced.is_own, text.marks[at : at + len(header)])):
            return at + len(header)
    return None


def _is_written(text: traced.Traced) -> bool:
    """Whether a template wrote more between a header and an answer than white space.

    A model has to write it itself: <think>, [TOOL_CALLS].
    """
    return bool(text.strip()) and all(map(traced.is_own, text.marks))


def _find_end(text, tokens, stop, limit, frame, is_near) -> int:
    """The end of the marker that ends a turn whose text ends at `stop`.

    Where turns have no marker it is the one of the next turn: behind the text, or
    behind what a template writes of calls, numbers and markers.
    """
    first = bisect.bisect_left(tokens, stop, key=lambda t: t.start)
    after = itertools.islice(tokens, first, None)
    behind = [*itertools.takewhile(lambda t: t.stop <= limit, after)]
    named = [t for t in behind if t.id in frame.ends]
    if is_near:
        other = [t for t in behind[:1] if not text[stop : t.start].strip()]
    else:
        other = behind[-1:]
    return next((t.stop for t in (*named, *other)), stop)
