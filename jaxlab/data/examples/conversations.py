r"""Reading instruction data: conversations, and pairs of which one is preferred.

One object per line (.jsonl, also .gz and .zst) or a list of them (.json), as published:

    {"messages": [{"role": "user", "content": ...}, ...]}        TÜLU, most of today's
    {"conversations": [{"from": "human", "value": ...}, ...]}    ShareGPT
    {"instruction": ..., "input": ..., "output": ...}            Alpaca, Dolly
    {"prompt": ..., "completion": ...}                           or "response"

Each may have a "system" beside it, and those of one prompt a "history" of [asked,
answered]. A pair has "chosen" and "rejected" beside a "prompt" or an "instruction":
strings, or lists of messages, which may begin with the prompt or its end
(UltraFeedback, binarised). Alpaca's input, or Dolly's context, follows its instruction
after a blank line. What does not fit is an error with file and row, and never left out;
`fields` says what becomes of all other fields.
"""

import functools
import logging
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxlab.core import errors, paths
from jaxlab.data import lines
from jaxlab.data.corpus import documents
from jaxlab.data.examples import chat
from jaxlab.data.examples import fields as fields_lib

_log = logging.getLogger(__name__)

_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in chat.ROLES}
_TURNS = ("messages", "conversations")
_MORE = ("input", "context")
_CONTENTS = ("content", "value")
_ASKED = ("instruction", "prompt")
_SIDES = ("chosen", "rejected")
_ANSWERS = ("output", "completion", "response")
_SYSTEMS = ("system", "system_prompt", "system_message")
_ALL_SYSTEMS = frozenset(_SYSTEMS)
_UNLEARNT = (
    "it says that it is not to be learnt; remove the row"  # or its answer is bad
)
_EXPECTED = (
    'expected "messages", or "conversations", or "instruction" and "output", or '
    '"prompt" and "completion"'
)
_EXPECTED_PAIR = (
    'expected "chosen" and "rejected", each a text beside "prompt" or "instruction", '
    "or a list of messages"
)
_EXPECTED_JUDGED = (
    f'{_EXPECTED}, and "label": true where the answer is good, else false; or "chosen" '
    'and "rejected"'
)
_LABELS = ("label", "kto_tag", "is_desirable", "desirable")


Messages = tuple[chat.Message, ...]


class Conversation(NamedTuple):
    """Messages in their order; the id is the data's own, or FILE:ROW."""

    id: str
    messages: tuple[chat.Message, ...]


class Judged(NamedTuple):
    """A conversation of which the last answer is good or bad."""

    id: str
    messages: tuple[chat.Message, ...]
    is_good: bool


class Pair(NamedTuple):
    """Two conversations that differ in their last answer.

    Attributes:
        id: the data's own, or FILE:ROW.
        chosen, rejected: messages in their order.
        margin: by which the chosen answer's reward should be higher.
        subset: of the data, that it belongs to; "" of none.
    """

    id: str
    chosen: tuple[chat.Message, ...]
    rejected: tuple[chat.Message, ...]
    margin: float = 0.0
    subset: str = ""


def read(source: str) -> list[Conversation]:
    """The conversations of files or folders of them, separated by commas.

    Raises:
        UserError: nothing to read, or a row that is not a conversation (file and row).
    """
    return read_rows(source, _conversation, _EXPECTED)


def read_pairs(source: str, *, of_rewards: bool = False) -> list[Pair]:
    """The pairs of files or folders of them, separated by commas.

    Args:
        source: the files.
        of_rewards: `margin` and `subset` of a row are read, too.

    Raises:
        UserError: nothing to read, or a row that is not a pair (file and row).
    """
    parse = functools.partial(parse_pair, of_rewards=of_rewards)
    return read_rows(source, parse, _EXPECTED_PAIR)


def read_judged(source: str) -> list[Judged]:
    """The answers of files or folders of them, with what their label says of them.

    A row is a conversation with a `label`, true or false; or a pair, which is two.

    Raises:
        UserError: nothing to read, or a row that is neither (file and row).
    """
    rows = read_rows(source, _judgements, _EXPECTED_JUDGED)
    return [answer for answers in rows for answer in answers]


def read_rows(source: str, parse: Callable, expected: str) -> list:
    """What `parse` (of fields, an id, remarks) makes of every row."""
    examples, remarks = [], set()
    for name in paths.split(source):
        for path in _files(pathlib.Path(name)):
            file, base = str(path), path.name
            for number, values in _rows(path):
                place = f"{file}:{number}"
                if not isinstance(values, dict):
                    raise errors.UserError(f"{place} is not a JSON object; {expected}")
                row = fields_lib.Fields(values, place, expected)
                identity = row.read("id")
                identity = f"{base}:{number}" if identity is None else str(identity)
                examples.append(parse(row, identity, remarks))
    if not examples:
        raise errors.UserError(
            f"no conversation in {source!r}; set --config.data.source to .jsonl files"
        )
    if remarks:
        _log.warning("%s: not read: %s", source, ", ".join(sorted(remarks)))
    return examples


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        names = documents.list_files(path)
        chosen = [
            name
            for name in sorted(names, key=lambda n: n.split("/"))
            if _is_readable(name) and documents.is_visible(name)
        ]
        others = {name for name in names if documents.is_visible(name)}
        documents.warn_of_skipped(path, others - set(chosen))
        return [path / name for name in chosen]
    if not path.is_file():
        raise errors.UserError(f"{path} does not exist; give a .jsonl file or a folder")
    if not _is_readable(path.name):
        raise errors.UserError(f"{path} is neither .jsonl nor .json; convert it")
    return [path]


