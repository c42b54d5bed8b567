"""Fields of a row of instruction data: read, remarks about it, or refused.

A field that nobody reads loses nothing where it is empty (null, "", [], "[]") or where
the conversation has its text already (UltraFeedback's `prompt` beside its `messages`).
Where its name or its kind says that it is about the row and not of it (`source`,
`prompt_id`, `score_chosen`, a number) it is a remark: these are named in one warning.
Any other one is refused with file and row: nobody would learn an answer from `tools`,
`tool_calls` or `documents` that were not there.

`weight`, `train`, `label` and the like say what is learnt, and are followed or refused.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxlab.core import errors
from jaxlab.data import lines

# A remark's name ends in one of these words, as model_name does, or begins with one of
# _FIRST. Only those of _OBJECTS hold more than texts and numbers.
_LAST = {
    "id", "ids", "idx", "index", "uuid", "uid", "guid", "hash", "md5", "sha", "sha256",
    "key", "row", "no", "number", "num", "count", "source", "origin",
    "dataset", "datasets", "subset", "split", "config", "version", "url", "urls",
    "link", "license", "licence", "author", "authors", "creator", "annotator",
    "annotators", "worker", "model", "models", "generator", "engine", "temperature",
    "score", "scores", "rating", "ratings", "rank", "ranks", "quality", "reward",
    "rewards", "margin", "confidence", "similarity", "perplexity", "loss", "likes",
    "votes", "views", "category", "categories", "class", "type", "kind", "task",
    "topic", "topics", "subject", "subjects", "domain", "domains", "field", "tag",
    "tags", "keyword", "keywords", "lang", "language", "languages", "locale",
    "difficulty", "level", "date", "time", "timestamp", "at", "created", "updated",
    "status", "state", "length", "tokens", "turn", "round", "rounds", "words", "size",
    "title", "name", "redacted", "template", "comment", "comments", "note", "notes",
    "label",
}  # fmt: skip
_FIRST = {"score", "scores", "rating", "num", "n", "is", "has", "created", "updated"}
_OBJECTS = {
    "metadata",
    "meta",
    "info",
    "extra",
    "stats",
    "moderation",
    "emojis",
    "labels",
}
_OF_MESSAGE = _LAST - {"name", "title", "label"}  # there they may be said
_EMPTY = {"", "[]", "{}", "null", "none", "nan"}
# 1 is learnt, 0 is not; of those in the second line, the other way round.
_LEARNT = {"weight", "train", "training", "trainable", "train_on_turn", "loss_mask"}
_NOT_LEARNT = {"mask", "masked", "ignore", "skip", "exclude"}
_MARKS = _LEARNT | _NOT_LEARNT


class Fields:
    """The fields of a row or of a message, and which of them were read.

    Attributes:
        values: by name.
        place: file and row, for messages.
    """

    def __init__(self, values: Mapping[str, Any], place: str, expected: str):
        self.values, self.place, self._expected = values, place, expected
        self._read: set[str] = set()

    def says(self, name: str) -> bool:
        """Whether a field is there and has content."""
        return name in self.values and not _is_empty(self.values[name])

    def first(self, *names: str) -> str | None:
        """The first of the names that says something, or else that is there."""
        there = None
        for name in names:
            if name in self.values:
                value = self.values[name]
                if value and not (isinstance(value, str) and value.isspace()):
                    return name
                there = there or name
        return there

    def read(self, name: str) -> Any:
        """The value of a field, which counts as read from now on."""
        self._read.add(name)
        return self.values.get(name)

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            UserError: it is another value, or no Unicode.
        """
        value = self.read(name)
        if not isinstance(value, str):
            raise self.error(f"{name} is not text; {self._expected}")
        return lines.require_utf8(value, self.place)

    def is_marked(self) -> bool:
        """Whether something says what is learnt."""
        return not _MARKS.isdisjoint(self.values)

    def learnt(self, *more: str) -> bool | None:
        """Whether the data says that it is learnt; None where it says nothing.

        Args:
            *more: names that count as `weight` does.

        Raises:
            UserError: something between yes and no, or both.
        """
        if _MARKS.isdisjoint(self.values) and not more:
            return None
        answers = {}
        for name in self.values.keys() & {*_MARKS, *more}:
            if (value := self.read(name)) is None:
                continue
            if not isinstance(value, int | float) or value not in (0, 1):
                raise self.error(f"{name} is {value!r}; only 0 and 1 are followed")
            answers[bool(value) != (name in _NOT_LEARNT)] = name
        if len(answers) > 1:
            raise self.error(f"{' and '.join(answers.values())} contradict each other")
        return next(iter(answers), None)

    def check(
        self,
        said: Callable[[], Sequence[str]],
        remarks: set[str],
        *,
        also: Iterable[str] = (),
        of_message: bool = False,
    ) -> None:
        """Refuses fields with content that were not read.

        Args:
            said: gives all texts of the conversation; a field may repeat them.
            remarks: gets the names of the fields that are about it.
            also: names of such.
            of_message: not of a row.

        Raises:
            UserError: with the field.
        """
        flat, others = _sort_names(tuple(self.values), of_message)
        for name in flat:
            value = self.values[name]
            if type(value) in (list, dict):
                others = (*others, name)
            elif name not in remarks and name not in self._read and self._tells(name):
                remarks.add(name)
        for name in others:
            value = self.values[name]
            if value is None or name in self._read or self._repeats(value):
                continue
            if type(value) not in (bool, int, float) and _is_empty(value):
                continue
            if name in also or _is_remark(name, value, of_message):
                remarks.add(name)
            elif not _is_said(value, said()):
                raise self.error(
                    f"the field {name!r} is not read; write what it says into a "
                    'message, or put it into "metadata" if it is not to be learnt'
                )

    def _tells(self, name: str) -> bool:
        """Whether a field has content, or says no."""
        return self.values[name] is False or self.says(name)

    def _repeats(self, value: Any) -> bool:
        """Whether a value is that of a field which was read."""
        return any(value == self.values.get(name) for name in self._read)

    def error(self, what: str) -> errors.UserError:
        """A mistake in these fields."""
        return errors.UserError(f"{self.place}: {what}")


