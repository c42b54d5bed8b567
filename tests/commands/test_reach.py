"""What a verb may touch: the folders that are named to it, caches, and no network.

A process runs every verb and says what Python writes; where `strace` is installed, it
also says what libraries in other languages do, and the processes that are started.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from jaxlab import cli
from jaxlab.commands import arguments
from tests.support import compiling, reach, runs

CALLS = (
    "network,open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,"
    "mkdirat,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,mknod,mknodat"
)
# Of sockets that no other process can reach, two ends of one's own; copies of files.
OWN_ENDS = ("socketpair", "sendto", "recvfrom", "getsockname", "shutdown", "sendfile")
PATH = re.compile(r'(?:\w+(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')


def test_every_verb_and_action_is_looked_at():
    """A verb that is added needs a line in tests/support/reach.py."""
    named = {tuple(words[:1]) for words in reach.commands()}
    named |= {tuple(words[:2]) for words in reach.commands()}
    for verb in cli.VERBS:
        parser = arguments.Parser(verb)
        cli._command(verb).arguments(parser)
        subparsers = argparse._SubParsersAction
        groups = [x.choices for x in parser._actions if isinstance(x, subparsers)]
        actions = [(verb, name) for names in groups for name in names]
        assert {(verb,), *actions} <= named, verb


@pytest.mark.slow
def test_verbs_write_where_they_are_told_to_and_do_not_connect(tmp_path):
    traced = _strace(tmp_path / "traced")
    for name in ("home", "tmp", "out"):
        (tmp_path / name).mkdir()
    reach.write_inputs(tmp_path / "in")
    here = compiling.quickly(dict(os.environ)) | {
        "PYTHONPATH": str(runs.ROOT), "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        here.pop(name, None)
    done = subprocess.run(
        [*traced, sys.executable, "-m", "tests.support.reach", str(tmp_path)],
        cwd=runs.ROOT, env=here, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = [x.split(" ", 1) for x in (tmp_path / "noted").read_text().splitlines()]
    assert len(found) > 1000  # the witness was awake
    if traced:
        found += _read_trace(tmp_path / "traced", tmp_path)
        assert ["mkdir", f"{tmp_path}/out/prepared"] in found
    caches = (os.environ["JAX_COMPILATION_CACHE_DIR"], tmp_path / "home" / ".cache")
    allowed = (tmp_path / "out", tmp_path / "tmp", tmp_path / "noted", *caches)
    places = [f"{pathlib.Path(folder).resolve()}" for folder in allowed]
    assert not [x for x in found if not _is_allowed(*x, places)]


def _strace(file):
    """How to start a process of which strace notes what it does; [] without strace."""
    command = ["strace", "-f", "-qq", "-y", "-o", str(file)]
    command += ["-e", f"trace={CALLS}", "-e", "signal=none"]
    if not shutil.which("strace") or subprocess.run([*command, "true"]).returncode:
        return []
    return command


def _is_allowed(call, path, places):
    if call in OWN_ENDS:
        return True
    if call.startswith("socket") or not path:
        return False
    is_of_the_system = re.fullmatch(
        r"/dev/null|/dev/shm/sem\..*|/proc/(self|\d+)/task/\d+/comm", path
    )
    return is_of_the_system or any(f"{path}/".startswith(f"{x}/") for x in places)


def _read_trace(file, cwd):
    """[call, path] of each call that succeeded and wrote, or used a socket."""
    begun, found = {}, []
    for line in file.read_text(errors="replace").splitlines():
        thread, call = line.split(maxsplit=1)
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... "):
            call = begun.pop(thread, "") + call.partition(" resumed>")[2]
        name = call.partition("(")[0]
        is_read = name in ("open", "openat") and not re.search(r"O_(WR|RDW|CR)", call)
        if is_read or re.search(r"= (-1 |\?)", call):
            continue
        paths = PATH.findall(call) if "socket" not in call else []
        whole = [os.path.normpath(cwd / folder / path) for folder, path in paths]
        found += [[name, path] for path in whole or [""]]
    return found
