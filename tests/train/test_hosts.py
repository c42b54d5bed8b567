"""Several processes on loopback: one run, its checkpoints, and what kills it."""

import contextlib
import shutil
import signal
import time

import numpy as np
import pytest

from jaxlab import train
from jaxlab.core import checkpoint
from tests.support import devices, runs
from tests.support.runs import launch, losses, wait_for_rows

HEARTBEAT_SECONDS = 10
ENDED = "another host is gone, or this one was killed (lines above may tell)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps on one device."""
    workdir = tmp_path_factory.mktemp("whole")
    one = devices.one()
    train.fit(runs.experiment(), workdir, mesh=one)
    return losses(workdir)


@contextlib.contextmanager
def hosts(workdir, count, **options):
    """The processes of one run; none is left behind."""
    heartbeat = {"JAXLAB_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS)}
    found = [
        launch(workdir, **options, **variables, **heartbeat)
        for variables in runs.hosts(count)
    ]
    try:
        yield found
    finally:
        for host in found:
            host.kill()
            host.wait()


def finish(found):
    outputs = [host.communicate(timeout=200)[0] for host in found]
    assert [host.returncode for host in found] == [0] * len(found), outputs
    assert not any(ENDED in output for output in outputs)
    return outputs


@pytest.mark.slow
def test_hosts_train_as_one_and_what_four_saved_two_and_one_continue(tmp_path, whole):
    with hosts(tmp_path / "four", 4, steps=6) as found:
        finish(found)
    shutil.copytree(tmp_path / "four", tmp_path / "two")
    with hosts(tmp_path / "two", 2, steps=9) as found:
        finish(found)
    one = devices.one()
    for name in ("four", "two"):
        train.fit(runs.experiment(), tmp_path / name, mesh=one)
        np.testing.assert_allclose(losses(tmp_path / name), whole, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "delay"), [(1, 0.3), (0, 0.05)])
def test_a_killed_host_ends_the_others_and_the_run_continues(
    tmp_path, whole, victim, delay
):
    with hosts(tmp_path, 2, steps=100_000) as found:
        wait_for_rows(tmp_path, 5, found[0])
        time.sleep(delay)  # somewhere around a save: there is one every second step
        found[victim].kill()
        killed, other = time.monotonic(), found[1 - victim]
        output, _ = other.communicate(timeout=6 * HEARTBEAT_SECONDS)
        assert time.monotonic() - killed < 3 * HEARTBEAT_SECONDS
        assert other.returncode != 0
        assert "another task died" in output or "heartbeat" in output
        assert output.count(ENDED) == 1
    last = checkpoint.steps(tmp_path / "checkpoints")[0]
    assert last >= 2
    before = losses(tmp_path)
    with hosts(tmp_path, 2, steps=last + 2) as found:
        finish(found)
    assert losses(tmp_path)[:last] == before[:last]
    assert len(losses(tmp_path)) == last + 2
    shared = min(last + 2, len(whole))
    np.testing.assert_allclose(losses(tmp_path)[:shared], whole[:shared], rtol=1e-5)


@pytest.mark.slow
def test_one_host_is_told_to_stop_and_all_save_the_same_step(tmp_path):
    with hosts(tmp_path, 2, steps=100_000, save_every=100_000) as found:
        wait_for_rows(tmp_path, 3, found[0])
        found[1].send_signal(signal.SIGTERM)
        outputs = finish(found)
    (saved,) = checkpoint.steps(tmp_path / "checkpoints")
    assert f"stopped at step {saved}, saved" in outputs[0]
    assert len(losses(tmp_path)) == saved


def test_a_coordinator_that_never_comes_is_one_line(tmp_path):
    process = launch(
        tmp_path,
        JAXLAB_MULTIHOST="1",
        JAXLAB_COORDINATOR="127.0.0.1:9",
        JAXLAB_NUM_PROCESSES="2",
        JAXLAB_PROCESS_ID="1",
        JAXLAB_JOIN_SECONDS="1",
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "nothing answers at 127.0.0.1:9 within 1 s" in output


@pytest.mark.slow
def test_workers_that_never_come_are_a_line(tmp_path):
    with hosts(tmp_path, 2, JAXLAB_JOIN_SECONDS="3") as found:
        found[1].kill()
        output, _ = found[0].communicate(timeout=100)
        assert found[0].returncode != 0
        assert ENDED in output or "could not join the other hosts" in output
