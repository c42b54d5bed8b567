"""Fields of a row of instruction data: read, remarks about it, or refused.

A field that nobody reads loses nothing where it is empty (null, "", [], "[]") or where
the conversation has its text already (UltraFeedback's `prompt` beside its `messages`).
Where its name or its kind says that it is about the row and not of it (`source`,
`prompt_id`, `score_chosen`, a number) it is a remark: these are named in one warning.
Any other one is refused with file and row: nobody would learn an answer from `tools`,
`tool_calls` or `documents` that were not there.

`weight`, `train`, `label` and the like say what is learnt, and are followed or refused,
whatever they are called: `loss_weight`, `is_masked`, `shouldTrain`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
# Words of longer names that say so. Where both do, or "not", nobody knows what 1 is.
_LEARNT_WORDS = {
    "weight", "weights", "train", "trained", "training", "trainable", "learn", "learnt",
    "learned", "learnable", "loss", "grad", "backprop",
}  # fmt: skip
_NOT_LEARNT_WORDS = {
    "mask", "masked", "ignore", "ignored", "skip", "skipped", "exclude", "excluded",
    "no", "not", "without", "frozen",
}  # fmt: skip
# Of a row, where they are true or false: whether its answer is good, or bad.
_GOOD = {
    "label", "labels", "kto_tag", "desirable", "accepted", "approved", "loss", "good",
    "keep", "kept", "chosen", "preferred", "selected", "correct", "valid",
}  # fmt: skip
_BAD = {
    "bad", "rejected", "deleted", "removed", "discard", "discarded", "undesirable",
    "incorrect", "wrong", "invalid",
}  # fmt: skip
_TRUTHS = {"true": True, "false": False}


class _Mark(NamedTuple):
    """A field that may say whether something is learnt."""

    name: str
    says: bool | None  # what 1 means: to learn it, not to; None: who knows
    kinds: tuple[type, ...]  # of values by which it says so


class _Shape:
    """What the names of fields say, once for all rows that have the same.

    Attributes:
        role: of a message; "" of a row.
        marks: what may say whether something is learnt.
        flat: names of remarks, if they are texts or numbers.
        others: all other names.
    """

    def __init__(self, names: tuple[str, ...], role: str):
        self.role, self._names = role, names
        marks = (_mark(name, role) for name in names)
        self.marks = tuple(mark for mark in marks if mark is not None)
        self.flat = tuple(name for name in names if _is_flat_remark(name, bool(role)))
        self.others = tuple(name for name in names if name not in self.flat)
        self._there: dict[tuple[str, ...], tuple[str, ...]] = {}

    def find(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the wanted names that are there."""
        there = self._there.get(wanted)
        if there is None:
            there = tuple(name for name in wanted if name in self._names)
            self._there[wanted] = there
        return there


_shape = functools.lru_cache(1024)(_Shape)


