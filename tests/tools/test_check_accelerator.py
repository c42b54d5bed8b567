"""`tools/check_accelerator.py`: it ends in time, and says what it saw."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

PROGRAM = pathlib.Path(__file__).parents[2] / "tools" / "check_accelerator.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_accelerator", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def worker(folder, *lines):
    program = folder / "worker.py"
    program.write_text("import sys, time\n" + "\n".join(lines) + "\n")
    return program


def printed(row):
    return f"print({json.dumps(json.dumps(row))}, flush=True)"


def test_rows_come_as_they_are_measured_and_a_worker_that_hangs_is_killed(
    check, tmp_path, capsys
):
    program = worker(tmp_path, printed(check.row("peak", "copy")), "time.sleep(600)")
    start = time.monotonic()
    rows = check.run(program, start + 3)
    assert time.monotonic() - start < 10
    assert [row["note"] for row in rows] == ["", "the minutes were over"]
    assert capsys.readouterr().out.startswith("peak  copy\n")


def test_a_worker_that_fails_is_a_wrong_row(check, tmp_path):
    rows = check.run(worker(tmp_path, "sys.exit(3)"), time.monotonic() + 30)
    assert [(check.verdict(row), row["note"]) for row in rows] == [
        ("WRONG", "ended with 3")
    ]


def test_a_flag_of_xla_reaches_the_worker_beside_the_users_own(
    check, tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--xla_theirs")
    lines = (
        "import json, os",
        "row = json.loads(sys.argv[2]) | {'note': os.environ['XLA_FLAGS']}",
        "print('a library speaks')",
        "print(json.dumps(row), flush=True)",
    )
    given = json.dumps(check.row("resume", "4 steps"))
    program = worker(tmp_path, *lines)
    (row,) = check.run(program, time.monotonic() + 30, given, flags="xla_ours")
    assert row["note"] == "--xla_theirs --xla_ours=true"
    assert row["what"] == "4 steps, xla_ours"


@pytest.mark.parametrize(
    ("share", "goal", "good", "words"),
    [
        (0.4, 0.5, True, "low"),
        (0.4, 0.5, False, "WRONG"),
        (0.6, 0.5, True, "right"),
        (0.4, None, None, ""),
    ],
)
def test_a_verdict_is_wrong_before_it_is_low(check, share, goal, good, words):
    row = check.row("training", "step", good=good) | {"share": share, "goal": goal}
    assert check.verdict(row) == words


def test_a_peers_row_of_the_same_name_gives_a_ratio(check):
    own = check.row("training", "step of 1M") | {"value": 30.0}
    peer = check.row("peers", "step of 1M") | {"value": 10.0}
    other = check.row("peers", "torch's matmul") | {"value": 1.0}
    (ratio,) = check.ratios([own, peer, other])
    assert (ratio["what"], ratio["value"]) == ("step of 1M", 3.0)
    lines = check.table([own, peer, ratio]).splitlines()
    assert [len(line) for line in lines] == 5 * [len(lines[0])]


@pytest.mark.slow
def test_this_device_is_checked_in_time_without_packages_that_it_does_not_need(
    tmp_path,
):
    for name in ("tensorflow_datasets", "array_record", "tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was asked')\n")
    command = [sys.executable, PROGRAM, "--no-peers", "--minutes", "3"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    start = time.monotonic()
    done = subprocess.run(
        [*map(str, command), "--json", str(tmp_path / "rows.json")],
        capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert time.monotonic() - start < 180
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    measured = {row["check"] for row in rows if row["value"]}
    assert measured >= {"peak", "attention", "training", "merging", "search"}
    (resumed,) = [row for row in rows if row["check"] == "resume"]
    assert (resumed["good"], resumed["note"]) == (True, "41 arrays equal")
    assert all(row["good"] for row in rows if row["check"] == "attention")
    peaks = {row["what"].split(", ")[0] for row in rows if row["check"] == "peak"}
    shared = {row["of"].split()[0] for row in rows if row["share"]}
    assert shared <= {what.split()[0] for what in peaks} == {"matmul", "copy"}
