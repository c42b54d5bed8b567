"""What a run tells: rows on stdout, `metrics.jsonl`, TensorBoard if it is installed.

A row is one JSON object with at least `step`. Values are written at full precision, so
that two runs can be compared bit for bit. Only process 0 writes.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import math
import pathlib
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from jaxlab.core import errors, folders, paths, progress
from jaxlab.core import peak_flops as peak_flops_lib

_log = logging.getLogger(__name__)


_QUIET = ("seconds", "weight", "cross_entropy", "z_loss")  # in metrics.jsonl only


class Reporter:
    """Writes the rows of one run.

    Args:
        workdir: where metrics.jsonl lives, or None to write nothing to disk.
        steps: how many steps the run has, for the ETA.
        first: the step that the run starts or resumes from: rows after it are of a
            run that was killed and are dropped, since they come again.
        seconds: how often a training row goes to stdout.
        name: shown in front of every row.
    """

    def __init__(
        self,
        workdir: pathlib.Path | None,
        steps: int,
        first: int = 0,
        *,
        seconds: float = 5.0,
        name: str = "",
        out: TextIO | None = None,
    ):
        self.steps, self.first, self.name = steps, first, name
        self._out = sys.stdout if out is None else out
        self._every, self._started = seconds, time.monotonic()
        self._shown = self._last = self._started
        self._compile_seconds: float | None = None  # the first step's, compilation too
        self._file = self._board = None
        self._is_writer = jax.process_index() == 0
        if workdir is not None and self._is_writer:
            path = paths.path(workdir) / "metrics.jsonl"
            self._file = folders.Growing(path, _rows_until(path, first))
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
        if self._compile_seconds is None:
            self._compile_seconds, self._started = seconds, now
            self.first = step
            self.say(f"first step, compilation included: {seconds:.1f} s")
        elif now - self._shown >= self._every or step == self.steps:
            self._shown = now
            self._say(step, row, self._eta(step, now))

    def evaluation(self, step: int, name: str, metrics: Mapping[str, Any]) -> None:
        """Writes an evaluation row: keys are `eval/NAME/METRIC`."""
        row = {f"eval/{name}/{key}": _number(value) for key, value in metrics.items()}
        self._write(step, row)
        self._say(step, metrics, f" on {name}")
        self._last = time.monotonic()  # evaluation is not training time

    def publish(self) -> None:
        """Makes all rows seen in a bucket too, which otherwise takes half a minute."""
        if self._file is not None:
            self._file.publish()

    def say(self, text: str) -> None:
        """One line to stdout, from process 0."""
        if self._is_writer:
            prefix = f"[{self.name}] " if self.name else ""
            progress.line(prefix + text, self._out)

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
                self._file.write(json.dumps(json_value({"step": step, **row})) + "\n")
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
    """Writes `json_value(value)`; a reader sees the old file or the new, never half."""
    text = json.dumps(json_value(value), indent=2, sort_keys=True, allow_nan=False)
    folders.write_text(path, text + "\n")


def json_value(value: Any) -> Any:
    """A value as JSON has it: what every report and record of ours is written with.

    Mappings, named tuples and dataclasses become objects; tuples and arrays, lists; NaN
    and infinities, which JSON does not have, null; anything else, its text.

    >>> json_value({"losses": (0.5, float("nan")), "steps": np.arange(2)})
    {'losses': [0.5, None], 'steps': [0, 1]}
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def check_config(
    workdir: pathlib.Path, config: Mapping[str, Any], *, free: tuple[str, ...] = ()
) -> None:
    """Refuses to resume a run under another config.

    Args:
        workdir: of the run; nothing is checked when it has no config.json.
        config: of this start.
        free: prefixes of keys that may differ, e.g. `mesh`: they change how the run
            is computed, not what.

    Raises:
        UserError: with every differing key, its old and its new value.
    """
    text = paths.read_text(paths.path(workdir) / "config.json")
    if text is None:
        return
    # Both sides: older versions wrote an infinity as it is.
    old = _flat(json_value(json.loads(text)))
    new = _flat(json.loads(json.dumps(json_value(config))))
    keys = sorted(
        key
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key)
        and not any(key == f or key.startswith(f + ".") for f in free)
    )
    if keys:
        shown = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys)
        raise errors.UserError(
            f"{workdir} holds a run with another config: {shown}. Use another "
            "--workdir, or the old values to resume"
        )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, Mapping):
        return {prefix: config}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in config.items()]
    return {key: value for item in items for key, value in item.items()}


def _rows_until(path: pathlib.Path, step: int) -> str:
    """The rows up to `step`; a last line cut by a kill is dropped too."""
    rows = []
    for line in (paths.read_text(path) or "").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            rows.append(line)
    return "".join(row + "\n" for row in rows)


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
