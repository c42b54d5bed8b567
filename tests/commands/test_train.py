"""`jaxlab train`: what a run leaves, and mistakes in its config."""

import json
import os
import pathlib
import signal

import pytest

from jaxlab.core import accelerators, checkpoint, errors, process
from tests.support import verb_runs


def test_a_run_leaves_its_config_metrics_and_checkpoints(workdir):
    folder = pathlib.Path(workdir)
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert checkpoint.steps(folder / "checkpoints") == [4]


def test_the_same_command_finds_the_run_finished(text, workdir, capsys):
    assert verb_runs.train(text, workdir) == 0
    assert "complete: 4 of 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "jaxlab train: give --config=FILE[:VARIANT]"),
        (
            ["--config=configs/olmo.py:tiny", "--workdir=w", "--config.optim.lr=1"],
            "jaxlab train: unknown config key 'optim.lr'",
        ),
        (
            ["--config=configs/olmo.py:huge", "--workdir=w"],
            "variant 'huge'; use one of",
        ),
    ],
)
def test_mistakes_in_flags_of_train_are_one_line(line, flags, message):
    assert message in line("train", *flags)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.heads=0",
            "this config does not work: heads is 0; it must be a whole",
        ),
        ("model.norm=batch", "this config does not work: norm 'batch'; use one of"),
        ("loss_denominator=x", "loss_denominator 'x'; use labels or olmo"),
        ("system=olmo.pretrian", "config.system 'olmo.pretrian' is unknown"),
        ("data.weights.web=1", "data.weights names web; the domains are code, law"),
        ("micro_batches=3", "micro_batches 3 does not divide a batch of 8 rows"),
        ("init_from=nowhere", "model nowhere does not exist"),
    ],
)
def test_configs_that_cannot_work_are_one_line(
    text, workdir, tmp_path, capsys, override, message
):
    assert verb_runs.train(text, tmp_path / "run", f"--config.{override}") == 2
    [said] = capsys.readouterr().err.splitlines()
    assert message in said


def test_another_config_in_the_same_workdir_is_one_line(text, workdir, capsys):
    assert verb_runs.train(text, workdir, "--config.optim.weight_decay=0") == 2
    assert "optim.weight_decay: 0.1 -> 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (15, 143)])
def test_a_run_that_a_signal_stopped_saves_and_is_not_taken_for_finished(
    text, tmp_path, monkeypatch, capsys, number, code
):
    folder, ask = tmp_path / "run", process.Stop.__call__

    def stop_at_two(stop, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return ask(stop, step)

    monkeypatch.setattr(process.Stop, "__call__", stop_at_two)
    assert verb_runs.train(text, folder) == code
    said = capsys.readouterr()
    assert "stopped at step 2, saved; the same command continues" in said.out
    assert said.err == "jaxlab train: interrupted\n"
    assert checkpoint.steps(folder / "checkpoints") == [2]
    monkeypatch.undo()
    assert verb_runs.train(text, folder) == 0
    assert checkpoint.steps(folder / "checkpoints") == [4, 2]


def test_devices_are_asked_for_before_any_file(text, tmp_path, monkeypatch, capsys):
    def refuse():
        raise errors.UserError("no device to compute on")

    monkeypatch.setattr(accelerators, "check", refuse)
    assert verb_runs.train(text, tmp_path / "run") == 2
    assert capsys.readouterr().err == "jaxlab train: no device to compute on\n"
    assert not (tmp_path / "run").exists()
