"""What the checks print, and the clock that they watch; standard library only."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any


def emit(
    check: str,
    what: str,
    value: float | None = None,
    unit: str = "",
    *,
    share: float | None = None,
    of: str = "",
    goal: float | None = None,
    good: bool | None = None,
    note: str = "",
    **more: Any,
) -> None:
    """Prints a row: one line of JSON.

    Args:
        check: which of the checks.
        what: the thing measured; a peer's row has the same words.
        value: in `unit`; None where nothing could be measured.
        share: of the peak `of`, 0 to about 1.
        goal: below it the share is called low; None for no such verdict.
        good: whether a result is right; None where nothing was compared.
        note: why there is no value, or what was found.
    """
    row = {"check": check, "what": what, "value": value, "unit": unit, "share": share,
           "of": of, "goal": goal, "good": good, "note": note, **more}  # fmt: skip
    print(json.dumps(row), flush=True)


class Clock:
    """Says whether there is time for one more size.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def part(self, share: float) -> "Clock":
        """The clock of one check: a share of what is left."""
        return Clock(share * self.left())

    def sizes(self, check: str, sizes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """(name, size) from small to large, while one more can be expected to fit."""
        last = 0.0
        for name, size in sizes.items():
            if self.left() < 1.5 * last:
                emit(check, name, note="left out: no time for it")
                continue
            start = time.monotonic()
            yield name, size
            last = time.monotonic() - start
