r"""Reading instruction data: conversations, and pairs of which one is preferred.

One object per line (.jsonl, also .gz and .zst) or a list of them (.json), as published:

    {"messages": [{"role": "user", "content": ...}, ...]}        TÜLU, most of today's
    {"conversations": [{"from": "human", "value": ...}, ...]}    ShareGPT
    {"instruction": ..., "input": ..., "output": ...}            Alpaca
    {"prompt": ..., "completion": ...}                           or "response"

A pair has "chosen" and "rejected" beside a "prompt" or an "instruction": strings, or
lists of messages, which may begin with the prompt (UltraFeedback, binarised). Alpaca's
input follows its instruction after a blank line. What does not fit is an error with
file and line, and never left out.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors
from jaxlab.data import lines
from jaxlab.data.corpus import documents
from jaxlab.data.examples import chat

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "system": "system"}
_EXPECTED = (
    'expected "messages", or "conversations", or "instruction" and "output", or '
    '"prompt" and "completion"'
)
_EXPECTED_PAIR = (
    'expected "chosen" and "rejected", each a text beside "prompt" or "instruction", '
    "or a list of messages"
)


class Conversation(NamedTuple):
    """Messages in their order; the id is the data's own, or FILE:ROW."""

    id: str
    messages: tuple[chat.Message, ...]


class Pair(NamedTuple):
    """Two conversations that differ in their last answer."""

    id: str
    chosen: tuple[chat.Message, ...]
    rejected: tuple[chat.Message, ...]


def read(source: str) -> list[Conversation]:
    """The conversations of files or folders of them, separated by commas.

    Raises:
        UserError: nothing to read, or a row that is not a conversation (file and row).
    """
    return _read(source, lambda row, place, id: Conversation(id, _messages(row, place)))


def read_pairs(source: str) -> list[Pair]:
    """The pairs of files or folders of them, separated by commas.

    Raises:
        UserError: nothing to read, or a row that is not a pair (file and row).
    """
    return _read(source, _pair)


def _read(source: str, parse: Callable) -> list:
    examples = []
    for name in filter(None, source.split(",")):
        for path in _files(pathlib.Path(name)):
            for number, row in _rows(path):
                place = f"{path}:{number}"
                if not isinstance(row, dict):
                    raise errors.UserError(f"{place} is not a JSON object; {_EXPECTED}")
                identity = row.get("id", f"{path.name}:{number}")
                examples.append(parse(row, place, str(identity)))
    if not examples:
        raise errors.UserError(
            f"no conversation in {source!r}; set --config.data.source to .jsonl files"
        )
    return examples


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        return [p for p in sorted(path.iterdir()) if _is_readable(p)]
    if not path.is_file():
        raise errors.UserError(f"{path} does not exist; give a .jsonl file or a folder")
    if not _is_readable(path):
        raise errors.UserError(f"{path} is neither .jsonl nor .json; convert it")
    return [path]


def _is_readable(path: pathlib.Path) -> bool:
    return path.suffix == ".json" or bool(documents.JSON_LINES.search(path.name))


def _rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    if path.suffix != ".json":
        yield from lines.read_json(path)
        return
    text = lines.decode(path.read_bytes(), path)
    rows = lines.parse_json(text, str(path), "repair it")
    if not isinstance(rows, list):
        raise errors.UserError(
            f"{path} is not a list of objects; write one object per line"
        )
    yield from enumerate(rows, start=1)


# ------------------------------------------------------------------ rows


def _messages(row: Mapping, place: str) -> tuple[chat.Message, ...]:
    if "messages" in row or "conversations" in row:
        turns = row["messages"] if "messages" in row else row["conversations"]
        messages = _parse_turns(turns, place)
    else:
        answer = next((k for k in ("output", "completion", "response") if k in row), "")
        prompt = _prompt(row, place)
        if not answer or not prompt:
            raise errors.UserError(f"{place} has {', '.join(row)}; {_EXPECTED}")
        messages = (*prompt, chat.Message("assistant", _text(row, answer, place)))
    if not any(message.role == "assistant" for message in messages):
        raise errors.UserError(
            f"{place} has no answer of an assistant; add or remove it"
        )
    return messages


def _pair(row: Mapping, place: str, id: str) -> Pair:
    if not {"chosen", "rejected"} <= row.keys():
        raise errors.UserError(f"{place} has {', '.join(row)}; {_EXPECTED_PAIR}")
    chosen, rejected = (_side(row, name, place) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise errors.UserError(
            f"{place}: chosen and rejected answer different prompts; remove the row"
        )
    return Pair(id, chosen, rejected)


def _side(row: Mapping, name: str, place: str) -> tuple[chat.Message, ...]:
    prompt = _prompt(row, place)
    if isinstance(row[name], list):
        messages = _parse_turns(row[name], place)
        if len(messages) == 1:
            messages = (*prompt, *messages)
    else:
        messages = (*prompt, chat.Message("assistant", _text(row, name, place)))
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise errors.UserError(
            f"{place}: {name} is not a prompt with an answer; {_EXPECTED_PAIR}"
        )
    return messages


def _prompt(row: Mapping, place: str) -> tuple[chat.Message, ...]:
    """What is asked; nothing where the row has no such field."""
    if isinstance(row.get("prompt"), list):
        return _parse_turns(row["prompt"], place)
    name = next((k for k in ("instruction", "prompt") if k in row), None)
    if name is None:
        return ()
    text = _text(row, name, place)
    if row.get("input"):
        text = f"{text}\n\n{_text(row, 'input', place)}"
    return (chat.Message("user", text),)


def _parse_turns(turns: Any, place: str) -> tuple[chat.Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise errors.UserError(f"{place} has no list of messages; {_EXPECTED}")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise errors.UserError(f"{place}: a message is not an object; {_EXPECTED}")
        role = turn.get("role", _SHAREGPT.get(turn.get("from", "")))
        if role not in chat.ROLES:
            raise errors.UserError(
                f"{place}: the role of a message is {role or turn.get('from')!r}; use "
                f"{', '.join(chat.ROLES)}"
            )
        text = _text(turn, "content" if "content" in turn else "value", place)
        messages.append(chat.Message(role, text))
    return tuple(messages)


def _text(row: Mapping, name: str, place: str) -> str:
    if not isinstance(row.get(name), str):
        raise errors.UserError(f"{place}: {name} is not text; {_EXPECTED}")
    return lines.require_utf8(row[name], place)
