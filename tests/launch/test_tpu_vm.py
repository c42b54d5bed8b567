"""launch/tpu_vm.sh, with a gcloud that is made up here; and shellcheck."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys

import pytest

from tests.support import launched
from tests.support.launched import ODD, PROGRAM, ROOT, TRAIN

TRAINS = {"--config", "--workdir"}  # flags of the command
ON = ["--name=mine", "--zone=us-west4-a"]
# It keeps one worker, in $HOME: what is copied and started there is real, but for the
# installation. `describe` answers line by line from the file `states`, and stays at the
# last; a line "exit 7" fails so. A file named like an action makes that action fail.
GCLOUD = """
import json, os, pathlib, shutil, signal, subprocess, sys, tarfile
argv, home = sys.argv[1:], pathlib.Path(os.environ["HOME"])
with open(home / "calls", "a") as calls:
    calls.write(json.dumps(argv) + "\\n")
action = argv[3]
if (home / action).exists():
    print("gcloud is angry", file=sys.stderr)
    sys.exit(int((home / action).read_text()))
if action == "describe":
    first, *rest = (home / "states").read_text().splitlines()
    if rest:
        (home / "states").write_text("\\n".join(rest))
    if first.startswith("exit "):
        print("PERMISSION_DENIED", file=sys.stderr)
        sys.exit(int(first[5:]))
    if first == "none":
        print("ERROR: NOT_FOUND: Resource was not found", file=sys.stderr)
        sys.exit(1)
    print(first)
elif action == "delete":
    pid = home / "jaxlab-run" / "pid"
    if pid.exists():
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        shutil.rmtree(home / "jaxlab-run")
elif action == "scp":
    *sources, target = [word for word in argv[4:] if not word.startswith("--")]
    for source in sources:
        shutil.copy2(source, home / target.partition(":")[2])
elif action == "ssh":
    command = next(w for w in argv if w.startswith("--command="))[len("--command="):]
    answers = home / "answers"
    if "echo gone" in command and answers.exists():
        first, *rest = answers.read_text().splitlines()
        answers.write_text("\\n".join(rest))
        print("".join(f"jaxlab: {word}\\n" for word in first.split()), end="")
    elif "jaxlab_install tpu" not in command:
        sys.exit(subprocess.run(["bash", "-c", command], cwd=home).returncode)
    else:
        with tarfile.open(home / "jaxlab-run" / "jaxlab.tgz") as tar:
            (home / "contents").write_text("\\n".join(tar.getnames()))
        bin_ = home / "jaxlab" / ".venv" / "bin"
        bin_.mkdir(parents=True, exist_ok=True)
        shutil.copy2(home / "jaxlab.program", bin_ / "jaxlab")
"""


@pytest.fixture
def home(tmp_path):
    return launched.furnish(tmp_path)


@pytest.fixture
def cloud(home):
    """The same with gcloud; ends what was started there."""
    launched.program(home / "bin" / "gcloud", GCLOUD)
    launched.program(home / "jaxlab.program", PROGRAM)
    os.mkfifo(home / "blocking")
    yield home
    pid = home / "jaxlab-run" / "pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def tpu(home, *words, **more):
    return launched.launch(home, "tpu_vm.sh", words[0], *ON, *words[1:], **more)


def actions(words):
    """gcloud commands in brief; of ssh, what for."""
    marks = {
        "echo \"jaxlab: ": "report", "mkdir -p -m 700": "prepare", "setsid": "start",
        "jaxlab_install": "install", "kill -TERM": "stop", "tail -n 100": "logs",
    }  # fmt: skip
    found = []
    for command in words:
        if command[:3] != ["gcloud", "compute", "tpus"]:
            found.append(command[0])
        elif command[4] == "ssh":
            text = next(word for word in command if word.startswith("--command="))
            found.append(next(mark for key, mark in marks.items() if key in text))
        else:
            found.append(command[4])
    return found


def with_python(home):
    """The environment's python, which can ask jaxlab."""
    (home / "venv" / "bin").mkdir(parents=True)
    python = f'exec {sys.executable} "$@"\n'
    launched.program(home / "venv" / "bin" / "python", python, "/bin/bash")
    return {"JAXLAB_VENV": str(home / "venv")}


def calls(home):
    lines = (home / "calls").read_text().splitlines()
    return [["gcloud", *json.loads(line)] for line in lines]


def script_states(home, *states, does=("0",)):
    (home / "states").write_text("\n".join(states))
    (home / "does").write_text("\n".join(does))


RUN = ["prepare", "tar", "scp", "install", "start"]


