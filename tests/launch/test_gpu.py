"""launch/gpu.sh, with a driver, an environment and a Slurm that are made up here."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

import pytest

from tests.support import launched
from tests.support.launched import ODD, PROGRAM, TRAIN

# Stands for the environment's python: notes what it is asked, but for the check.
PYTHON = """
[[ "$*" == *cli.check* ]] || echo "$*" >>"$HOME/python.calls"
[[ "$2" == - ]] && echo state || true
"""


@pytest.fixture
def machine(tmp_path):
    """One with GPUs and an environment, in which `jaxlab` notes how it was called."""
    home = launched.furnish(tmp_path)
    (home / "venv" / "bin").mkdir(parents=True)
    launched.program(home / "bin" / "nvidia-smi", "echo 580.65.06\n", "/bin/bash")
    launched.program(home / "venv" / "bin" / "python", PYTHON, "/bin/bash")
    launched.program(home / "venv" / "bin" / "jaxlab", PROGRAM)
    (home / "does").write_text("5")
    return home


def gpu(home, *words):
    return launched.launch(home, "gpu.sh", *words, JAXLAB_VENV=str(home / "venv"))


@pytest.mark.parametrize(
    ("driver", "expected"),
    [("580.65.06", "[cuda]"), ("570.1", "jax[cuda12]")],
)
def test_one_machine_installs_what_its_driver_runs_and_becomes_the_command(
    machine, driver, expected
):
    launched.program(machine / "bin" / "nvidia-smi", f"echo {driver}\n", "/bin/bash")
    done = gpu(machine, "--", *TRAIN, *ODD)
    assert done.returncode == 5  # that of the command
    assert launched.seen(machine)[0]["argv"] == [*TRAIN[1:], *ODD]
    assert launched.seen(machine)[0]["JAXLAB_MULTIHOST"] is None
    assert launched.seen(machine)[0]["cwd"] == str(machine)
    asked = (machine / "python.calls").read_text()
    assert expected in asked
    assert "jax.devices('gpu')" in asked.splitlines()[-1]
    shown = launched.commands(done)
    assert [words[0].rpartition("/")[2] for words in shown][-2:] == ["python", "jaxlab"]
    assert shown[-1][1:] == [*TRAIN[1:], *ODD]


def test_a_machine_without_gpus_says_so(machine):
    for code in ("exit 9", "true"):
        launched.program(machine / "bin" / "nvidia-smi", code + "\n", "/bin/bash")
        done = gpu(machine, "--", *TRAIN)
        assert done.returncode == 1
        assert done.stderr.startswith("gpu.sh: no GPU: ")
    assert not (machine / "seen").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--color=red"], "unknown flag --color;"),
        (["--cuda=11", "--", *TRAIN], "--cuda=11: use 12 or 13"),
        (["--slurm", "--nodes=0", "--", *TRAIN], "--nodes=0: use a whole number"),
        (["--slurm", "--job=a b", "--", *TRAIN], "--job=a b: use letters"),
        (["--slurm", "--job=-x", "--", *TRAIN], "--job=-x: sbatch would take it"),
        (["--slurm", "--script=--wrap=x", "--", *TRAIN], "take it for an option"),
        (["--slurm", "--time"], "--time needs a value"),
        ([], "a command is needed"),
        (["--slurm", "--", *TRAIN], "sbatch is not installed here"),
    ],
)
def test_a_usage_error_of_gpu_is_one_line_and_exit_code_2(machine, words, message):
    done = gpu(machine, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpu.sh: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_dry_runs_of_gpu_show_everything_and_write_nothing(machine):
    before = sorted(machine.iterdir())
    here = gpu(machine, "--dry-run", "--", *TRAIN)
    there = gpu(machine, "--slurm", "--account=me", "--dry-run", "--", *TRAIN, *ODD)
    assert [here.returncode, here.stderr] == [there.returncode, there.stderr] == [0, ""]
    names = [words[0].rpartition("/")[2] for words in launched.commands(here)]
    assert names == ["nvidia-smi", "jaxlab_install", "python", "jaxlab"]
    assert [words[0] for words in launched.commands(there)] == [
        "jaxlab_install",
        "sbatch",
    ]
    lines = [line.strip() for line in there.stdout.splitlines()]
    assert "#SBATCH --account=me" in lines
    assert not any("--partition" in line for line in lines)
    step = shlex.split(next(line for line in lines if " srun " in line))
    assert step[:2] == ["JAXLAB_MULTIHOST=1", "srun"]
    assert step[4:] == [*TRAIN[1:], *ODD, "&"]
    assert sorted(machine.iterdir()) == before


def submitted(machine):
    launched.program(
        machine / "bin" / "sbatch", 'cp "$1" "$HOME/submitted"\n', "/bin/bash"
    )
    done = gpu(machine, "--slurm", "--nodes=2", "--gpus=4", "--", *TRAIN, *ODD)
    assert (done.returncode, done.stderr) == (0, "")
    return machine / "submitted"


@pytest.mark.parametrize(("sent", "requeued"), [("USR1", True), ("TERM", False)])
def test_a_batch_job_saves_and_queues_again_only_when_its_time_is_up(
    machine, sent, requeued
):
    script = submitted(machine)
    text = script.read_text()
    for option in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "requeue"):
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --signal=B:USR1@120\n" in text
    os.mkfifo(machine / "never")
    os.mkfifo(machine / "ready")
    # A step that is told to save does, and ends well.
    launched.program(
        machine / "bin" / "srun",
        "trap 'echo saved >>\"$HOME/notes\"; exit 0' TERM\n"
        'echo "$$" >"$HOME/step"; shift; "$@"; echo >"$HOME/ready"\n'
        'while :; do read -r _ <>"$HOME/never"; done\n',
        "/bin/bash",
    )
    note = 'echo "${0##*/} $*" >>"$HOME/notes"\n'
    tell = note + 'kill -TERM "$(cat "$HOME/step")"\n'
    launched.program(machine / "bin" / "scancel", tell, "/bin/bash")
    launched.program(machine / "bin" / "scontrol", note, "/bin/bash")
    job = subprocess.Popen(
        ["bash", str(script)],
        env=launched.environment(machine, SLURM_JOB_ID="42"),
        cwd=machine,
        start_new_session=True,
    )
    try:
        (machine / "ready").read_text()
        job.send_signal(getattr(signal, f"SIG{sent}"))
        assert job.wait(timeout=30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    notes = (machine / "notes").read_text().splitlines()
    assert notes == [
        "scancel --signal=TERM 42", "saved", *["scontrol requeue 42"] * requeued
    ]  # fmt: skip
    assert launched.seen(machine)[0]["argv"] == [*TRAIN[1:], *ODD]
    assert launched.seen(machine)[0]["JAXLAB_MULTIHOST"] == "1"


def test_a_batch_job_ends_with_the_code_of_its_step(machine):
    script = submitted(machine)
    launched.program(machine / "bin" / "srun", "exit 3\n", "/bin/bash")
    done = subprocess.run(
        ["bash", str(script)], env=launched.environment(machine), check=False
    )
    assert done.returncode == 3


def test_a_dry_run_says_what_would_be_refused_and_shows_the_rest(machine):
    python = (
        PYTHON + '[[ "$*" != *cli.check* ]] || { echo "jaxlab: no such verb"; exit 2; }'
    )
    launched.program(machine / "venv" / "bin" / "python", python, "/bin/bash")
    done = gpu(machine, "--slurm", "--dry-run", "--", *TRAIN)
    refused = "gpu.sh: would refuse: jaxlab: no such verb\n"
    assert (done.returncode, done.stderr) == (0, refused)
    assert any(" srun " in line for line in done.stdout.splitlines())
    assert gpu(machine, "--slurm", "--", *TRAIN).returncode == 2


def test_no_module_beside_whoever_starts_a_script_is_imported(tmp_path):
    (tmp_path / "hashlib.py").write_text("open('ran', 'w')\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    asked = "source $0; _jaxlab_is_new_enough $JAXLAB_BIN/python; _jaxlab_state"
    done = subprocess.run(
        ["bash", "-c", asked, str(launched.ROOT / "launch" / "venv.sh")],
        env=os.environ | {"JAXLAB_VENV": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 65, "")
    assert not (tmp_path / "ran").exists()
