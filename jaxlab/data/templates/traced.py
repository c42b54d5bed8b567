"""Text that remembers who wrote each of its characters.

    Traced("abc", FOREIGN) + own("<|end|>")   ->   marks 0 0 0 1 1 1 1 1 1 1

A chat template computes with strings: it joins, trims, splits and replaces them. These
are strings that do so with their marks, a parallel string of one character per
character. What an operation makes whose result cannot be followed is `FOREIGN`: it is
never taken for the template's own, so that what is forgotten here can only make a
marker ordinary text, never text a marker.
"""

import contextvars
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

FOREIGN = "\x00"  # of a conversation, a tool, or of nobody knows where
OWN = "\x01"  # the template's
_FIRST_MESSAGE = 2
_IN_GENERATION = 0x80000  # added to marks inside {% generation %}
_WIDE = re.compile(
    r"%(\([^)]*\))?[-#0 +]*(\*|\d{5}|\d*\.(\*|\d{5}))|\{[^}]*:[^}]*(\d{5}|\{)"
)

# Told of characters that are made: (count of them) -> None, or an error.
spend: contextvars.ContextVar[Callable[[int], None]] = contextvars.ContextVar("spend")


def of_message(number: int) -> str:
    """The mark of what a message of a conversation says."""
    return chr(_FIRST_MESSAGE + number)


def message_of(mark: str) -> int | None:
    """The message that a mark is of."""
    number = ord(mark) % _IN_GENERATION - _FIRST_MESSAGE
    return number if number >= 0 else None


def is_own(mark: str) -> bool:
    """Whether a mark says that the template wrote the character."""
    return ord(mark) % _IN_GENERATION == ord(OWN)


def is_generated(mark: str) -> bool:
    """Whether the character stands in a {% generation %} block."""
    return ord(mark) >= _IN_GENERATION


class Traced(str):
    """A string with a mark for each character.

    Attributes:
        marks: of the same length.
    """

    marks: str

    def __new__(cls, text: str, marks: str = FOREIGN) -> "Traced":
        """A text with marks of its length, or one mark for all of it."""
        self = super().__new__(cls, text)
        size = len(text)
        self.marks = marks if len(marks) == size else marks * size
        spend.get(_spend_nothing)(size)
        return self

    def __str__(self) -> "Traced":
        return self

    def __add__(self, other):
        if not isinstance(other, str):
            return NotImplemented
        other = trace(other)
        return Traced(str.__add__(self, other), self.marks + other.marks)

    def __radd__(self, other):
        return trace(other) + self if isinstance(other, str) else NotImplemented

    def __mul__(self, count):
        if isinstance(count, int):
            spend.get(_spend_nothing)(len(self) * max(count, 0))
        return Traced(str.__mul__(self, count), self.marks * count)

    __rmul__ = __mul__

    def __getitem__(self, key):
        return Traced(str.__getitem__(self, key), self.marks[key])

    def __iter__(self):
        return map(Traced, str.__iter__(self), self.marks)

    def __mod__(self, values):
        check_widths(self)
        # `formats` follows which part of the result a value is in.
        mark = common_mark([self, values], numbers=True)
        return Traced(str.__mod__(str.__str__(self), values), mark)

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars=None):
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars=None):
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix):
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix):
        ends = suffix and self.endswith(suffix)
        return self[: len(self) - len(suffix)] if ends else self

    def partition(self, sep):
        return self._cut(str.partition(self, sep))

    def rpartition(self, sep):
        return self._cut(str.rpartition(self, sep))

    def splitlines(self, keepends=False):
        lines = self._cut(str.splitlines(self, keepends=True))
        if keepends:
            return [*lines]
        bare = str.splitlines(self)
        return [line[: len(text)] for line, text in zip(lines, bare, strict=True)]

    def _cut(self, parts: Iterable[str]) -> tuple["Traced", ...]:
        """Parts that make up the whole text, with their marks."""
        start, found = 0, []
        for part in parts:
            found.append(self[start : start + len(part)])
            start += len(part)
        return tuple(found)

    def split(self, sep=None, maxsplit=-1):
        return self._find_parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep=None, maxsplit=-1):
        return self._find_parts(str.rsplit(self, sep, maxsplit), sep)

    def _find_parts(self, parts, sep):
        start, found = 0, []
        for part in parts:
            if sep is None:  # as much white space as there is lies between
                start = self.find(part, start)
            found.append(self[start : start + len(part)])
            start += len(part) + len(sep or "")
        return found

    def replace(self, old, new, count=-1):
        if not old:
            return Traced(str.replace(self, old, new, count))
        if old not in self:
            return self
        return trace(new).join(self.split(old, count))

    def join(self, parts):
        parts = [trace(part) for part in parts]
        spend.get(_spend_nothing)(len(self) * len(parts) + sum(map(len, parts)))
        return Traced(str.join(self, parts), self.marks.join(x.marks for x in parts))

    def center(self, width, fill=" "):
        return self._pad(str.center, width, fill)

    def ljust(self, width, fill=" "):
        return self._pad(str.ljust, width, fill)

    def rjust(self, width, fill=" "):
        return self._pad(str.rjust, width, fill)

    def zfill(self, width):
        return self._pad(str.zfill, width)

    def _pad(self, pad, width, *fill):
        spend.get(_spend_nothing)(width)
        return Traced(pad(self, width, *fill))

    def expandtabs(self, tabsize=8):
        spend.get(_spend_nothing)(len(self) + self.count("\t") * max(tabsize, 0))
        return Traced(str.expandtabs(self, tabsize))