def _is_readable(name: str) -> bool:
    return bool(re.search(r"\.json$", name, re.I) or documents.JSON_LINES.search(name))


def _rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    if path.suffix.lower() != ".json":
        yield from lines.read_json(path)
        return
    text = lines.read_whole(path, "write one object per line, as .jsonl")
    rows = lines.parse_json(text, str(path), "repair it")
    if not isinstance(rows, list):
        raise errors.UserError(
            f"{path} is not a list of objects; write one object per line"
        )
    yield from enumerate(rows, start=1)


# ------------------------------------------------------------------ rows


def _conversation(row: fields_lib.Fields, id: str, remarks: set[str]) -> Conversation:
    if row.learnt() is False:
        raise row.error(_UNLEARNT)
    turns = row.first(_TURNS)
    if turns:
        messages = _with_system(row, _parse_turns(row, turns, remarks))
    else:
        answer, asked = row.first(_ANSWERS), row.first(_ASKED)
        prompt = _prompt(row, asked, remarks)
        if answer is None or asked is None:
            names = ", ".join(row.values)
            raise errors.UserError(f"{row.place} has {names}; {_EXPECTED}")
        messages = (*prompt, *_parse_answer(row, answer, remarks))
    row.check(lambda: [m.content for m in messages], remarks, also=_SIDES)
    if messages[-1].role != "assistant" and all(
        message.role != "assistant" for message in messages
    ):
        raise errors.UserError(
            f"{row.place} has no answer of an assistant; add or remove it"
        )
    return Conversation(id, messages)


def parse_pair(
    row: fields_lib.Fields, id: str, remarks: set[str], *, of_rewards: bool = False
) -> Pair:
    """A row as a pair; `remarks` gets the names of what is not read."""
    if row.learnt() is False:
        raise row.error(_UNLEARNT)
    if "chosen" not in row.values or "rejected" not in row.values:
        names = ", ".join(row.values)
        raise errors.UserError(f"{row.place} has {names}; {_EXPECTED_PAIR}")
    asked, before = row.first(_ASKED), ()
    prompt = _prompt(row, asked, remarks)
    turns = row.first(_TURNS)
    if turns and asked is None:
        before = _parse_turns(row, turns, remarks)
        if before[-1].role == "user":
            prompt, before = _with_system(row, before), ()
    chosen = _side(row, "chosen", prompt, remarks)
    rejected = _side(row, "rejected", prompt, remarks)
    if before and not (_ends_with(chosen, before) or _ends_with(rejected, before)):
        raise row.error(
            f"{turns} are neither a prompt nor one of chosen and rejected; remove them"
        )
    if chosen[:-1] != rejected[:-1]:
        raise errors.UserError(
            f"{row.place}: chosen and rejected answer different prompts; remove the row"
        )
    more = (_margin(row), _subset(row)) if of_rewards else ()
    row.check(lambda: [m.content for m in chosen + rejected], remarks, also=_ANSWERS)
    return Pair(id, chosen, rejected, *more)


def _judgements(
    row: fields_lib.Fields, id: str, remarks: set[str]
) -> tuple[Judged, ...]:
    if "chosen" in row.values and "rejected" in row.values:
        pair = parse_pair(row, id, remarks)
        return Judged(id, pair.chosen, True), Judged(id, pair.rejected, False)
    name = row.first(_LABELS)
    label = row.values.get(name)
    if name is None or not (isinstance(label, bool) or label in (0, 1)):
        said = "no label" if name is None else f"{name} {label!r}"
        raise errors.UserError(f"{row.place} has {said}; {_EXPECTED_JUDGED}")
    rest = {key: value for key, value in row.values.items() if key != name}
    rest_row = fields_lib.Fields(rest, row.place, _EXPECTED_JUDGED)
    messages = _conversation(rest_row, id, remarks).messages
    if messages[-1].role != "assistant":
        raise row.error("it does not end with the answer that is judged; add or cut it")
    return (Judged(id, messages, bool(label)),)


def _margin(row: fields_lib.Fields) -> float:
    value = row.read("margin")
    if value is None:
        return 0.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= 0):
        raise row.error(f"margin is {value!r}; write a number, 0 or more, or none")
    return float(value)


def _subset(row: fields_lib.Fields) -> str:
    return row.text("subset") if row.says("subset") else ""


def _side(row, name: str, prompt: Messages, remarks: set[str]) -> Messages:
    messages = _join(row, name, prompt, _parse_answer(row, name, remarks))
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise row.error(f"{name} is not a prompt with an answer; {_EXPECTED_PAIR}")
    if not messages[-1].is_learnt:
        raise row.error(f"the answer of {name} is not to be learnt; remove the row")
    return messages


