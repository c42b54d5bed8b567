"""Progress of long work: lines on stdout with the time passed and the time left.

`Meter` counts one loop, and keeps silent where it takes a few seconds only; it is a
`Progress`, which rooms take as an argument. `announce` is for work that cannot be
counted, such as a compilation. `Clock` puts the time since the start in
front of its lines. `Stages` counts work that is known beforehand, in training steps.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from jaxlab.core import errors

Progress = Callable[[int, int | None], None]  # called with (done, all or None)

_EVERY_SECONDS = 5.0  # between two lines of a meter, and of silence
_last_line = [time.monotonic()]  # when this process wrote one


def line(text: str, out: TextIO | None = None) -> None:
    """One line to stdout, at once; where nobody can read it, the work goes on."""
    _last_line[0] = time.monotonic()
    with contextlib.suppress(OSError):  # a reader that left, or a disk that is full
        # Line ends are ours: a command may say several lines at once.
        text = "\n".join(map(errors.spell_out, text.split("\n")))
        print(text, file=sys.stdout if out is None else out, flush=True)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(75), duration(3900)
    ('1m15s', '1h05m')
    """
    seconds = max(int(seconds), 0)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def time_left(seconds: float, done: float, total: float) -> str:
    """What the rest will take, if it goes on as before, for people.

    Args:
        seconds: that `done` took.
        done: of the work, in any unit.
        total: of the work, in that unit.

    >>> time_left(10.0, 2, 20)
    '1m30s'
    """
    return duration(seconds * (total - done) / max(done, 1e-9))


def remark(text: str) -> None:
    """A line to stderr, of a command whose stdout is its answer."""
    line(f"INFO: {text}", sys.stderr)


class Meter:
    """Says every few seconds how far a loop is: a `Progress`.

    Args:
        what: is counted.
        say: is called with a line.
        number: writes a count, e.g. of bytes as gigabytes.
    """

    def __init__(
        self,
        what: str,
        say: Callable[[str], None] = line,
        number: Callable[[int], str] = str,
    ):
        self._what, self._say, self._number = what, say, number
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, count: int | None) -> None:
        """Takes how much is done, and how much there is, if that is known."""
        now = time.monotonic()
        if now - self._shown < _EVERY_SECONDS or done == count:
            return
        self._shown, end = now, ""
        if count:
            left = time_left(now - self._started, done, count)
            end = f" of {self._number(count)}, {left} left"
        self._say(f"{self._what}: {self._number(done)}{end}")


@contextlib.contextmanager
def announce(what: str, say: Callable[[str], None] = line) -> Iterator[None]:
    """Says every few seconds that work goes on which cannot be counted: compiling ...

    Where the work has said something itself, that will do.

    Args:
        what: goes on.
        say: is called with a line, from another thread.
    """
    done, started = threading.Event(), time.monotonic()

    _last_line[0] = started

    def repeat() -> None:
        while not done.wait(_last_line[0] + _EVERY_SECONDS - time.monotonic()):
            now = time.monotonic()
            if now - _last_line[0] >= _EVERY_SECONDS:
                _last_line[0] = now
                say(f"{what} ... {duration(now - started)}")

    watcher = threading.Thread(target=repeat, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class Clock:
    """Time since the start; `seconds` may keep those of each stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """A line with the time in front."""
        line(f"[{duration(self.elapsed()):>5}] {text}")

    def progress(self, stage: str, share: float) -> None:
        """A line with the share of everything that is done, and the time left."""
        left = time_left(self.elapsed(), share, 1.0)
        self.say(f"{stage}: {share:.0%} of all done, {left} left")

    def announce(self, what: str) -> contextlib.AbstractContextManager[None]:
        """`announce`, with the time in front."""
        return announce(what, self.say)

    def meter(self, what: str) -> Meter:
        """A meter whose lines have the time in front."""
        return Meter(what, self.say)


class Stages:
    """How much of a plan is done, and what each of its stages took.

    Args:
        total: of the plan, in training steps or what takes as long as one.
        done: called with (stage, share of the plan that is done).
    """

    def __init__(self, total: float, done: Callable[[str, float], None]):
        self.seconds: dict[str, float] = {}
        self._total, self._report = total, done
        self._done, self._since = 0.0, time.monotonic()

    def count(self, stage: str, steps: float) -> None:
        """Counts steps of a stage, and its seconds since the last call."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._done += steps
        if steps:
            self._report(stage, min(self._done / self._total, 1.0))
