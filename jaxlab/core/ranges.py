"""Ranges of the numbers that a user sets: one line with the key and its range.

    RANGES = {"beta2": ranges.BELOW_1, "epsilon": ranges.AT_LEAST_0}
    ranges.check("optim.", dataclasses.asdict(config), RANGES)

A value out of its range mostly trains on, to another end than was meant: a negative
bound on the gradient turns every gradient round. Standard library only.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors


class Range(NamedTuple):
    """From `low` to `high`, in words.

    Attributes:
        words: e.g. "0 to below 1".
        low, high: the ends; infinite numbers and NaN are in no range.
        has_low, has_high: whether an end is in the range.
    """

    words: str
    low: float = 0.0
    high: float = math.inf
    has_low: bool = True
    has_high: bool = True

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        above = self.low <= value if self.has_low else self.low < value
        below = value <= self.high if self.has_high else value < self.high
        return math.isfinite(value) and above and below


AT_LEAST_0 = Range("0 or more")
AT_LEAST_1 = Range("1 or more", 1.0)
ABOVE_0 = Range("a number above 0", has_low=False)
SHARE = Range("0 to 1", 0.0, 1.0)
BELOW_1 = Range("0 to below 1", 0.0, 1.0, has_high=False)


def is_zero(value: Any) -> bool:
    """Whether a number is 0; what is traced is taken for another one."""
    return isinstance(value, numbers.Real) and value == 0


def check(
    section: str, values: Mapping[str, Any], allowed: Mapping[str, Range]
) -> None:
    """Refuses the first number that is not in its range.

    Args:
        section: in front of a key, e.g. "optim.".
        values: by key; what is not a number of the host (None, a schedule, a traced
            array) is left alone, and so is a key that is missing.
        allowed: key -> its range.

    Raises:
        UserError: with the key, its value and its range.

    >>> check("optim.", {"beta2": 2.0}, {"beta2": BELOW_1})
    Traceback (most recent call last):
    jaxlab.core.errors.ArgumentError: optim.beta2 2.0; use 0 to below 1
    """
    for name, one in allowed.items():
        value = values.get(name)
        if isinstance(value, numbers.Real) and not one.holds(float(value)):
            finite = "" if math.isfinite(value) else ", and finite"
            raise errors.ArgumentError(
                f"{section}{name} {value}; use {one.words}{finite}"
            )


def check_length(flag: str, length: int, most: int) -> None:
    """Refuses rows that a model has no positions for.

    Args:
        flag: that sets the length.
        length: of the rows, in tokens.
        most: the model's.

    Raises:
        UserError: with both, and the flag.
    """
    if length < 1:
        raise errors.UserError(f"{flag} {length}; use 1 or more")
    if length > most:
        raise errors.UserError(
            f"{flag} {length} is beyond the model's {most} tokens; use at most "
            f"{flag} {most}"
        )
