"""Profiles: which steps are traced, and where the trace lies."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from clu import profiler

from jaxlab.core import errors, profiling


@pytest.fixture
def calls(monkeypatch):
    """What the profiler is told, instead of a trace."""
    calls = []
    monkeypatch.setattr(profiler, "start", lambda folder: calls.append(folder))
    monkeypatch.setattr(profiler, "stop", lambda: calls.append("stop"))
    return calls


def walk(workdir, first, last, steps, calls):
    """Goes through the steps of a loop and notes each among the calls."""
    with profiling.Profile(workdir, first, steps) as profile:
        for step in range(first, last):
            profile.next(step, jnp.zeros(()))
            calls.append(step)


def test_the_first_step_which_compiles_is_not_traced(tmp_path, calls):
    walk(tmp_path, 4, 9, 2, calls)
    assert calls == [4, str(tmp_path / "profile"), 5, 6, "stop", 7, 8]


def test_a_run_that_ends_while_it_is_traced_keeps_its_profile(tmp_path, calls):
    walk(tmp_path, 0, 2, 5, calls)
    assert calls == [0, str(tmp_path / "profile"), 1, "stop"]


def test_no_steps_are_no_profile(tmp_path, calls):
    walk(tmp_path, 0, 3, 0, calls)
    assert calls == [0, 1, 2]


def test_a_trace_is_written_without_tensorflow(tmp_path):
    with profiling.Profile(tmp_path, 0, 1) as profile:
        for step in range(3):
            profile.next(step, None)
            jax.jit(jnp.sin)(1.0)
    assert [*tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")]


def test_a_profile_of_a_run_in_a_bucket_is_refused():
    with pytest.raises(errors.UserError, match=r"run\.profile=0"):
        profiling.Profile(pathlib.PurePosixPath("gs://bucket/run"), 0, 1)
    profiling.Profile(pathlib.PurePosixPath("gs://bucket/run"), 0, 0)
