"""Runs that commit 865b6a5 wrote go on, and are read by every verb.

tests/values/old_runs/runs.tar.xz: `olmo`, of four steps with `optim.ema`, and `sft`
that began from it, both cut off after two steps; their metrics.jsonl is that of the
uninterrupted runs. `merge.json` is of the average of both. Paths in it are relative.
"""

import hashlib
import pathlib
import tarfile

import pytest

from jaxlab import cli
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import runs
from tests.support import devices

ROOT = pathlib.Path(__file__).parents[2]
VALUES = ROOT / "tests" / "values" / "old_runs"
EVERY = (
    "steps=4", "optim.warmup_steps=1", "data.seed=3", "run.save_every=2",
    "run.eval_every=2", "run.keep=9",
)  # fmt: skip
FLAGS = {
    "olmo": (
        "olmo.py:tiny", "model.embed=8", "model.layers=1", "model.heads=1",
        "model.mlp=16", "model.length=16", "eval_batches=1", "data.length=16",
        "data.batch_size=4", "data.source=text", "data.vocab_size=300",
        "data.max_bytes_per_domain=0", "data.held_out_fraction=0.2", "optim.ema=0.9",
    ),
    "sft": (
        "tulu.py:tiny", "init_from=olmo", "data.source=talk.jsonl", "data.length=64",
        "data.batch_size=2", "data.held_out_fraction=0.2", "model.embed=0",
    ),
}  # fmt: skip
# sha256 of the weights that 865b6a5 wrote beside merge.json.
MERGED = "38aa54ef872d7e37c6619c0a7af3a6f3f8d26a60add6b4ab1f3fdc9914cad750"
TIMED = ("tokens_per_second", "mfu", "seconds", "memory")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder that the old runs were made in, where one device is used."""
    with tarfile.open(VALUES / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    one = devices.one()
    monkeypatch.setattr(mesh_lib, "make_mesh", lambda *args, **kwargs: one)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(name):
    config, *flags = FLAGS[name]
    overrides = [f"--config.{flag}" for flag in (*flags, *EVERY)]
    command = ["train", f"--config={ROOT / 'configs' / config}", f"--workdir={name}"]
    return cli.run([*command, *overrides])


def numbers(folder):
    """What metrics.jsonl says but for time and memory."""
    return [
        {k: v for k, v in row.items() if not any(word in k for word in TIMED)}
        for row in runs.rows(folder)
    ]


@pytest.mark.parametrize("name", FLAGS)
def test_an_old_run_goes_on_with_the_numbers_of_the_uninterrupted_one(name, old):
    before = numbers(old / name)
    assert [row["step"] for row in before if "loss" in row] == [1, 2, 3, 4]
    assert train(name) == 0
    after = numbers(old / name)
    assert len(after) == len(before)
    for row, expected in zip(after, before, strict=True):
        # On the machine of the old run they are equal bit for bit.
        assert row == pytest.approx(expected, rel=1e-4)

    rows = (old / name / "metrics.jsonl").read_bytes()
    assert train(name) == 0  # finished: nothing is trained
    assert (old / name / "metrics.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_an_old_run_is_read_by_every_verb(old, capsys):
    for command in (
        ["checkpoint", "ls", "olmo"],
        ["checkpoint", "verify", "olmo"],
        ["checkpoint", "export", "olmo", "exported"],
        ["convert", "sft", "sft_hf"],
        ["evaluate", "olmo", "--max-batches", "1"],
        ["evaluate", "olmo", "--average", "--max-batches", "1"],
        ["evaluate", "sft", "--data", "text", "--length", "16", "--max-batches", "1"],
        ["generate", "olmo", "--prompt", "sum", "--max-new-tokens", "2"],
        ["generate", "sft", "--chat", "--prompt", "sum?", "--max-new-tokens", "2"],
        ["data", "inspect", "--workdir", "olmo", "--step", "1"],
    ):
        assert cli.run(command) == 0, (command, capsys.readouterr().err)


def test_an_old_merge_is_repeated_with_the_same_bytes_and_read(old, capsys):
    assert "crc32" in (old / "merge.json").read_text()  # of the inputs, checked
    assert cli.run(["merge", "merge.json", "-o", "again", "--format", "hf"]) == 0, (
        capsys.readouterr().err
    )
    weights = (old / "again" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == MERGED
    # Of Hugging Face folders: 865b6a5 wrote no system, and files that never were.
    run = runs.read("merged")
    assert (run.system, run.kind) == (runs.MERGE, "decoder")
