"""Files and folders that appear whole or not at all, kills included."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxlab.core import errors, folders


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(code, *argv):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
    )


# ------------------------------------------------------------------ files


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "a.json"
    folders.write_text(file, "old")
    with folders.whole_file(file) as part:
        part.write_text("half")
        assert file.read_text() == "old"
        part.write_text("new")
    assert file.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    folders.write_bytes(file, b"old")

    def write():
        with folders.whole_file(file) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    file = tmp_path / "a.json"
    with folders.whole_file(file) as first:
        first.write_text("first")
        folders.write_text(file, "second")
        assert file.read_text() == "second"
    assert file.read_text() == "first"


def test_what_a_killed_writer_of_a_file_left_is_removed_after_a_day(tmp_path):
    file = tmp_path / "a [1].json"
    killed, alive = (folders.temporary_name(file) for _ in range(2))
    other = tmp_path / "b.json.12345678.tmp"
    for path in (killed, alive, other):
        path.write_text("half")
        assert folders.is_temporary(path.name)
    for path in (killed, other):
        os.utime(path, (time.time() - 100_000,) * 2)
    folders.write_text(file, "whole")
    assert names(tmp_path) == sorted([file.name, alive.name, other.name])


def test_files_that_belong_together_count_by_the_last_one(tmp_path, monkeypatch):
    parts = [tmp_path / f"{name}.part" for name in "abc"]
    files = [tmp_path / name for name in "abc"]
    for path in (*parts, *files):
        path.write_text(path.name)
    seen = []

    def replace(part, file, move=os.replace):
        seen.append(files[-1].exists())
        move(part, file)

    monkeypatch.setattr(os, "replace", replace)
    folders.publish(dict(zip(parts, files, strict=True)), durable=True)
    assert seen == [False, False, False]
    assert [file.read_text() for file in files] == ["a.part", "b.part", "c.part"]
    assert names(tmp_path) == ["a", "b", "c"]


# ------------------------------------------------------------------ folders


def test_a_folder_appears_when_its_block_ends_well(tmp_path):
    folder = tmp_path / "above" / "m"
    with folders.new_folder(folder) as part:
        (part / "a").write_text("a")
        assert not folder.exists()
    assert names(folder) == ["a"]
    assert names(folder.parent) == ["m"]


def test_a_folder_whose_writer_fails_does_not_appear(tmp_path):
    def write():
        with folders.new_folder(tmp_path / "m") as part:
            (part / "a").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled_and_any_other_is_refused(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    assert folders.refuse_existing(folder) == folder
    with folders.new_folder(folder) as part:
        (part / "a").touch()
    for path in (folder, folder / "a"):
        with pytest.raises(errors.UserError, match="exists; remove it or choose anoth"):
            folders.refuse_existing(path)
    with pytest.raises(errors.UserError, match="m exists; use overwrite"):
        folders.refuse_existing(folder, "use overwrite=True")
    with pytest.raises(errors.UserError, match="m exists"), folders.new_folder(folder):
        pass
    assert names(tmp_path) == ["m"]


def test_a_new_folder_is_not_in_a_bucket():
    with pytest.raises(errors.UserError, match="is in a bucket; write to a folder"):
        folders.refuse_existing("gs://bucket/m")


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    folder = tmp_path / "m"
    with folders.new_folder(folder) as part:
        (part / "a").touch()
        with (
            pytest.raises(
                errors.UserError, match=r"another merge is writing .*m; wait"
            ),
            folders.new_folder(folder, writer="merge"),
        ):
            pass
    assert names(folder) == ["a"]


def test_a_folder_of_the_name_that_is_not_ours_is_in_the_way(tmp_path):
    (tmp_path / "m.part").mkdir()
    (tmp_path / "m.part" / "mine").touch()
    with (
        pytest.raises(errors.UserError, match=r"m\.part is in the way; remove it"),
        folders.new_folder(tmp_path / "m"),
    ):
        pass
    assert names(tmp_path / "m.part") == ["mine"]


def test_a_folder_that_is_replaced_keeps_what_its_writer_does_not_know(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("weights.1", "weights.2", "notes"):
        (folder / name).write_text("old")

    def ours(name):
        return name.startswith("weights")

    with folders.new_folder(folder, replaced=ours) as part:
        (part / "weights.1").write_text("new")
        assert (folder / "weights.1").read_text() == "old"
    assert names(folder) == ["notes", "weights.1"]
    assert (folder / "weights.1").read_text() == "new"
    assert names(tmp_path) == ["m"]


KILLED = """
import os, pathlib, signal, sys
from jaxlab.core import folders
assert "jax" not in sys.modules
with folders.new_folder(sys.argv[1]) as part:
    (part / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_of_a_folder_leaves_nothing_under_its_name(tmp_path):
    folder = tmp_path / "m"
    assert run(KILLED, folder).returncode == -signal.SIGKILL
    assert names(tmp_path) == ["m.part"]
    assert (tmp_path / "m.part" / "a").read_text() == "half"
    with folders.new_folder(folder) as part:  # and the next writer cleans up
        assert not (part / "a").exists()
        (part / "b").touch()
    assert names(folder) == ["b"]
    assert names(tmp_path) == ["m"]


KILLED_BETWEEN = """
import os, pathlib, signal, sys
from jaxlab.core import folders

def rename(self, target, move=pathlib.Path.rename):
    move(self, target)
    os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.rename = rename
with folders.new_folder(sys.argv[1], replaced=lambda name: name == "a") as part:
    (part / "a").write_text("new")
"""


def test_a_kill_while_a_folder_is_replaced_loses_neither_weights_nor_notes(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / "notes").write_text("notes")
    assert run(KILLED_BETWEEN, folder).returncode == -signal.SIGKILL
    assert not folder.exists()
    with folders.new_folder(folder, replaced=lambda name: name == "a") as part:
        assert (folder / "a").read_text() == "old"
        (part / "a").write_text("newer")
    assert names(folder) == ["a", "notes"]
    assert (folder / "a").read_text() == "newer"
    assert names(tmp_path) == ["m"]


def test_a_neighbour_called_old_is_never_touched(tmp_path):
    folder, mine = tmp_path / "m", tmp_path / "m.old"
    mine.mkdir()
    (mine / "notes").write_text("mine")

    def write():
        with folders.new_folder(folder, replaced=lambda name: name == "a") as part:
            (part / "a").write_text("new")

    write()  # nothing is replaced, and no other name is needed
    with pytest.raises(errors.UserError, match=r"m\.old is in the way; rename it"):
        write()
    assert (mine / "notes").read_text() == "mine"
    assert names(tmp_path) == ["m", "m.old"]


@pytest.mark.parametrize("module", ["core.folders", "core.paths"])
def test_what_writes_files_does_not_wait_for_jax(module):
    code = f"import sys, jaxlab.{module}; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


def test_a_full_disk_names_the_file_that_it_had_no_room_for(tmp_path):
    report = folders.whole_file(tmp_path / "report.json")
    with pytest.raises(OSError, match="No space left") as caught, report:
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    folders.check_target("--json", tmp_path / "new.json")
    with pytest.raises(errors.UserError, match=r"--json .* is a folder; name a file"):
        folders.check_target("--json", tmp_path)
    (tmp_path / "file").write_text("")
    for parent in ("none", "file"):
        with pytest.raises(errors.UserError, match=f"there is no folder .*{parent}"):
            folders.check_target("--json", tmp_path / parent / "new.json")


def test_a_file_that_was_not_written_is_named_without_its_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        folders.write_text(tmp_path / "none" / "file", "text")
    assert caught.value.filename == str(tmp_path / "none" / "file")


@pytest.mark.parametrize("name", ["m.part", "m.old"])
@pytest.mark.parametrize("target", ["mine", "gone"])
def test_a_link_with_the_name_of_a_folder_of_ours_is_in_the_way(tmp_path, name, target):
    folder, mine = tmp_path / "m", tmp_path / "mine"
    for made in (folder, mine):
        made.mkdir()
        for mark in (".unfinished", ".replaced"):
            (made / mark).touch()
    (tmp_path / name).symlink_to(tmp_path / target)
    writer = folders.new_folder(folder, replaced=lambda name: True)
    with pytest.raises(errors.UserError, match=f"{name} is in the way"), writer:
        pass
    assert names(tmp_path) == sorted(["m", name, "mine"])
    assert names(mine) == [".replaced", ".unfinished"]