def _join(row, name: str, prompt: Messages, side: Messages) -> Messages:
    """A side behind what of the prompt it does not repeat itself."""
    if not prompt or (len(side) > len(prompt) and side[: len(prompt)] == prompt):
        return side
    if len(side) == 1 and (prompt[-1].role, side[0].role) == ("user", "assistant"):
        return (*prompt, *side)  # nearly all
    asked, said = ([(m.role, m.content.strip()) for m in x] for x in (prompt, side))
    if any(said[i : i + len(asked)] == asked for i in range(len(said))):
        return side
    for count in range(1, len(prompt)):
        if said[: len(prompt) - count] == asked[count:]:
            return (*prompt[:count], *side)
    follows = {"assistant": ("user",), "system": ("user", "assistant")}
    if side[0].role in follows.get(prompt[-1].role, ("assistant",)):
        return (*prompt, *side)
    raise row.error(f"{name} repeats another prompt; leave out one of the two")


def _ends_with(side: Messages, messages: Messages) -> bool:
    said, end = ([(m.role, m.content.strip()) for m in x] for x in (side, messages))
    return said[-len(end) :] == end


def _with_system(row: fields_lib.Fields, messages: Messages) -> Messages:
    """Behind the row's own system message, if it has one that is not there yet."""
    if _ALL_SYSTEMS.isdisjoint(row.values):
        return messages
    name = row.first(_SYSTEMS)
    text = "" if name is None or not row.holds(name) else row.text(name)
    there = [m.content.strip() for m in messages if m.role == "system"]
    if not text or there == [text.strip()]:
        return messages
    if there:
        raise row.error(f"{name} beside a system message; leave out one of the two")
    return (chat.Message("system", text), *messages)


def _prompt(row: fields_lib.Fields, name: str | None, remarks: set[str]) -> Messages:
    """What is asked; nothing but the system message where nothing is."""
    if name is None:
        return _with_system(row, ())
    if isinstance(row.values[name], list):
        return _with_system(row, _parse_turns(row, name, remarks))
    text, more = row.text(name), row.first(_MORE)
    if more and row.holds(more):
        text = f"{text}\n\n{row.text(more)}"
    return _with_system(row, (*_history(row, remarks), chat.Message("user", text)))


def _history(row: fields_lib.Fields, remarks: set[str]) -> Messages:
    """Earlier turns: [[asked, answered], ...], or messages."""
    turns = row.values.get("history")
    if not isinstance(turns, list) or not row.says("history"):
        return ()  # refused as any field is that is not read
    if all(isinstance(turn, dict) for turn in turns):
        return _parse_turns(row, "history", remarks)
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise row.error("history is no list of [asked, answered]")
    row.read("history")
    messages = []
    for turn in turns:
        for role, text in zip(("user", "assistant"), turn, strict=True):
            said = fields_lib.Fields({"history": text}, row.place, _EXPECTED)
            messages.append(chat.Message(role, said.text("history")))
    return tuple(messages)


def _parse_answer(row: fields_lib.Fields, name: str, remarks: set[str]) -> Messages:
    """A text, a message, or a list of them."""
    value = row.values[name]
    if not isinstance(value, str) and isinstance(value, list | dict):
        return _parse_turns(row, name, remarks)
    return (chat.Message("assistant", row.text(name)),)


def _parse_turns(row: fields_lib.Fields, name: str, remarks: set[str]) -> Messages:
    turns = row.read(name)
    turns = [turns] if isinstance(turns, dict) else turns
    if not isinstance(turns, list) or not turns:
        raise errors.UserError(f"{row.place} has no list of messages; {_EXPECTED}")
    return tuple([_message(turn, row.place, remarks) for turn in turns])


def _message(turn: Any, place: str, remarks: set[str]) -> chat.Message:
    if not isinstance(turn, dict):
        raise errors.UserError(f"{place}: a message is not an object; {_EXPECTED}")
    if len(turn) == 2:  # nearly all
        role = turn.get("role") or turn.get("from")
        content = turn.get("content") or turn.get("value")
        role = _ROLES.get(role) if isinstance(role, str) else None
        if role is not None and isinstance(content, str):
            if not content.isascii():
                lines.require_utf8(content, place)
            return chat.Message(role, content)
    speaker = "role" if "role" in turn else "from"
    named = turn.get(speaker)
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise errors.UserError(
            f"{place}: the role of a message is {named!r}; use "
            f"{', '.join(chat.ROLES)}, or human, gpt"
        )
    fields = fields_lib.Fields(turn, place, _EXPECTED, role)
    fields.read(speaker)
    name = fields.first(_CONTENTS) or "content"
    content, learnt = fields.read(name), fields.learnt()
    fields.check(lambda: [role, str(content)], remarks)
    if learnt and role != "assistant":
        raise fields.error(f"a message of {role} is to be learnt; only answers are")
    is_learnt = role != "assistant" or learnt is not False
    return chat.Message(role, fields.text(name), is_learnt)
