"""Runs, folders and token files that verbs are tried on, and how they are run."""

import re

import pytest

from jaxlab import cli
from tests.support import verb_runs


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Two domains of 20 short files."""
    folder = tmp_path_factory.mktemp("text")
    verb_runs.write_text(folder)
    return folder


@pytest.fixture(scope="session")
def workdir(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "seed"
    assert verb_runs.train(text, path) == 0
    return str(path)


@pytest.fixture(scope="session")
def published(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "seed"
    assert cli.run(["convert", workdir, str(path)]) == 0
    return str(path)


@pytest.fixture(scope="session")
def expert(text, published, tmp_path_factory):
    """A run that starts from the Hugging Face folder and reads one domain."""
    path = tmp_path_factory.mktemp("runs") / "law"
    overrides = (f"--config.init_from={published}", "--config.data.weights.law=1")
    assert verb_runs.train(text, path, *overrides) == 0
    return str(path)


@pytest.fixture(scope="session")
def larger_tokenizer(text, tmp_path_factory):
    """Token files of the same text with a vocabulary that the model lacks."""
    out = tmp_path_factory.mktemp("larger") / "data"
    argv = ["data", "prepare", str(text), str(out), "--vocab-size=400"]
    assert cli.run(argv) == 0
    return out


@pytest.fixture
def line(capsys):
    """Runs a command line that must fail, and returns its one line."""

    def run(*argv):
        capsys.readouterr()
        assert cli.run([str(part) for part in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        # A slow machine's lines of progress, `INFO: opening ... 5s`, are left out.
        lines = [x for x in lines if not re.fullmatch(r"INFO: .* \.\.\. \d+s", x)]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def said(capsys):
    """Runs a command line that must succeed, and returns its stdout."""

    def run(*argv):
        capsys.readouterr()
        assert cli.run([str(part) for part in argv]) == 0
        return capsys.readouterr().out

    return run
