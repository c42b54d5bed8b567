"""What long work tells while it runs: where it is, how long each stage took, the rest.

A line on stdout says the time since the start. `Stages` counts work that is known
beforehand, in training steps; `Clock.meter` counts one loop, and keeps silent where it
takes a few seconds only.
"""

import time
from collections.abc import Callable

from jaxlab.core import report

_EVERY_SECONDS = 5.0  # between two lines of a meter


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
        report.line(f"[{report.duration(self.elapsed()):>5}] {text}")

    def progress(self, stage: str, share: float) -> None:
        """A line with the share of everything that is done, and the time left."""
        left = self.elapsed() * (1 - share) / max(share, 1e-9)
        self.say(f"{stage}: {share:.0%} of all done, {report.duration(left)} left")

    def meter(self, what: str) -> Callable[[int, int | None], None]:
        """A callback of (done, all or None) that says so every few seconds."""
        started = shown = time.monotonic()

        def tell(done: int, count: int | None) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < _EVERY_SECONDS or done == count:
                return
            shown, end = now, ""
            if count:
                left = (now - started) * (count - done) / done
                end = f" of {count}, {report.duration(left)} left"
            self.say(f"{what}: {done}{end}")

        return tell


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

    def finished(self, stage: str, steps: float) -> None:
        """Counts steps of a stage, and its seconds since the last call."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._done += steps
        if steps:
            self._report(stage, min(self._done / self._total, 1.0))
