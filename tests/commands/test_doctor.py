"""`jaxlab doctor` and `jaxlab train --dry-run`: what would run here, and on what."""

import os

import pytest

from jaxlab import cli
from jaxlab.core import accelerators, errors, locks


def test_a_machine_that_works_is_described_and_exits_with_0(said, tmp_path):
    words = said("doctor", str(tmp_path))
    names = [line.split()[0] for line in words.splitlines()]
    assert {"jaxlab", "python", "jax", "devices", "extra", "cache", "disk"} <= {*names}
    assert "8 x cpu (cpu)" in words
    assert f"nobody holds {tmp_path}" in words


def test_whoever_writes_a_folder_is_named(said, tmp_path):
    with locks.hold(tmp_path, "jaxlab train"):
        assert f"jaxlab train, pid {os.getpid()} on" in said("doctor", str(tmp_path))
    assert locks.owner(tmp_path) is None


def test_a_machine_without_its_device_says_so_and_exits_with_1(monkeypatch, capsys):
    def refuse():
        raise errors.UserError("no device to compute on: JAX_PLATFORMS is tpu")

    monkeypatch.setattr(accelerators, "check", refuse)
    assert cli.run(["doctor"]) == 1
    assert "none: no device to compute on" in capsys.readouterr().out


def dry_run(workdir, *flags):
    argv = ["train", "--config=olmo:tiny", f"--workdir={workdir}", "--dry-run", *flags]
    return cli.run(argv)


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    text, tmp_path, capsys
):
    flags = [f"--config.data.source={text}", "--config.data.vocab_size=320"]
    assert dry_run(tmp_path / "run", *flags) == 0
    words = capsys.readouterr().out
    assert "200 of 8 x 128 tokens: 204,800 in all" in words
    assert "155,648 parameters" in words
    assert "8 x cpu, mesh {'data': 8}" in words
    assert "code, 0.1 MB; law, 0.1 MB" in words
    assert f"{tmp_path}/run is new" in words
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_run_says_where_it_goes_on(text, workdir, capsys):
    flags = [f"--config.data.source={text}", "--config.steps=4"]
    assert dry_run(workdir, *flags) == 0
    assert "is finished, at step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.source=nowhere", "no data at nowhere"),
        ("init_from=nowhere", "model nowhere does not exist"),
        ("data.batch_size=6", "6 rows is not divisible by 8 data shards"),
        ("data.source=", "no data: set --config.data.source"),
    ],
)
def test_a_dry_run_finds_what_is_missing(tmp_path, line, flag, message):
    flags = ["--config=olmo:tiny", f"--workdir={tmp_path}/run", f"--config.{flag}"]
    assert message in line("train", *flags, "--dry-run")
    assert not list(tmp_path.iterdir())
