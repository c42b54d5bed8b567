"""The rows of a run: on stdout, in `metrics.jsonl`, in TensorBoard if installed.

A row is one JSON object with at least `step`. Values are written at full precision, so
that two runs can be compared bit for bit. Only process 0 writes.
"""

import contextlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from jaxlab.core import errors, folders, json_text, paths, progress, runs
from jaxlab.core import peak_flops as peak_flops_lib

_log = logging.getLogger(__name__)


_BRIEF_SECONDS = 10.0
_QUIET = ("seconds", "weight", "cross_entropy", "z_loss")  # in metrics.jsonl only


class Reporter:
    """Writes the rows of one run.

    Args:
        workdir: where metrics.jsonl goes, or None to write nothing to disk.
        steps: how many steps the run has, for the ETA.
        first: the step that the run starts or resumes from: rows after it are of a
            run that was killed and are dropped, since they come again.
        seconds: how often a training row goes to stdout.
        name: shown in front of every row.
        is_brief: one line at the end, and one every ten seconds: of a run that is one
            of many. metrics.jsonl has all the same.
    """

    def __init__(
        self,
        workdir: pathlib.Path | None,
        steps: int,
        first: int = 0,
        *,
        seconds: float = 5.0,
        name: str = "",
        is_brief: bool = False,
        out: TextIO | None = None,
    ):
        self.steps, self.first, self.name = steps, first, name
        self._out, self._is_brief = sys.stdout if out is None else out, is_brief
        if is_brief:
            seconds = _BRIEF_SECONDS
        self._every, self._started = seconds, time.monotonic()
        self._begun = self._started
        self._shown = self._last = self._started
        self._compile_seconds: float | None = None  # the first step's, compilation too
        self._file = self._board = None
        self._is_writer = jax.process_index() == 0
        if workdir is not None and self._is_writer:
            path = paths.path(workdir) / runs.METRICS
            old = runs.lines_until(workdir, first)
            self._file = folders.Growing(path, "".join(line + "\n" for line in old))
            self._board = _tensorboard(workdir)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception) -> None:
        for target in (self._file, self._board):
            if target is not None:
                target.close()

    def train(
        self,
        step: int,
        metrics: Mapping[str, Any],
        tokens: int,
        flops_per_token: float | None = None,
    ) -> None:
        """Writes a training row; `tokens` of this step give speed and utilisation."""
        now = time.monotonic()
        seconds, self._last = max(now - self._last, 1e-9), now
        row = {name: _number(value) for name, value in metrics.items()}
        row |= {"seconds": seconds, "tokens_per_second": tokens / seconds}
        if flops_per_token is not None:
            peak_flops, _ = peak_flops_lib.flops_per_second()
            row["mfu"] = row["tokens_per_second"] * flops_per_token / peak_flops
        self._write(step, row)
        is_first = self._compile_seconds is None
        if is_first:
            self._compile_seconds, self._started = seconds, now
            self.first = step
            self.detail(f"first step, compilation included: {seconds:.1f} s")
        if self._is_brief and is_first:
            self._shown = now  # the compilation has been announced
        if self._is_brief and step == self.steps:
            self._shown = now
            took = progress.duration(now - self._begun)
            loss = f", loss {_short(row['loss'])}" if "loss" in row else ""
            self.say(f"{step} steps{loss}, took {took}")
        elif not is_first and (now - self._shown >= self._every or step == self.steps):
            self._shown = now
            self._say(step, row, self._eta(step, now))

    def evaluation(self, step: int, name: str, metrics: Mapping[str, Any]) -> None:
        """Writes an evaluation row: keys are `eval/NAME/METRIC`."""
        row = {f"eval/{name}/{key}": _number(value) for key, value in metrics.items()}
        self._write(step, row)
        self._last = time.monotonic()  # evaluation is not training time
        if not self._is_brief or self._last - self._shown >= self._every:
            self._shown = self._last
            self._say(step, metrics, f" on {name}")

    def publish(self) -> None:
        """Makes all rows seen in a bucket too, which otherwise takes half a minute."""
        if self._file is not None:
            self._file.publish()

    def say(self, text: str) -> None:
        """One line to stdout, from process 0."""
        if self._is_writer:
            prefix = f"[{self.name}] " if self.name else ""
            progress.line(prefix + text, self._out)

    def detail(self, text: str) -> None:
        """A line that a run which is one of many leaves out."""
        if not self._is_brief:
            self.say(text)

    def _say(self, step, row, end=""):
        shown = {name: value for name, value in row.items() if name not in _QUIET}
        if not shown.get("skipped"):
            shown.pop("skipped", None)
        words = " ".join(f"{name} {_short(value)}" for name, value in shown.items())
        self.say(f"step {step}/{self.steps} {words}{end}")

    def _eta(self, step, now):
        done, total = step - self.first, self.steps - self.first
        return f" eta {progress.time_left(now - self._started, done, total)}"

    def _write(self, step, row):
        if self._file is not None:
            try:
                self._file.write(
                    json.dumps(json_text.json_value({"step": step, **row})) + "\n"
                )
                self._file.flush()
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.close()  # now: later it would fail again, in its way
                raise errors.UserError(
                    f"cannot write {self._file.name} ({error.strerror}); free some "
                    "disk space and start the same command again"
                ) from None
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, step)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON; a reader sees the old file or the new, never half."""
    folders.write_text(path, json_text.dumps(value))


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
    installed = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **installed}


def _tensorboard(workdir: pathlib.Path):
    try:
        import tensorboardX
    except ImportError:
        return None
    return tensorboardX.SummaryWriter(str(paths.path(workdir) / "tensorboard"))


def _number(value: Any) -> float | int:
    value = np.asarray(value)
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(value)


def _short(value: float | int) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
