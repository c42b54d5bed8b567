"""One writer per folder: the second is told, and nobody waits for the dead."""

import os
import socket
import threading

import pytest

from jaxlab.core import errors, locks
from tests.support.runs import python

HOLDER = """
import os, sys
from jaxlab.core import locks
with locks.hold(sys.argv[1], "jaxlab train"):
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
"""


def test_the_second_holder_is_told_who_is_there(tmp_path):
    refused = []

    def ask():
        with pytest.raises(errors.UserError) as caught, locks.hold(tmp_path, "other"):
            pass
        refused.append(str(caught.value))

    with locks.hold(tmp_path, "jaxlab train"):
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()
        process = python(HOLDER, tmp_path, "live", check=False)
    me = f"another process (jaxlab train, pid {os.getpid()} on {socket.gethostname()})"
    assert refused[0].startswith(f"{me} is writing {tmp_path}; wait for it")
    assert process.stderr.strip().endswith(refused[0])
    with locks.hold(tmp_path, "other"):
        pass


def test_a_killed_holder_holds_nobody_up(tmp_path):
    python(HOLDER, tmp_path, "die", check=False)
    assert (tmp_path / locks.NAME).exists()
    with locks.hold(tmp_path, "jaxlab train"):
        pass
    assert not list(tmp_path.iterdir())


def test_who_holds_a_folder_may_ask_again_under_another_spelling(tmp_path):
    folder = tmp_path / "run"
    with locks.hold(folder, "a"), locks.hold(folder / ".." / "run", "b"):
        assert (folder / locks.NAME).exists()
    assert not folder.exists()  # nothing was written


def test_a_file_is_not_a_folder(tmp_path):
    file = tmp_path / "run"
    file.write_text("text")
    with pytest.raises(errors.UserError, match="run is a file"), locks.hold(file, "a"):
        pass
    assert file.read_text() == "text"


@pytest.mark.parametrize("kind", ["link", "second name", "pipe"])
def test_a_lock_that_is_another_file_of_the_user_is_not_written(tmp_path, kind):
    mine, folder = tmp_path / "mine", tmp_path / "theirs"
    folder.mkdir()
    mine.write_text("mine")
    if kind == "link":
        (folder / locks.NAME).symlink_to(mine)
    elif kind == "second name":
        os.link(mine, folder / locks.NAME)
    else:
        os.mkfifo(folder / locks.NAME)
    holder = locks.hold(folder, "jaxlab train")
    with pytest.raises(errors.UserError, match="no lock; remove it"), holder:
        pass
    assert mine.read_text() == "mine"
    assert locks.owner(folder) is None
