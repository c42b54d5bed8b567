"""A mixture's recipe: a YAML file that says which sources, how much, and what to drop.

    seed: 42
    drop_words: tulu_v2           # or a list of strings; in any case of letters
    drop_duplicates: true         # of the same messages
    decontaminate: {files: [evals/gsm8k.jsonl], fields: [question], n: 8, share: 0.5}
    tokenizer: llama2/            # counts tokens, and splits
    sources:
      - {name: flan_v2, path: flan.jsonl, reader: flan, count: 50000}
      - {name: sharegpt, path: sharegpt.json, split: 4096}
      - {name: hard_coded, path: own.jsonl, repeat: 10, exempt: true}

Paths that are not absolute begin at the recipe's folder.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors, yaml_lines
from jaxlab.data.mixes import readers

# Of TULU 2's mixture: rows that name other models and who makes them.
WORDS = {
    "tulu_v2": (
        *("OpenAI", "Open AI", "ChatGPT", "Chat GPT", "GPT-3", "GPT3", "GPT 3"),
        *("GPT-4", "GPT4", "GPT 4", "GPT-3.5", "GPT3.5", "GPT 3.5", "BingChat"),
        *("Bing Chat", "BARD", "Palm", "Anthropic", "Claude", "LAION"),
        *("Open Assistant", "OpenAssistant"),
    )
}
_KEYS = {
    "seed": int,
    "drop_words": (str, list),
    "drop_duplicates": bool,
    "decontaminate": dict,
    "tokenizer": str,
    "sources": list,
}
_SOURCE_KEYS = {
    "name": str,
    "path": str,
    "reader": str,
    "count": int,
    "repeat": int,
    "exempt": bool,
    "split": int,
}
_AGAINST_KEYS = {"files": list, "fields": list, "n": int, "share": (int, float)}


class Source(NamedTuple):
    """One source of a mixture.

    Attributes:
        name: of its rows.
        path: of its files.
        reader: of `readers.READERS`.
        count: conversations that are drawn; 0 takes all.
        repeat: how often each is in the mixture.
        exempt: no rule drops any.
        split: longest conversation in tokens; longer ones are cut into several.
        options: of the reader.
    """

    name: str
    path: str
    reader: str
    count: int
    repeat: int
    exempt: bool
    split: int
    options: Mapping[str, Any]


class Recipe(NamedTuple):
    """A mixture; the attributes are the file's keys."""

    seed: int
    words: tuple[str, ...]
    drop_duplicates: bool
    against: Mapping[str, Any]
    tokenizer: str
    sources: tuple[Source, ...]


def read(path: str | pathlib.Path) -> Recipe:
    """Reads a recipe.

    Raises:
        UserError: it is missing, is not YAML, or says something that means nothing;
            with the key.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.UserError(f"{path} does not exist; give a recipe, a YAML file")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise errors.UserError(f"{path} is not UTF-8 text; save it as such") from None
    raw, _ = yaml_lines.load(text, str(path))
    _check(path, "", raw, _KEYS)
    if not raw.get("sources"):
        raise errors.UserError(f"{path}: sources is empty; name what is to be mixed")
    sources = tuple(
        _source(path, f"sources[{i}].", each) for i, each in enumerate(raw["sources"])
    )
    names = [source.name for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise errors.UserError(f"{path}: two sources are called {min(twice)}")
    against = raw.get("decontaminate", {})
    _check(path, "decontaminate.", against, _AGAINST_KEYS)
    if against and not against.get("files"):
        raise errors.UserError(f"{path}: decontaminate.files names no evaluation file")
    tokenizer = raw.get("tokenizer", "")
    if not tokenizer and (split := [s.name for s in sources if s.split]):
        raise errors.UserError(f"{path}: {split[0]} is split; set tokenizer")
    words = raw.get("drop_words", ())
    if isinstance(words, str):
        if words not in WORDS:
            raise errors.UserError(
                f"{path}: drop_words {words!r}; write a list, or {', '.join(WORDS)}"
            )
        words = WORDS[words]
    if not all(isinstance(word, str) and word for word in words):
        raise errors.UserError(f"{path}: drop_words holds what is no text")
    own = [_beside(path, str(file)) for file in against.get("files", ())]
    return Recipe(
        seed=raw.get("seed", 0),
        words=tuple(words),
        drop_duplicates=raw.get("drop_duplicates", False),
        against={"n": 8, "share": 0.5, "fields": (), **against, "files": own},
        tokenizer=_beside(path, tokenizer) if tokenizer else "",
        sources=sources,
    )


def _source(path, place, raw) -> Source:
    reader = raw.get("reader", "conversations") if isinstance(raw, dict) else ""
    if isinstance(raw, dict) and reader not in readers.READERS:
        raise errors.UserError(
            f"{path}: {place}reader {reader!r}; use one of {', '.join(readers.READERS)}"
        )
    own = readers.READERS[reader][1] if reader else {}
    _check(path, place, raw, {**_SOURCE_KEYS, **own})
    for key in ("name", "path"):
        if not raw.get(key):
            raise errors.UserError(f"{path}: {place}{key} is missing")
    if not readers.is_safe_name(raw["name"]):
        raise errors.UserError(
            f"{path}: {place}name {raw['name']!r}; use letters, digits, . _ + -"
        )
    numbers = ["count", "repeat", "split", *(k for k in own if own[k] is int)]
    for key in numbers:
        if raw.get(key, 1) < (key == "repeat"):
            raise errors.UserError(f"{path}: {place}{key} {raw[key]} is too small")
    return Source(
        name=raw["name"],
        path=_beside(path, raw["path"]),
        reader=reader,
        count=raw.get("count", 0),
        repeat=raw.get("repeat", 1),
        exempt=raw.get("exempt", False),
        split=raw.get("split", 0),
        options={key: raw[key] for key in own if key in raw},
    )


def _check(path, place, raw, kinds) -> None:
    if not isinstance(raw, dict):
        what = place.rstrip(".") or "it"
        raise errors.UserError(f"{path}: {what} is no mapping of keys to values")
    for key, value in raw.items():
        if key not in kinds:
            raise errors.UserError(
                f"{path}: {place}{key} is unknown; there are {', '.join(kinds)}"
            )
        kind = kinds[key]
        is_right = isinstance(value, kind)
        if not is_right or (isinstance(value, bool) and kind is not bool):
            raise errors.UserError(
                f"{path}: {place}{key} {value!r} is of the wrong type"
            )


def _beside(path, name) -> str:
    """Where a name of the recipe lies."""
    return str(path.parent / pathlib.Path(name).expanduser())
