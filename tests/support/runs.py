"""A small real training run, in this process and in killed ones; other processes.

python -m tests.support.runs WORKDIR STEPS SAVE_EVERY
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from jaxlab import models, objectives, optim, train
from jaxlab.core import process, types
from jaxlab.evals import perplexity
from tests.support import compiling

ROOT = pathlib.Path(__file__).parents[2]
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


def losses(workdir) -> list[float]:
    rows = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, rows) if "loss" in row]


def launch(workdir, steps=12, save_every=2, **extra) -> subprocess.Popen:
    environment = compiling.quickly(dict(os.environ)) | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        **extra,
    }
    command = [sys.executable, "-m", "tests.support.runs", str(workdir), str(steps)]
    return subprocess.Popen(
        [*command, str(save_every)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def hosts(count: int) -> list[dict[str, str]]:
    """The variables that make so many processes one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "JAXLAB_MULTIHOST": "1",
            "JAXLAB_COORDINATOR": f"127.0.0.1:{port}",
            "JAXLAB_NUM_PROCESSES": str(count),
            "JAXLAB_PROCESS_ID": str(number),
            "JAX_NUM_CPU_DEVICES": "1",
        }
        for number in range(count)
    ]


def python(code: str, *argv, check=True, **extra) -> subprocess.CompletedProcess:
    """Runs code in a process of its own, at the root, with its output as text."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        capture_output=True,
        text=True,
        check=check,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **extra},
    )


def wait_for_rows(workdir, count, process, seconds=120.0):
    path, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]


if __name__ == "__main__":
    process.start()
    train.fit(
        experiment(int(sys.argv[2]), evals={"own": evaluate}),
        sys.argv[1],
        save_every=int(sys.argv[3]),
        log_seconds=60.0,
    )
