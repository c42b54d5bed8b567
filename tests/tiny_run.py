"""A small real training run, for tests in this process and in killed ones.

python -m tests.tiny_run WORKDIR STEPS SAVE_EVERY
"""

import sys

import numpy as np

from jaxlab import models, objectives, optim, train
from jaxlab.core import process, types
from jaxlab.evals import perplexity

CONFIG = models.TransformerConfig(
    vocab=64, embed=32, layers=2, heads=2, mlp=64, norm="layernorm", length=16
)


def batches(step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """Sequences that count upwards from a random start: quick to learn."""
    random = np.random.default_rng([7, step])
    start = random.integers(0, 64, (8, 1))
    return {"tokens": ((start + np.arange(16)) % 64).astype(np.int32)[rows]}


batches.rows = 8  # several hosts have to agree on it


def experiment(steps: int = 12, **changes) -> types.Experiment:
    """The run; `changes` replace fields."""
    model = models.Decoder(changes.pop("model_config", CONFIG))
    tx, rate = optim.build(optim.OptimConfig(1e-2, warmup_steps=2, ema=0.9), 12)
    fields = {
        "model": model,
        "objective": objectives.next_token(model.apply, z_loss=1e-5),
        "tx": tx,
        "batches": batches,
        "steps": steps,
        "example": (np.zeros((1, 8), np.int32),),
        "config": {"optim": {"learning_rate": 1e-2}, "mesh": {"data": 1}},
        "learning_rate": rate,
        "flops_per_token": CONFIG.flops_per_token(16),
    }
    return types.Experiment(**{**fields, **changes})


def evaluate(params) -> dict[str, float]:
    """Perplexity on a batch that is not trained on."""
    return perplexity.evaluate(models.Decoder(CONFIG).apply, params, [batches(10**6)])


if __name__ == "__main__":
    process.start()
    train.fit(
        experiment(int(sys.argv[2]), evals={"own": evaluate}),
        sys.argv[1],
        save_every=int(sys.argv[3]),
        log_seconds=60.0,
    )