class Fields:
    """The fields of a row or of a message, and which of them were read.

    Attributes:
        values: by name.
        place: file and row, for messages.
    """

    def __init__(
        self, values: Mapping[str, Any], place: str, expected: str, role: str = ""
    ):
        self.values, self.place, self._expected = values, place, expected
        self._shape = _shape(tuple(values), role)
        self._read: set[str] = set()

    def says(self, name: str) -> bool:
        """Whether a field is there and has content."""
        return name in self.values and not _is_empty(self.values[name])

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of the names that says something, or else that is there."""
        there = self._shape.find(names)
        if len(there) > 1:
            for name in there:
                value = self.values[name]
                if value and not (isinstance(value, str) and value.isspace()):
                    return name
        return there[0] if there else None

    def read(self, name: str) -> Any:
        """The value of a field, which counts as read from now on."""
        self._read.add(name)
        return self.values.get(name)

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            UserError: it is another value, or no Unicode.
        """
        self._read.add(name)
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.error(f"{name} is not text; {self._expected}")
        return value if value.isascii() else lines.require_utf8(value, self.place)

    def holds(self, name: str) -> bool:
        """Whether there is anything in a field for text; "None" and "[]" are text."""
        value = self.values.get(name)
        is_blank = isinstance(value, str) and (not value or value.isspace())
        return not (value is None or is_blank or value in ([], {}))

    def learnt(self) -> bool | None:
        """Whether the data says that it is learnt; None where it says nothing.

        A row may say instead whether its answer is good.

        Raises:
            UserError: something between yes and no, or both.
        """
        if not self._shape.marks:
            return None
        answers = {}
        for name, says, kinds in self._shape.marks:
            value = self.values[name]
            if kinds == (bool,) and isinstance(value, str):
                value = _TRUTHS.get(value.strip().lower(), value)
            is_class = name == "label" and value in (0, 1)
            if value is None or not (isinstance(value, kinds) or is_class):
                continue
            self._read.add(name)
            if not isinstance(value, int | float) or value not in (0, 1):
                raise self.error(f"{name} is {value!r}; only 0 and 1 are followed")
            if says is None:
                raise self.error(
                    f"{name} does not say what {value!r} means; write weight 1 for "
                    "what is learnt, 0 for what is not"
                )
            answers[bool(value) == says] = name
        if len(answers) > 1:
            raise self.error(f"{' and '.join(answers.values())} contradict each other")
        return next(iter(answers), None)

    def check(
        self,
        said: Callable[[], Sequence[str]],
        remarks: set[str],
        *,
        also: Iterable[str] = (),
    ) -> None:
        """Refuses fields with content that were not read.

        Args:
            said: gives all texts of the conversation; a field may repeat them.
            remarks: gets the names of the fields that are about it.
            also: names of such.

        Raises:
            UserError: with the field.
        """
        of_message, others = bool(self._shape.role), self._shape.others
        for name in self._shape.flat:
            value = self.values[name]
            if type(value) in (list, dict):
                others = (*others, name)
            elif name not in remarks and name not in self._read and self._tells(name):
                remarks.add(name)
        for name in others:
            if name in self._read:
                continue
            value = self.values[name]
            if value is None or self._repeats(value):
                continue
            if type(value) not in (bool, int, float) and _is_empty(value):
                continue
            if name == "text" and not of_message and isinstance(value, str):
                is_remark = _is_whole(value, said())
            else:
                is_remark = _is_remark(name, value, of_message)
            if name in also or is_remark:
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


def _mark(name: str, role: str) -> _Mark | None:
    if name in _LEARNT | _NOT_LEARNT or (role and name == "loss"):
        return _Mark(name, name not in _NOT_LEARNT, (object,))
    if role not in ("", "assistant"):
        return None  # nothing of it is learnt
    words = _words(name)
    judged = name.removeprefix("is_") if len(words) < 3 else name
    if not role and judged in _GOOD | _BAD:
        return _Mark(name, judged in _GOOD, (bool,))
    if words[-1] in _LAST - {"loss", "label"}:
        return None  # train_split, training_tokens
    yes, no = _LEARNT_WORDS & {*words}, _NOT_LEARNT_WORDS & {*words}
    if not yes and not no - {"no", "not", "without"}:
        return None
    # Of a loss, and of what is called like half of an English sentence, only switches.
    is_number = bool(role) or yes != {"loss"}
    kinds = (bool, int, float) if is_number else (bool,)
    return _Mark(name, None if yes and no else bool(yes), kinds)


def _is_whole(text: str, said: Iterable[str]) -> bool:
    """Whether a text has all that is said, line by line, as Alpaca's `text`."""
    return all(line.strip() in text for each in said for line in each.splitlines())


def _is_said(value: Any, said: Iterable[str]) -> bool:
    """Whether a value has texts, and nothing but what is said."""
    texts = set(_texts(value))
    return bool(texts) and texts <= {text.strip() for text in said}


def _is_remark(name: str, value: Any, of_message: bool) -> bool:
    """Whether a field is about a conversation, by its name, e.g. foo_bar or fooBar."""
    if _words(name)[-1] in _OBJECTS or isinstance(value, int | float):
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