def _is_said(value: Any, said: Iterable[str]) -> bool:
    """Whether a value has texts, and nothing but what is said."""
    texts = set(_texts(value))
    return bool(texts) and texts <= {text.strip() for text in said}


@functools.cache
def _sort_names(names: tuple[str, ...], of_message: bool) -> tuple[tuple, tuple]:
    """Names of what is a remark if it is flat, and all others; once for many rows."""
    flat = tuple(name for name in names if _is_flat_remark(name, of_message))
    return flat, tuple(name for name in names if name not in flat)


def _is_remark(name: str, value: Any, of_message: bool) -> bool:
    """Whether a field is about a conversation, by its name, e.g. foo_bar or fooBar."""
    # Alpaca's text is all of it once more.
    whole = _words(name)[-1] in _OBJECTS or (name == "text" and not of_message)
    if whole or isinstance(value, int | float):
        return True
    each = value if isinstance(value, list) else [value]
    is_flat = not any(isinstance(x, dict | list) for x in each)
    return is_flat and _is_flat_remark(name, of_message)


def _is_flat_remark(name: str, of_message: bool) -> bool:
    words = _words(name)
    return words[-1] in (_OF_MESSAGE if of_message else _LAST) or words[0] in _FIRST


@functools.cache
def _words(name: str) -> list[str]:
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return [word for word in re.split(r"[^a-z0-9]+", name) if word] or [""]


def _is_empty(value: Any) -> bool:
    """Whether a value has no content: neither text, nor a number but 0, nor true."""
    if isinstance(value, str):
        return (len(value) < 9 or value.isspace()) and value.strip().lower() in _EMPTY
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return all(map(_is_empty, value.values())) if isinstance(value, dict) else not value


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, without their ends; of messages, what is said."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in ("role", "from"):
                yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str) and value.strip():
        yield value.strip()
