"""Model-FLOP utilisation of the step of `jaxlab train`: guards, clipping, AdamW."""

import jax
import measure
import numpy as np
import rows
import sizes

from jaxlab import models, objectives, optim
from jaxlab.core import mesh, state, step, types


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    kind = measure.dtype()
    steps = sizes.named_steps(measure.is_accelerator())
    for name, size in clock.sizes("training", steps):
        config = decoder(size)
        try:
            seconds, loss = time_steps(config, size)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            rows.emit("training", name, note="does not fit into its memory")
            continue
        pace = size.batch * size.length / seconds
        rows.emit(
            "training", name, pace, "tokens/s",
            share=pace * size.flops_per_token() / peaks.matmul(kind),
            of=f"matmul {kind}", goal=measure.goal("matmul"),
            good=bool(np.isfinite(loss)), note=config.describe(),
        )  # fmt: skip


def decoder(size: sizes.Step) -> models.TransformerConfig:
    return models.TransformerConfig(
        vocab=size.vocab, embed=size.embed, layers=size.layers, heads=size.heads,
        mlp=size.mlp, length=size.length, norm="layernorm", dtype=measure.dtype(),
        scan=measure.is_accelerator(),
    )  # fmt: skip


def time_steps(config, size) -> tuple[float, float]:
    """(seconds per step, the last loss)."""
    model, shape = models.Decoder(config), (size.batch, size.length)
    tokens = np.random.default_rng(0).integers(0, config.vocab, shape, np.int32)
    tx, _ = optim.build(optim.OptimConfig(3e-4, "constant"), 1000)
    experiment = types.Experiment(
        model=model,
        objective=objectives.next_token(model.apply),
        tx=tx,
        batches=lambda step: {"tokens": tokens},
        steps=1000,
        example=(tokens[:1, :8],),
    )
    devices = mesh.make_mesh({"data": 1}, jax.devices()[:1])
    with mesh.use(devices):
        target, _ = state.abstract(experiment, devices)
        current = state.initial(experiment, target)
        train_step = step.make_step(experiment, target)
        batch = mesh.global_batch(experiment.batches, 0, devices)

        def one():
            nonlocal current
            current, metrics = train_step(current, batch, None)
            return metrics["loss"]

        seconds = measure.seconds(one)
        return seconds, float(one())
