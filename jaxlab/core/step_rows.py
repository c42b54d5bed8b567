"""Training rows, one step late: metrics, speed, and the count of bad steps."""

import jax
import numpy as np
from clu import parameter_overview

from jaxlab.core import errors, peak_flops, progress, report, types


class StepRows:
    """Rows of the training steps, one step late, so that the loop never waits."""

    def __init__(
        self, experiment: types.Experiment, rows: report.Reporter, max_skipped: int
    ):
        self.experiment, self.rows, self.max_skipped = experiment, rows, max_skipped
        self._pending, self._in_a_row = None, 0

    def start(self, first: int, state: types.TrainState, mesh: jax.sharding.Mesh):
        """Says where the run stands; the table of parameters only at its beginning."""
        steps = self.experiment.steps
        if first >= steps:
            self.rows.say(f"complete: {first} of {steps} steps are done, none is left")
            return
        sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
        if self.experiment.flops_per_token is not None:
            # Now, while the device is idle: beside a step it would come out too low.
            with progress.announce("measuring the device", self.rows.detail):
                flops, source = peak_flops.flops_per_second()
            self.rows.detail(f"peak {flops / 1e12:.3g} TFLOP/s ({source})")
        if first == 0 and self.experiment.init_from is None:
            self.rows.detail("parameters\n" + _overview(state.params, mesh))
            config = getattr(self.experiment.model, "config", None)
            if hasattr(config, "describe"):
                self.rows.detail(config.describe())
        self.rows.detail(
            f"{'resuming' if first else 'starting'} at step {first} of {steps} on mesh "
            f"{sizes or 'of one device'}"
        )

    def next(self, step: int, metrics: dict, batch: types.Batch) -> None:
        """Takes the metrics of `step`, writes those of the step before."""
        tokens = batch["tokens"] if "tokens" in batch else next(iter(batch.values()))
        before, self._pending = self._pending, (step, metrics, tokens.size)
        self._write(before)

    def flush(self) -> None:
        """Writes the row that is pending; raises UserError after too many bad steps."""
        last, self._pending = self._pending, None
        self._write(last)

    def _write(self, pending: tuple | None) -> None:
        if pending is None:
            return
        step, metrics, tokens = pending
        row = {name: np.asarray(value) for name, value in metrics.items()}
        updates = int(row.pop("updates", step))
        if self.experiment.learning_rate is not None:
            row["learning_rate"] = self.experiment.learning_rate(updates)
        flops = self.experiment.flops_per_token
        self.rows.train(step, row, tokens, flops)
        self._in_a_row = self._in_a_row + 1 if row["skipped"] else 0
        # A run that is shorter must not end well where it has learnt nothing.
        most = min(self.max_skipped, self.experiment.steps)
        if self._in_a_row >= max(most, 1):
            raise errors.UserError(
                f"the loss, gradient or update was not finite in {self._in_a_row} "
                f"steps in a row, up to step {step}; the weights are those of step "
                f"{step - self._in_a_row}. Look at the data with `jaxlab data inspect "
                f"--step {step - 1}` and start the same command to go on, or lower "
                "the learning rate (or raise optim.epsilon) in another --workdir with "
                "this one as init_from"
            )


def _overview(params: types.Params, mesh: jax.sharding.Mesh) -> str:
    """A table of paths, shapes and sizes; of shardings too where there are any."""
    columns = "sharding" if mesh.size > 1 else False
    return parameter_overview.get_parameter_overview(params, include_stats=columns)
