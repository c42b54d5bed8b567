"""JSON of reports, records and configs, written and read; no jax, no numpy.

`dumps` writes NaN as null and arrays as lists. `read_object` and `parse` say in one
line which file is damaged, how, and what to do about it, whatever is wrong with it: cut
short, no UTF-8, nested too deep, a number of thousands of digits, a list, a lost key.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxlab.core import errors, paths


def dumps(value: Any) -> str:
    """The text of a file that holds a value.

    Raises:
        ValueError: the value contains itself.
    """
    try:
        plain = json_value(value)
    except RecursionError:
        raise ValueError("Circular reference detected") from None
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def json_value(value: Any) -> Any:
    """A value as JSON has it: what every report and record of ours is written with.

    Mappings, named tuples and dataclasses become objects; tuples and arrays, lists; NaN
    and infinities, which JSON does not have, null; anything else, its text.

    >>> json_value({"losses": (0.5, float("nan")), "steps": range(2)})
    {'losses': [0.5, None], 'steps': 'range(0, 2)'}
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "tolist"):  # numpy, which commands must not import
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def read_object(
    file: str | os.PathLike, fix: str, keys: Iterable[str] = ()
) -> dict[str, Any] | None:
    """The JSON object in a file, in a bucket too; None where there is no file.

    Args:
        file: of UTF-8, with or without a byte order mark.
        fix: what the user can do about a damaged one.
        keys: it must have.

    Raises:
        UserError: it is no JSON object, or lacks one of the keys.
    """
    data = paths.read_bytes(file)
    return None if data is None else parse_object(data, file, fix, keys)


def parse_object(
    data: bytes | str, file: str | os.PathLike, fix: str, keys: Iterable[str] = ()
) -> dict[str, Any]:
    """The same of what was read from the file already."""
    value = parse(data, file, fix)
    if not isinstance(value, dict):
        raise errors.UserError(f"{file} is damaged: it is not a JSON object; {fix}")
    if lost := [key for key in keys if key not in value]:
        raise errors.UserError(
            f"{file} is damaged: it has no {', '.join(map(repr, lost))}; {fix}"
        )
    return value


def parse(data: bytes | str, file: str | os.PathLike, fix: str) -> Any:
    """The JSON value of a file's text.

    Args:
        data: the text, or its bytes.
        file: to be named where it is damaged.
        fix: what the user can do about that.

    Raises:
        UserError: it is not UTF-8, or not JSON that can be read.
    """
    try:
        return read(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (at byte {error.start})"
    except ReadError as error:
        reason = str(error)
    raise errors.UserError(f"{file} is damaged: it {reason}; {fix}")


@contextlib.contextmanager
def as_written(file: str | os.PathLike, fix: str) -> Iterator[None]:
    """Around what takes an object apart that we wrote and others may have changed.

    A lost key or a value of another type is no mistake of the code that trips on it.

    Raises:
        UserError: the file is damaged, and how Python says it.
    """
    try:
        yield
    except errors.UserError:
        raise
    except (
        KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError,
    ) as error:  # fmt: skip
        raise errors.UserError(
            f"{file} is damaged ({type(error).__name__}: {str(error)[:100]}); {fix}"
        ) from error


class ReadError(Exception):
    """Why a text is no JSON, or JSON that Python does not read: "is ..."."""


def read(text: str, *, once: bool = False) -> Any:
    """The value that a text spells.

    Args:
        text: of JSON.
        once: refuses a name that stands twice in one object, of which JSON keeps the
            last value alone; that takes twice the time.

    Raises:
        ReadError: it is not JSON, is nested too deep, has a number of more than 4,300
            digits, or a name twice.

    >>> read("[1,")
    Traceback (most recent call last):
    jaxlab.core.json_text.ReadError: is not JSON (Expecting value at column 4)
    """
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc else ""
        reason = f"is not JSON ({error.msg} at {line}column {error.colno})"
    except RecursionError:
        reason = "is nested too deep"
    except ValueError:
        reason = "holds a number of thousands of digits"
    raise ReadError(reason)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ReadError(f"has {twice!r} twice in one object, one of them to be lost")
    return found
