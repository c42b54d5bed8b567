"""Types of the values of a `config.json`: another one is a line that names the key.

A file that was edited by hand, or written by YAML, has texts for numbers, nulls for
sizes, a name where a list belongs.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors


class Kind(NamedTuple):
    """What values a key may have: in words, and as a question."""

    words: str
    accepts: Callable[[Any], bool]

    def or_null(self) -> "Kind":
        """The same, or null."""
        accepts = self.accepts
        return Kind(f"{self.words} or null", lambda x: x is None or accepts(x))


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value) -> bool:
    return _is_whole(value) and -(2**31) <= value < 2**31  # some have -1 for none


def _is_number(value) -> bool:
    is_real = _is_whole(value) or isinstance(value, float)
    return is_real and abs(value) < 2**63 and math.isfinite(value)


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_list(accepts) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


SIZE = Kind("a whole number above 0", lambda x: _is_whole(x) and 0 < x < 2**31)
COUNT = Kind("a whole number from 0", lambda x: _is_whole(x) and 0 <= x < 2**63)
LAYERS = Kind(  # a few hundred are known; each costs memory before anything is read
    "a whole number from 1 to 10,000", lambda x: _is_whole(x) and 0 < x <= 10_000
)
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", lambda x: _is_number(x) and x > 0)
SWITCH = Kind("true or false", lambda x: isinstance(x, bool))
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", _is_list(_is_text))
OBJECT = Kind("an object", lambda x: isinstance(x, Mapping))
TEXTS_BY_NUMBER = Kind(
    "an object of texts by number",
    lambda x: (
        isinstance(x, Mapping)
        and all(key.isdecimal() and _is_text(text) for key, text in x.items())
    ),
)
TOKEN_ID = Kind("a token id", _is_id)
TOKEN_IDS = Kind(
    "a token id or a list of them", lambda x: _is_id(x) or _is_list(_is_id)(x)
).or_null()


def check_fields(config: Any, kinds: Mapping[str, Kind]) -> None:
    """Refuses fields of a dataclass that are of another kind.

    Raises:
        ArgumentError: the first of them, its value, and what it must be.
    """
    for name, kind in kinds.items():
        if not kind.accepts(getattr(config, name)):
            raise errors.ArgumentError(
                f"{name} is {getattr(config, name)!r:.100}; it must be {kind.words}"
            )


def check_like(raw: Mapping[str, Any], kind: type, where: str, file: str) -> None:
    """Refuses values of another type than a dataclass says: numbers, texts, switches.

    Raises:
        UserError: as `check`.
    """
    simple = {bool: SWITCH, str: TEXT, int: NUMBER, float: NUMBER}
    kinds = {}
    for field in dataclasses.fields(kind):
        first, *others = typing.get_args(field.type) or (field.type,)
        if first in simple and {*others} <= {type(None)}:
            own = simple[first]
            kinds[field.name] = own.or_null() if others else own
    check(raw, kinds, where, file)


def check_as(
    raw: Mapping[str, Any], like: Mapping[str, Any], where: str, file: str
) -> None:
    """Refuses values of another type than those of an example, section by section.

    Raises:
        UserError: as `check`.
    """
    for key in raw.keys() & like.keys():
        if isinstance(like[key], Mapping):
            check(raw, {key: OBJECT}, where, file)
            check_as(raw[key], like[key], f"{where}{key}.", file)
        elif isinstance(like[key], bool | int | float | str):
            simple = {bool: SWITCH, str: TEXT}
            check(raw, {key: simple.get(type(like[key]), NUMBER)}, where, file)


def check(
    raw: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    where: str = "",
    file: str = "config.json",
) -> None:
    """Refuses values of other types; keys that are absent have their defaults.

    Args:
        raw: an object of a `config.json`.
        kinds: by key.
        file: that the object is in.
        where: what the object is called in the file, before a key: "rope_scaling.".

    Raises:
        UserError: with every such key, its value, and what it must be.
    """
    wrong = [
        f"{where}{key} is {_short(raw[key])}, it must be {kind.words}"
        for key, kind in kinds.items()
        if key in raw and not kind.accepts(raw[key])
    ]
    if wrong:
        raise errors.UserError(f"{file}: {'; '.join(wrong)}")


def _short(value) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
