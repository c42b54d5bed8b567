"""A home in which the scripts of launch/ run, with programs that are made up."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ["jaxlab", "train", "--config=configs/olmo.py:1b", "--workdir=gs://b/runs/1b"]
ODD = ["--a=it's", '--b="x" $HOME `id`', "--c=", "", "a\\b", "*", "~", "é;&|<>"]
TOOLS = (
    "bash", "cat", "chmod", "cp", "dirname", "env", "grep", "gzip", "hostname", "mkdir",
    "mktemp", "nohup", "rm", "sed", "seq", "setsid", "sleep", "sort", "tail", "tar",
    "tr", "wc",
)  # fmt: skip

# The program that is trained with: notes how it was called, then does what `does` says.
PROGRAM = """
import json, os, pathlib, sys
home = pathlib.Path(os.environ["HOME"])
seen = {"argv": sys.argv[1:], "cwd": os.getcwd()}
for name in ("JAXLAB_MULTIHOST", "HF_TOKEN"):
    seen[name] = os.environ.get(name)
with open(home / "seen", "a") as file:
    file.write(json.dumps(seen) + "\\n")
print("hello from training", flush=True)
first, *rest = (home / "does").read_text().splitlines()
if rest:
    (home / "does").write_text("\\n".join(rest))
if first == "blocks":
    import signal
    with open(home / "blocking", "w") as fifo:  # a reader waits for this
        pass
    signal.pause()
sys.exit(int(first))
"""


def furnish(home):
    """Puts only the commands that the scripts need on the path of a home."""
    (home / "bin").mkdir()
    for name in TOOLS:
        (home / "bin" / name).symlink_to(shutil.which(name))
    return home


def program(path, code, interpreter=sys.executable):
    path.write_text(f"#!{interpreter}\n{code}")
    path.chmod(0o755)


def environment(home, **more):
    return {
        "HOME": str(home), "PATH": str(home / "bin"), "JAXLAB_POLL_SECONDS": "0",
        "TMPDIR": str(home), "LC_ALL": "C.UTF-8", "JAXLAB_VENV": str(home / "none"),
        **more,
    }  # fmt: skip


def launch(home, script, *words, **more):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *words],
        env=environment(home, **more), cwd=home, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


def commands(done):
    """What was shown, as words."""
    lines = done.stdout.splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("+ ")]


def seen(home):
    return [json.loads(line) for line in (home / "seen").read_text().splitlines()]