# ------------------------------------------------------------------ tpu_vm.sh, shown


@pytest.mark.parametrize("queued", [False, True])
def test_a_dry_run_shows_all_commands_in_order_and_needs_no_gcloud(home, queued):
    flags = ["--type=v5litepod-16", "--spot", "--project=p", *["--queued"] * queued]
    done = tpu(home, "watch", *flags, "--dry-run", "--", *TRAIN)
    assert (done.returncode, done.stderr) == (0, "")
    found = launched.commands(done)
    assert actions(found) == ["describe", "create", "report", *RUN, "delete", "delete"]
    for command in found:
        if command[0] == "gcloud":
            assert command[3] == (
                "queued-resources"
                if queued and command[4] in ("describe", "create", "delete")
                else "tpu-vm"
            )
            assert command[5] == "mine" or command[4] == "scp"
            assert {"--zone=us-west4-a", "--project=p"} <= set(command)
            assert command[4] not in ("ssh", "scp") or "--worker=all" in command
    create = found[1]
    assert {"--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    version = "--runtime-version" if queued else "--version"
    assert f"{version}=v2-alpha-tpuv5-lite" in create
    assert ("--node-id=mine" in create) == queued
    assert all("--quiet" in command for command in found[-2:])
    assert list(home.iterdir()) == [home / "bin"]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("create", ["describe", "create"]), ("run", RUN), ("logs", ["logs"]),
        ("status", ["describe", "report"]), ("stop", ["stop"]), ("delete", ["delete"]),
    ],
)  # fmt: skip
def test_every_verb_has_a_dry_run(home, verb, expected):
    command = ["--", *TRAIN] if verb == "run" else []
    done = tpu(home, verb, "--type=v6e-8", "--dry-run", *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert actions(launched.commands(done)) == expected


def test_what_is_shown_reads_back_as_what_was_given(home):
    done = tpu(home, "run", "--dry-run", "--", *TRAIN, *ODD)
    line = next(x for x in done.stdout.splitlines() if ".venv/bin/jaxlab" in x)
    assert shlex.split(line.lstrip("# ")) == [".venv/bin/jaxlab", *TRAIN[1:], *ODD]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu.sh"])
def test_help_is_the_comment_at_the_top_and_its_flags_exist(home, script):
    done = launched.launch(home, script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    comment, code = (ROOT / "launch" / script).read_text().split("set -euo", 1)
    expected = [line[2:] for line in comment.splitlines()[1:-1]]
    assert done.stdout.splitlines()[: len(expected)] == expected
    flags = set(re.findall(r"(?m)(?<![^ \n])--[a-z-]{3,}", done.stdout))
    assert len(flags) > 8
    assert all(re.search(rf" {flag}[ =)]", code) for flag in flags - TRAINS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "unknown verb"),
        (["fly", *ON], "unknown verb 'fly'"),
        (["create", *ON, "--color=red"], "unknown flag --color;"),
        (["create", *ON, "--type"], "--type needs a value"),
        (["create", *ON, "--type="], "--type needs a value"),
        (["create", *ON], "--type is needed"),
        (["create", *ON, "--type=tpu7x-8"], "--version is not known"),
        (["create", "--zone=z", "--type=v4-8"], "--name is needed"),
        (["create", "--name=a;b", "--zone=z", "--type=v4-8"], "--name is needed"),
        (["create", "--name=mine", "--type=v4-8"], "--zone is needed"),
        (["delete", *ON, "--", *TRAIN], "delete takes no command"),
        (["run", *ON], "a command is needed"),
        (["run", *ON, "--", "python", "x.py"], "a command is needed"),
        (["run", *ON, "--", "jaxlab", "train", "a\nb"], "must be one line"),
        (["run", *ON, "--pass-env=NO_SUCH", "--", *TRAIN], "NO_SUCH: that variable"),
        (["run", *ON, "--pass-env=A=secret", "--", *TRAIN], "name only"),
        (
            ["watch", *ON, "--type=v4-8", "--", "jaxlab", "train", "--workdir=runs"],
            "watch needs --workdir=gs://",
        ),
        (["delete", *ON], "gcloud is not installed"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(home, words, message):
    done = launched.launch(home, "tpu_vm.sh", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tpu_vm.sh: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jaxlab", "trian"], "jaxlab: unknown verb 'trian'; did you mean train?"),
        (["jaxlab", "train", "--config=configs/olmo.py:1c"], "variant '1c'; use one"),
        ([*TRAIN, "--config.modle.heads=8"], "unknown config key 'modle.heads'; did"),
        ([*TRAIN, "--config.model.kv_heads=3"], "16 heads do not share 3 kv_heads"),
        ([*TRAIN, "--config.data.source=text"], "text is on this machine and not on"),
    ],
)
def test_a_command_that_jaxlab_refuses_makes_no_tpu(cloud, words, message):
    (cloud / "text").mkdir()
    more = with_python(cloud)
    words = [*words, "--workdir=gs://bucket/run"]
    done = tpu(cloud, "watch", "--type=v4-8", "--", *words, **more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tpu_vm.sh: jaxlab")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (cloud / "calls").exists()


def test_what_the_workers_need_is_said_where_the_tpu_is_there(cloud):
    (cloud / "text").mkdir()
    words = ["--config.data.source=text,embedded", "--workdir=runs/x"]
    script_states(cloud, "READY")
    done = tpu(cloud, "run", "--dry-run", "--", *TRAIN, *words, **with_python(cloud))
    assert (done.returncode, done.stderr) == (0, "")
    notes = [line for line in done.stdout.splitlines() if line.startswith("# --")]
    assert notes == [
        "# --config.data.source: text is on this machine; every worker needs a copy",
        "# --workdir: runs/x is lost with the TPU; gs://BUCKET/RUN is not",
    ]


# ------------------------------------------------------------------ tpu_vm.sh, running


@pytest.mark.parametrize("queued", [False, True])
def test_watch_makes_a_preempted_tpu_again_and_deletes_it_at_the_end(cloud, queued):
    ready, lost = ("ACTIVE", "SUSPENDED") if queued else ("READY", "PREEMPTED")
    script_states(
        cloud, "none", "CREATING", ready, ready, lost, "CREATING", ready,
        does=("blocks", "0"),
    )  # fmt: skip
    flags = ["--type=v4-32", "--spot", *["--queued"] * queued]
    done = tpu(
        cloud, "watch", *flags, "--pass-env=HF_TOKEN", "--", *TRAIN, *ODD,
        HF_TOKEN="s3cr'et",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = [a for a in actions(calls(cloud)) if a not in ("describe", "report")]
    run = [action for action in RUN if action != "tar"]
    assert found == ["create", *run, "delete", "create", *run, "delete"]
    expected = {
        "argv": [*TRAIN[1:], *ODD], "cwd": str(cloud / "jaxlab"),
        "JAXLAB_MULTIHOST": "1", "HF_TOKEN": "s3cr'et",
    }  # fmt: skip
    assert launched.seen(cloud) == [expected, expected]
    # Asked in every round, shown once; everything else is shown every time.
    assert actions(launched.commands(done)).count("report") == 1
    assert [a for a in actions(launched.commands(done)) if a in found] == found
    contents = (cloud / "contents").read_text().splitlines()
    assert {"pyproject.toml", "jaxlab/cli.py", "configs/olmo.py"} <= set(contents)
    assert not any(".git" in name or "__pycache__" in name for name in contents)


def start(cloud, *words, **more):
    """`run` of what blocks the first time, until it is really there."""
    script_states(cloud, "READY", does=("blocks", "0"))
    done = tpu(cloud, "run", *words, "--", *TRAIN, **more)
    (cloud / "blocking").read_text()  # returns when the other side has opened it
    return done


def test_secrets_are_never_shown_and_only_their_owner_can_read_them(cloud):
    done = start(cloud, "--pass-env", "HF_TOKEN", HF_TOKEN="s3cret")
    assert (done.returncode, done.stderr) == (0, "")
    assert "#     export HF_TOKEN=***\n" in done.stdout
    assert launched.seen(cloud)[0]["HF_TOKEN"] == "s3cret"
    file = cloud / "jaxlab-run" / "command.sh"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not list(cloud.glob("jaxlab.??????"))  # the local copy is gone
    tpu(cloud, "status")
    shown = done.stdout + (cloud / "calls").read_text()
    assert "s3cret" not in shown + (cloud / "jaxlab-run" / "log").read_text()


def test_a_command_outlives_its_connection_and_is_stopped_by_sigterm(cloud):
    start(cloud)
    done = tpu(cloud, "status")
    assert "# mine is READY\n" in done.stdout
    assert "\njaxlab: running\nhello from training\n" in done.stdout
    again = tpu(cloud, "run", "--", *TRAIN)
    assert again.returncode == 1
    assert "a command is running; stop it first\n" in again.stderr
    assert len(launched.seen(cloud)) == 1
    assert tpu(cloud, "stop").returncode == 0
    assert "\njaxlab: stopped\n" in tpu(cloud, "status").stdout
    watched = tpu(cloud, "watch", "--type=v4-8", "--", *TRAIN)  # starts it again
    assert len(launched.seen(cloud)) == 2
    assert watched.returncode == 0


def test_watch_starts_a_command_again_that_vanished(cloud):
    start(cloud)
    pid = int((cloud / "jaxlab-run" / "pid").read_text())
    os.killpg(pid, signal.SIGKILL)  # as if the host had restarted
    done = tpu(cloud, "watch", "--type=v4-8", "--keep", "--", *TRAIN)
    assert (done.returncode, len(launched.seen(cloud))) == (0, 2)
    assert "delete" not in actions(calls(cloud))


def test_a_command_that_fails_ends_the_watch_with_its_code_and_keeps_the_tpu(cloud):
    script_states(cloud, "READY", does=("3",))
    done = tpu(cloud, "watch", "--type=v4-8", "--", *TRAIN)
    assert done.returncode == 3
    assert "ended with exit code 3; mine is still there" in done.stderr
    assert "delete" not in actions(calls(cloud))


@pytest.mark.parametrize(
    ("answers", "code", "runs"),
    [
        (["running running", "0 running", "0 0"], 0, 0),
        (["running running", "running 134", "1 134"], 134, 0),
        (["running running", "running gone", "running running", "0 0"], 0, 1),
        (["running running", "stopped 0"], 1, 0),
        (["0 0", "running running", "0 0"], 0, 1),  # it ran before this watch
        # A signal ended it before its last step: it goes on, the TPU stays.
        (["running running", "143 143", "running running", "0 0"], 0, 1),
        (["130 0", "running running", "0 130", "running running", "7 7"], 7, 2),
        (["143 143"] * 6, 1, 5),
    ],
)
def test_watch_hears_all_workers(cloud, answers, code, runs):
    script_states(cloud, "READY")
    (cloud / "answers").write_text("\n".join(answers))
    done = tpu(cloud, "watch", "--type=v4-8", "--", *TRAIN)
    assert done.returncode == code
    found = actions(calls(cloud))
    assert found.count("start") == runs
    assert found.count("delete") == (code == 0)
    assert (cloud / "answers").read_text() == ""


@pytest.mark.parametrize("verb", ["create", "watch", "status"])
def test_a_refusal_of_gcloud_ends_with_its_code_and_its_words(cloud, verb):
    script_states(cloud, "exit 7")
    command = ["--", *TRAIN] if verb == "watch" else []
    done = tpu(cloud, verb, "--type=v4-8", *command)
    assert done.returncode == 7
    first, second = done.stderr.splitlines()
    assert first == "PERMISSION_DENIED"
    assert second.startswith("tpu_vm.sh: exit code 7 from: gcloud compute tpus")
    assert actions(calls(cloud)) == ["describe"]


@pytest.mark.parametrize(
    ("verb", "action"), [("create", "create"), ("run", "scp"), ("delete", "delete")]
)
def test_a_command_that_fails_stops_what_would_follow(cloud, verb, action):
    script_states(cloud, "none")
    (cloud / action).write_text("9")
    command = ["--", *TRAIN] if verb == "run" else []
    done = tpu(cloud, verb, "--type=v4-8", *command)
    assert done.returncode == 9
    assert done.stderr.splitlines()[-1].startswith(
        "tpu_vm.sh: exit code 9 from: gcloud"
    )
    assert actions(calls(cloud))[-1] == action


def test_watch_gives_up_after_five_failed_connections(cloud):
    script_states(cloud, "READY")
    (cloud / "ssh").write_text("255")
    done = tpu(cloud, "watch", "--type=v4-8", "--", *TRAIN)
    assert done.returncode == 255
    assert actions(calls(cloud)) == ["describe", "report"] * 5
    assert done.stderr == "tpu_vm.sh: mine failed five times in a row\n"


def test_watch_joins_what_runs_and_ends_when_somebody_deletes_the_tpu(cloud):
    start(cloud)
    script_states(cloud, "READY", "READY", "none")
    done = tpu(cloud, "watch", "--type=v4-8", "--", *TRAIN)
    assert done.returncode == 1
    assert done.stderr == "tpu_vm.sh: mine was deleted by somebody else\n"
    found = actions(calls(cloud))
    assert found.count("start") == 1  # by `start`
    assert "create" not in found


# ------------------------------------------------------------------ all scripts


@pytest.mark.oracle
def test_shellcheck_finds_nothing():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    scripts = sorted(str(path) for path in (ROOT / "launch").glob("*.sh"))
    scripts.append(str(ROOT / ".ci" / "run"))
    done = subprocess.run(
        [shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
