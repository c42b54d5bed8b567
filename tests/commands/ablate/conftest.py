"""A tiny real pool of three partitions, and `jaxlab ablate` run in this process."""

import functools
import pathlib
import re
import shutil

import pytest

from jaxlab import cli, train
from jaxlab.systems import sizes
from tests.support import pools


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "quick", pools.TINY)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Folders of text: three partitions, and one to be added."""
    folder = tmp_path_factory.mktemp("text")
    pools.write_text(folder)
    return folder


@pytest.fixture(scope="session")
def pool(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "pool"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIZES, "quick", pools.TINY)
        source = str(text / "text")
        assert (
            cli.run(["ablate", "pool", str(path), "--data", source, *pools.MADE]) == 0
        )
    return path


@pytest.fixture
def copied(pool, tmp_path):
    """A pool that was moved; what is done to it leaves the others alone."""
    return pathlib.Path(shutil.copytree(pool, tmp_path / "moved"))


@pytest.fixture
def run():
    """Runs an action, and returns its exit code."""

    def code(*argv):
        return cli.run(["ablate", *map(str, argv)])

    return code


@pytest.fixture
def said(said):
    """Runs an action that must succeed, and returns its stdout.

    A slow machine's lines of progress, `[   8s] law: batches ...`, are left out.
    """

    def succeed(*argv):
        lines = said("ablate", *argv).splitlines(keepends=True)
        return "".join(x for x in lines if not re.match(r"\[ *\S+\] .* left$", x))

    return succeed


@pytest.fixture
def line(line):
    """Runs an action that must fail, and returns its one line."""
    return functools.partial(line, "ablate")


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something is trained")

    monkeypatch.setattr(train, "fit", fail)
