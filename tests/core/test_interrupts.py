"""Signals: raised once, remembered, never taken for corruption or for success."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxlab import cli
from jaxlab.commands import convert
from jaxlab.core import checkpoint, checkpoint_files, errors, interrupts

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def run(monkeypatch, work):
    """Exit code of a command that does `work`."""
    monkeypatch.setattr(convert, "run", lambda args: work())
    return cli.run(["convert", "a", "b"])


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_command_with_its_code_and_one_line(
    monkeypatch, capsys, number, code
):
    before = signal.getsignal(number)
    assert run(monkeypatch, lambda: os.kill(os.getpid(), number)) == code
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_that_a_library_swallowed_is_not_success(monkeypatch, number, code):
    def swallow():
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            return 0

    assert run(monkeypatch, swallow) == code
    assert run(monkeypatch, lambda: 0) == 0  # it is forgotten with its command


def test_an_error_that_an_interruption_became_is_an_interruption(monkeypatch, capsys):
    def become():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("an extension could not be initialized") from None

    assert run(monkeypatch, become) == 130
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"


def test_a_signal_that_a_garbage_collection_drops_is_sent_again(monkeypatch, capsys):
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def collect():
        Collected()
        gc.collect()
        time.sleep(5)  # ended by the second one
        return 0

    begin = time.monotonic()
    assert run(monkeypatch, collect) == 130
    assert time.monotonic() - begin < 4
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"


def test_an_import_is_ended_before_a_signal_is_raised(monkeypatch, tmp_path, capsys):
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.2)\n"
        "done = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def work():
        seen.append(importlib.import_module("slow_to_import").done)
        time.sleep(5)  # ended by the signal, which is sent again
        seen.append("worked on")

    assert run(monkeypatch, work) == 130
    assert seen == [True]
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run with two checkpoints."""
    import jax.numpy as jnp

    folder = tmp_path / "run" / "checkpoints"
    with checkpoint.Checkpointer(folder) as saver:
        for step in (1, 2):
            saver.save(step, {"params": {"w": jnp.full(3, float(step))}})
    return folder


def read_as(folder, monkeypatch, behave):
    """What becomes of reading a run whose newest description behaves so."""
    from orbax.checkpoint import v1 as ocp

    true = ocp.metadata

    def metadata(path):
        return behave(lambda: true(path)) if path.name == "2" else true(path)

    monkeypatch.setattr(ocp, "metadata", metadata)
    return checkpoint.load_params(folder)


def test_an_interrupted_read_is_neither_corrupt_nor_answered_by_an_older_one(
    run_folder, monkeypatch
):
    def swallow(read):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:  # as an event loop that goes on without the file
            raise ValueError("no metadata") from None

    with interrupts.raise_signals(), pytest.raises(interrupts.Interrupt):
        read_as(run_folder, monkeypatch, swallow)
    assert checkpoint.steps(run_folder) == [2, 1]


@pytest.mark.parametrize(
    "words",
    [
        "PERMISSION_DENIED: Error opening /x: Permission denied",
        "RESOURCE_EXHAUSTED: Out of memory",
        "UNAVAILABLE: failed to connect",
        "Unable to initialize backend 'tpu'",
        "[Errno 24] Too many open files",
    ],
)
def test_what_could_not_be_read_just_now_is_left_as_it_is(
    run_folder, monkeypatch, words
):
    def refuse(read):
        raise RuntimeError(words)

    with pytest.raises(errors.UserError, match="could not be read just now") as caught:
        read_as(run_folder, monkeypatch, refuse)
    assert not isinstance(caught.value, checkpoint_files.CorruptError)
    assert "2 could not be read" in str(caught.value)
    assert checkpoint.steps(run_folder) == [2, 1]


def test_a_file_without_permission_is_named_and_nothing_moves(run_folder, monkeypatch):
    secret = next(f for f in (run_folder / "2").rglob("*") if f.name == "_METADATA")
    true = os.open

    def guarded(path, *rest, **more):
        if str(path) == str(secret):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path, *rest, **more)

    def refuse(read):
        raise ValueError("Error opening")

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(errors.UserError, match=f"{secret}: Permission denied; it is"):
        read_as(run_folder, monkeypatch, refuse)
    assert checkpoint.steps(run_folder) == [2, 1]


LATE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxlab import __main__, cli
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def run():
    {work}
cli.run = run
late = Late()  # is collected after Python gave signals back to the system
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(
    ("work", "code"),
    [("return 130", 130), ("return 0", 0), ("raise KeyboardInterrupt", 130)],
)
def test_a_signal_while_python_ends_does_not_change_the_exit_code(work, code):
    ran = subprocess.run(
        [sys.executable, "-c", LATE.format(work=work)], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (code, "")