def _map_case(name: str) -> Callable:
    change = getattr(str, name)

    @functools.wraps(change)
    def map_case(self):
        text = change(self)
        # Some letters become two.
        return Traced(text, self.marks) if len(text) == len(self) else Traced(text)

    return map_case


for _name in ("upper", "lower", "title", "capitalize", "casefold", "swapcase"):
    setattr(Traced, _name, _map_case(_name))


def trace(text: str) -> Traced:
    """A string as it is, if it has marks; else of nobody knows where."""
    return text if isinstance(text, Traced) else Traced(text)


def join(parts: Iterable[Any]) -> Traced:
    """Values one after the other, e.g. what `~` joins."""
    return Traced("").join(part if isinstance(part, str) else str(part)
                           for part in parts)  # fmt: skip


def mark_all(value: Any, mark: str, *, but: tuple[str, ...] = ()) -> Any:
    """A copy of what JSON can hold, with one mark for every string in it.

    Args:
        value: strings, numbers, lists, mappings.
        mark: theirs.
        but: keys of the outermost mapping whose values stay as they are.
    """
    if isinstance(value, str):
        return Traced(value, mark)
    if isinstance(value, dict):
        return {
            Traced(key, mark) if isinstance(key, str) else key: each
            if key in but
            else mark_all(each, mark)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [mark_all(each, mark) for each in value]
    return value


def common_mark(value: Any, *, numbers: bool = False) -> str:
    """The mark of all strings in a value; FOREIGN where they have several or none.

    Args:
        value: as of `mark_all`.
        numbers: are nobody's, instead of being passed over.
    """
    found = {*_marks(value, numbers)}
    return found.pop() if len(found) == 1 else FOREIGN


def set_generated(text: str) -> Traced:
    """The same text in a {% generation %} block."""
    text = trace(text)
    marks = {ord(m): chr(ord(m) % _IN_GENERATION + _IN_GENERATION) for m in text.marks}
    return Traced(text, text.marks.translate(marks))


def _marks(value, numbers):
    if isinstance(value, Traced):
        yield from {*value.marks}
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _marks(key, numbers)
            yield from _marks(each, numbers)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _marks(each, numbers)
    elif numbers or isinstance(value, str):
        yield FOREIGN


def _spend_nothing(count: int) -> None:
    pass


def check_widths(text: str) -> None:
    """Refuses formats, of % or of str.format, that write millions of characters.

    Raises:
        ValueError: a width or precision of five digits, or one that is computed.
    """
    if _WIDE.search(text):
        raise ValueError("a format has a width of thousands, or a computed one")
