"""Time left, durations and the lines of long work."""

import io
import subprocess
import sys
import threading

import pytest

from jaxlab.core import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"), (0.9, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"),
        (3600, "1h00m"), (90_000, "25h00m"), (90_060, "25h01m"),
    ],
)  # fmt: skip
def test_seconds_are_written_for_people(seconds, text):
    assert progress.duration(seconds) == text


def test_the_rest_takes_as_long_as_what_was_done():
    assert progress.time_left(10.0, 1, 4) == "30s"
    assert progress.time_left(10.0, 0.25, 1.0) == "30s"
    assert progress.time_left(10.0, 4, 4) == "0s"
    assert progress.time_left(0.0, 0, 4) == "0s"  # nothing is known yet


def test_a_meter_is_silent_for_five_seconds_and_at_the_end(clock):
    lines = []
    meter = progress.Meter("batches", lines.append)
    clock(4.0)
    meter(1, 10)
    assert lines == []
    clock(4.0)
    meter(2, 10)
    meter(3, 10)
    clock(2.0)
    meter(4, 10)
    assert lines == ["batches: 2 of 10, 32s left"]
    clock(4.0)
    meter(5, None)
    clock(9.0)
    meter(10, 10)
    assert lines == ["batches: 2 of 10, 32s left", "batches: 5"]


def test_a_meter_writes_counts_in_the_unit_it_is_given(clock):
    lines = []
    meter = progress.Meter("read", lines.append, lambda size: f"{size / 1e9:.1f} GB")
    clock(10.0)
    meter(500_000_000, 2_000_000_000)
    assert lines == ["read: 0.5 GB of 2.0 GB, 30s left"]


def test_a_clock_puts_the_time_in_front(clock, capsys):
    watch = progress.Clock()
    clock(75.0)
    watch.say("here")
    watch.progress("experts", 0.5)
    meter = watch.meter("texts")
    clock(6.0)
    meter(3, 9)
    assert capsys.readouterr().out.splitlines() == [
        "[1m15s] here",
        "[1m15s] experts: 50% of all done, 1m15s left",
        "[1m21s] texts: 3 of 9, 12s left",
    ]


def test_stages_add_up_to_the_plan(clock):
    told = []
    plan = progress.Stages(10, lambda stage, share: told.append((stage, share)))
    clock(2.0)
    plan.count("train", 4)
    clock(1.0)
    plan.count("score", 0)  # takes time and is no part of the plan
    clock(3.0)
    plan.count("train", 7)
    assert told == [("train", 0.4), ("train", 1.0)]
    assert plan.seconds == {"train": 5.0, "score": 1.0}


def test_a_line_is_seen_at_once():
    out = io.StringIO()
    progress.line("a", out)
    assert out.getvalue() == "a\n"


def test_progress_does_not_wait_for_jax():
    code = "import sys, jaxlab.core.progress; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


def test_work_that_cannot_be_counted_is_announced_until_it_ends(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.01)
    said, heard = [], threading.Event()

    def say(text):
        said.append(text)
        heard.set()

    with progress.announce("compiling the step", say):
        assert heard.wait(10)
    count = len(said)
    assert said[0] == "compiling the step ... 0s"
    assert len(said) == count  # nothing comes after it


def test_a_line_that_nobody_reads_ends_no_work():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress.line("step 1/4", Gone())


def test_a_remark_does_not_mix_with_an_answer(capsys):
    progress.remark("searching")
    assert capsys.readouterr() == ("", "INFO: searching\n")
