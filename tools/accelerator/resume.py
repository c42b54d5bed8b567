"""Four steps, or two, a checkpoint, and two more: the same bits?

On GPUs XLA may add up a gradient in another order each time, unless
--xla_gpu_exclude_nondeterministic_ops is set: there the check runs both ways, and only
with the flag is a difference an error.
"""

import os
import pathlib
import tempfile

import jax
import measure
import numpy as np
import rows

from jaxlab import models, objectives, optim
from jaxlab.core import checkpoint, mesh, state, step, types


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    del clock, peaks  # a second or two, nothing to divide by
    experiment = tiny()
    devices = mesh.make_mesh({"data": 1}, jax.devices()[:1])
    with mesh.use(devices), tempfile.TemporaryDirectory() as folder:
        target, _ = state.abstract(experiment, devices)
        train_step = step.make_step(experiment, target)

        def go(current, steps):
            for number in steps:
                batch = mesh.global_batch(experiment.batches, number, devices)
                current, _ = train_step(current, batch, None)
            return current

        half = go(state.initial(experiment, target), range(2))
        with checkpoint.Checkpointer(pathlib.Path(folder) / "checkpoints") as saver:
            saver.save(2, half)
            saver.wait()
            directory = saver.directory
        straight = jax.device_get(go(half, range(2, 4)))
        _, again = checkpoint.restore(directory, target)
        resumed = jax.device_get(go(again, range(2, 4)))
    leaves = zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True)
    differ = sum(not np.array_equal(_bits(a), _bits(b)) for a, b in leaves)
    good: bool | None = not differ
    if differ and jax.default_backend() == "gpu":
        flagged = "exclude_nondeterministic" in os.environ.get("XLA_FLAGS", "")
        good = False if flagged else None
    count = len(jax.tree.leaves(straight))
    note = f"{differ} of {count} arrays differ" if differ else f"{count} arrays equal"
    rows.emit("resume", "4 steps against 2 + 2", good=good, note=note)


def tiny() -> types.Experiment:
    config = models.TransformerConfig(
        vocab=512, embed=128, layers=2, heads=2, mlp=256, length=128,
        dtype=measure.dtype(),
    )  # fmt: skip
    model = models.Decoder(config)
    tx, _ = optim.build(optim.OptimConfig(3e-4, "constant"), 4)

    def batches(number: int):
        rng = np.random.default_rng(number)
        return {"tokens": rng.integers(0, config.vocab, (4, 128), np.int32)}

    return types.Experiment(
        model=model, objective=objectives.next_token(model.apply), tx=tx,
        batches=batches, steps=4, example=(np.zeros((1, 8), np.int32),),
    )  # fmt: skip


def _bits(x) -> np.ndarray:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.ascontiguousarray(x).view(np.uint8)
