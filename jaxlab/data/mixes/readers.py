"""Sources of a mixture -> conversations, by the shape that they are published in.

conversations   messages, ShareGPT's, Alpaca's fields ...   examples/conversations.py
flan            {"inputs": ..., "targets": ...}             FLAN, chain of thought
instances       {"instruction": ..., "input": ..., "output": ...}, asked in one of
                the phrasings of `prompt_templates`
super_ni        a folder of tasks/NAME.json: `zero_shot` instances of each in a
                phrasing, `few_shot` ones after two examples
fields          JSON lines of which `prompt`, `answer` and `system` name the texts
lima            {"conversations": [asked, answered, asked, ...]}
oasst           trees of messages: every path to a last answer, or those of the
                `best` answers of each question
"""

import json
import pathlib
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxlab.core import errors
from jaxlab.data import lines
from jaxlab.data.examples import chat, conversations
from jaxlab.data.mixes import prompt_templates

Conversation = conversations.Conversation


def read_conversations(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above."""
    del options, draw
    return iter(conversations.read(path))


def read_flan(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above; a prompt that ends in no colon gets a line's end."""
    del options, draw
    for number, row in lines.read_objects(path):
        asked, answer = (
            _text(row, key, f"{path}:{number}") for key in ("inputs", "targets")
        )
        if not asked.endswith("\n") and not asked.rstrip().endswith(":"):
            asked += "\n"
        yield _turn(f"{pathlib.Path(path).name}:{number}", asked, answer)


def read_instances(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above."""
    del options
    for row in conversations.read(path):
        if [message.role for message in row.messages] != ["user", "assistant"]:
            raise errors.UserError(
                f"{path}: {row.id} is no single turn; read it as conversations"
            )
        asked, answer = (message.content for message in row.messages)
        instruction, _, more = asked.partition("\n\n")
        prompt, answer = prompt_templates.ask(instruction, more, answer, draw)
        yield _turn(row.id, prompt, answer)


def read_super_ni(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above; the tasks of MMLU are left out."""
    zero, few = options.get("zero_shot", 60), options.get("few_shot", 20)
    folder = pathlib.Path(path)
    files = sorted((folder / "tasks").glob("*.json"))
    if not files:
        raise errors.UserError(f"{folder} has no tasks/NAME.json; give that of SuperNI")
    for file in files:
        if "_mmmlu_" in file.name:
            continue
        text = lines.read_whole(file, "download it again")
        task = lines.parse_json(text, str(file), "download it again")
        try:
            yield from _instances(file.stem, task, zero, few, draw)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise errors.UserError(
                f"{file} is no task of SuperNI ({type(error).__name__}: {error}); "
                "download it again"
            ) from None


def read_oasst(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above."""
    del draw
    best = options.get("best")
    for number, tree in lines.read_objects(path):
        place = f"{path}:{number}"
        try:
            found = list(_paths(tree["prompt"], (), best))
        except (KeyError, TypeError, AttributeError, RecursionError):
            raise errors.UserError(
                f"{place} is no tree of Open Assistant; give its trees as JSON lines"
            ) from None
        for i, messages in enumerate(found):
            yield Conversation(f"{pathlib.Path(path).name}:{number}.{i}", messages)


def read_fields(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above; an empty system message is left out."""
    del draw
    for number, row in lines.read_objects(path):
        place, name = f"{path}:{number}", f"{pathlib.Path(path).name}:{number}"
        names = (options.get(key, key) for key in ("prompt", "answer"))
        asked, answer = (_text(row, name, place) for name in names)
        turn = _turn(str(row.get("id", name)), asked, answer)
        system = _text(row, options["system"], place) if "system" in options else ""
        lead = (chat.Message("system", system),) if system.strip() else ()
        yield turn._replace(messages=lead + turn.messages)


def read_lima(path: str, options: Mapping[str, Any], draw: random.Random):
    """See the table above; a question without an answer at the end is cut."""
    del options, draw
    for number, row in lines.read_objects(path):
        said = row.get("conversations")
        is_right = isinstance(said, list) and all(isinstance(x, str) for x in said)
        if not is_right or len(said) < 2:
            raise errors.UserError(
                f"{path}:{number} has no list of texts, conversations; give LIMA's file"
            )
        messages = [
            chat.Message(("user", "assistant")[i % 2], text)
            for i, text in enumerate(said[: len(said) // 2 * 2])
        ]
        yield Conversation(f"{pathlib.Path(path).name}:{number}", tuple(messages))


# Name -> (function, type of each option).
READERS = {
    "conversations": (read_conversations, {}),
    "flan": (read_flan, {}),
    "instances": (read_instances, {}),
    "fields": (read_fields, {"prompt": str, "answer": str, "system": str}),
    "lima": (read_lima, {}),
    "super_ni": (read_super_ni, {"zero_shot": int, "few_shot": int}),
    "oasst": (read_oasst, {"best": int}),
}


def _instances(name, task, zero, few, draw) -> Iterator[Conversation]:
    instances, (instruction, *_) = task["Instances"], task["Definition"]
    if zero + few < len(instances):
        instances = draw.sample(instances, zero + few)
    shown = [(x["input"], x["output"]) for x in task["Positive Examples"]]
    for i, instance in enumerate(instances):
        asked, answer = instance["input"], instance["output"][0]
        if i < zero:
            prompt, answer = prompt_templates.ask(instruction, asked, answer, draw)
        else:
            examples = draw.sample(shown, 2) if len(shown) > 2 else shown
            prompt = prompt_templates.show(instruction, examples, asked)
            answer = answer.strip()
        yield _turn(str(instance.get("id", f"{name}:{i}")), prompt, answer)


def _paths(node, before, best) -> Iterator[tuple[chat.Message, ...]]:
    """Every way from the root to an answer that nobody answered."""
    if node["deleted"]:
        return
    roles = {"assistant": "assistant", "prompter": "user"}
    messages = (*before, chat.Message(roles[node["role"]], node["text"]))
    replies = [reply for reply in node["replies"] if not reply["deleted"]]
    if node["role"] == "assistant" and not node["replies"]:
        yield messages
    if best is not None:
        replies = sorted(replies, key=_quality, reverse=True)[:best]
    for reply in replies:
        yield from _paths(reply, messages, best)


def _quality(node) -> float:
    return (node["labels"].get("quality") or {}).get("value", 0.0)


def _text(row, key, place) -> str:
    if not isinstance(row.get(key), str):
        raise errors.UserError(f"{place} has no text {key}; read it as conversations")
    return row[key]


def _turn(identity, asked, answer) -> Conversation:
    messages = chat.Message("user", asked), chat.Message("assistant", answer)
    return Conversation(identity, messages)


def to_line(source: str, row: Conversation) -> str:
    """A row of the mixture: what `conversations.read` reads."""
    messages = [
        {"role": m.role, "content": m.content}
        | ({} if m.is_learnt else {"train": False})
        for m in row.messages
    ]
    said = {"id": row.id, "source": source, "messages": messages}
    return json.dumps(said, ensure_ascii=False) + "\n"


def is_safe_name(name: str) -> bool:
    """Whether a source may be called so."""
    return bool(re.fullmatch(r"[\w.+-]{1,80}", name))
