"""Two domains of small text, and the tiny run that verbs are tried on."""

import pathlib
import random

import jax
import numpy as np

from jaxlab import cli

LAW = (
    ("The court", "A witness", "The licensee", "The author", "Any person", "The clerk"),
    ("shall retain", "may distribute", "must deliver", "has reviewed", "will publish"),
    ("this notice", "a copy of the agreement", "the original source", "the record"),
)
NAMES, OPERATORS = ("total", "count", "items", "result", "value"), "+-*/"


def write_text(folder: pathlib.Path) -> None:
    """Two domains of 20 short files."""
    draw = random.Random(0)
    for domain, line in (("law", _sentence), ("code", _statement)):
        (folder / domain).mkdir()
        for number in range(20):
            lines = [line(draw) for _ in range(25)]
            (folder / domain / f"{number}.txt").write_text("\n".join(lines) + "\n")


def train(text: pathlib.Path, workdir: pathlib.Path, *overrides: str) -> int:
    """`jaxlab train` for four steps on the text; its exit code."""
    sizes = (
        "steps=4", "eval_batches=1", "data.vocab_size=320", "data.length=32",
        "data.batch_size=8", "data.held_out_fraction=0.2", "optim.warmup_steps=1",
        "model.embed=32", "model.layers=1", "model.heads=2", "model.mlp=64",
        "model.length=64",
    )  # fmt: skip
    return cli.run(
        [
            "train", "--config=configs/olmo.py:tiny", f"--workdir={workdir}",
            f"--config.data.source={text}", f"--config.data.folder={text}.prepared",
            *(f"--config.{size}" for size in sizes), *overrides,
        ]
    )  # fmt: skip


def leaves(params) -> list[np.ndarray]:
    """The arrays of a tree of parameters."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def _sentence(draw):
    return " ".join(draw.choice(part) for part in LAW) + "."


def _statement(draw):
    left, right = draw.choice(NAMES), draw.choice(NAMES)
    return f"    {left} = {right} {draw.choice(OPERATORS)} {draw.randint(0, 99)}"
