"""Indexes on disk: the same bytes whatever happened, kills, damage, appends."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.retrieval import index_files, topk
from tests.support.searches import expected, whole_numbers

ROOT = pathlib.Path(__file__).parents[2]


VECTORS = whole_numbers(7, 150, 4)
IDS = [f"dök {i}\n" for i in range(150)]


def in_batches(size, stop=None):
    """Batches of VECTORS; an interruption at row `stop`."""
    for start in range(0, len(VECTORS), size):
        if stop is not None and start >= stop:
            raise KeyboardInterrupt
        yield VECTORS[start : start + size]


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.mark.parametrize("dtype", index_files.DTYPES)
def test_what_is_built_is_what_is_searched(dtype, tmp_path, monkeypatch):
    made = {"encoder": "sha256"}
    retrieval.Index.build(tmp_path, in_batches(40), IDS, dtype=dtype, made_from=made)
    monkeypatch.setattr(topk, "block_rows", lambda rows, dim: 64)
    index = retrieval.Index.open(tmp_path, verify=True)
    assert (len(index), index.dim, index.dtype.name) == (150, 4, dtype)
    assert index.made_from == made
    queries = whole_numbers(8, 3, 4)
    scores, ids = index.search(queries, 20)
    wanted = expected(VECTORS, queries, 20)  # whole numbers this small are bf16's too
    np.testing.assert_array_equal(scores, wanted[0])
    assert ids.tolist() == [[IDS[row] for row in rows] for rows in wanted[1]]
    np.testing.assert_array_equal(index.take(wanted[1]), VECTORS[wanted[1]])
    sharded = retrieval.Index.open(tmp_path, mesh=mesh_lib.make_mesh())
    assert sharded.search(queries, 20)[1].tolist() == ids.tolist()


def test_row_numbers_are_the_ids_where_none_are_given(tmp_path):
    index = retrieval.Index.build(tmp_path, [VECTORS])
    assert index.search(VECTORS[:1], 150)[1].dtype == np.int64
    index = retrieval.Index.append(tmp_path, [VECTORS[:2]])
    assert index.ids.tolist() == list(range(152))
    index = retrieval.Index.build(tmp_path, [VECTORS], np.arange(150) * 2)
    assert index.ids[3] == 6  # built anew, over the old one
    assert not list(tmp_path.glob("*.part"))


def test_the_bytes_do_not_depend_on_batches_interruptions_or_appends(tmp_path):
    build = retrieval.Index.build
    build(tmp_path / "once", [VECTORS], IDS)
    build(tmp_path / "twice", in_batches(7), IDS)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", in_batches(20, stop=60), IDS)
    with pytest.raises(errors.UserError, match="was not finished; build it again"):
        retrieval.Index.open(tmp_path / "killed")
    with (tmp_path / "killed" / "vectors.bin.part").open("ab") as file:
        file.write(b"torn")  # written, but not recorded
    asked = []

    def rest(done):
        asked.append(done)
        return [VECTORS[done:]]

    build(tmp_path / "killed", rest, IDS)
    assert asked == [60]
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "iterated", in_batches(20, stop=60), IDS)
    build(tmp_path / "iterated", in_batches(50), IDS)
    build(tmp_path / "appended", [VECTORS[:100]], IDS[:100])
    with pytest.raises(errors.UserError, match="150 ids for 149 vectors"):
        retrieval.Index.append(tmp_path / "appended", [VECTORS[101:]], IDS[100:])
    assert len(retrieval.Index.open(tmp_path / "appended", verify=True)) == 100
    retrieval.Index.append(tmp_path / "appended", [VECTORS[100:]], IDS[100:])
    for name in ("twice", "killed", "iterated", "appended"):
        assert contents(tmp_path / name) == contents(tmp_path / "once"), name


def test_a_build_that_was_killed_goes_on(tmp_path):
    script = f"""
import os, signal, numpy as np
from jaxlab.retrieval import index_files
def batches():
    for start in range(0, 60, 20):
        yield np.arange(start, start + 20, dtype=np.float32)[:, None]
    os.kill(os.getpid(), signal.SIGKILL)
index_files.build({str(tmp_path / "killed")!r}, batches(), None)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    vectors = np.arange(90, dtype=np.float32)[:, None]
    asked = []

    def rest(done):
        asked.append(done)
        return [vectors[done:]]

    retrieval.Index.build(tmp_path / "killed", rest)
    assert asked == [60]
    retrieval.Index.build(tmp_path / "whole", [vectors])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_unfinished_index_of_something_else_is_not_continued(tmp_path):
    build = retrieval.Index.build
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, in_batches(20, stop=60), IDS)
    for ids, options, named in (
        (IDS[::-1], {}, "ids"),
        (None, {}, "ids"),
        (IDS, {"dtype": "bfloat16"}, "dtype"),
        (IDS, {"made_from": {"encoder": 2}}, "made_from"),
    ):
        with pytest.raises(errors.UserError, match=f"other {named}; remove building"):
            build(tmp_path, [VECTORS], ids, **options)
    part = tmp_path / "vectors.bin.part"
    part.write_bytes(b"\1" + part.read_bytes()[1:])
    with pytest.raises(errors.UserError, match="does not match its checksum"):
        build(tmp_path, [VECTORS], IDS)


def test_damage_is_found_when_an_index_is_opened(tmp_path):
    open_ = retrieval.Index.open
    with pytest.raises(errors.UserError, match="is not an index; make an index"):
        open_(tmp_path)
    retrieval.Index.build(tmp_path, [VECTORS], IDS)
    whole = contents(tmp_path)
    vectors, ids = tmp_path / "vectors.bin", tmp_path / "ids.jsonl"
    vectors.write_bytes(whole["vectors.bin"][:-1])
    with pytest.raises(errors.UserError, match="shorter than its 150 rows"):
        open_(tmp_path)
    vectors.write_bytes(b"\1" + whole["vectors.bin"][1:])
    open_(tmp_path)
    with pytest.raises(errors.UserError, match="does not match its checksum"):
        open_(tmp_path, verify=True)
    ids.write_bytes(whole["ids.jsonl"].replace(b"1", b"2", 1))
    with pytest.raises(errors.UserError, match=r"ids.jsonl does not match"):
        open_(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(errors.UserError, match="is damaged"):
        open_(tmp_path)


@pytest.mark.parametrize(
    ("batches", "ids", "options", "message"),
    [
        ([], None, {}, "no vectors were given"),
        ([np.ones((2, 3)), np.ones((1, 4))], None, {}, "row 2 have 4 dimensions"),
        ([np.ones((2, 3)), [[1, np.nan, 1]]], None, {}, "vector 2 is not finite"),
        ([np.ones((2, 3))], ["a"], {}, "1 ids for 2 vectors"),
        ([np.ones((2, 3))], ["a", "b", "c"], {}, "3 ids for 2 vectors"),
        ([np.ones((2, 3))], None, {"dtype": "int8"}, "use one of float32, bfloat16"),
        ([[[3.4e38]]], None, {"dtype": "bfloat16"}, "not finite in bfloat16"),
    ],
)
def test_what_cannot_be_built_is_said(batches, ids, options, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index.build(tmp_path, batches, ids, **options)


def test_a_folder_of_other_files_is_no_place_for_an_index(tmp_path):
    refuse = index_files.refuse_others
    refuse(tmp_path / "new")
    retrieval.Index.build(tmp_path / "index", [np.ones((2, 3))])
    (tmp_path / "index" / "notes.txt").touch()  # stays there
    refuse(tmp_path / "index")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "vectors.bin.part").touch()
    refuse(tmp_path / "begun")
    with pytest.raises(errors.UserError, match="holds begun and is not an index; name"):
        refuse(tmp_path)
    with pytest.raises(errors.UserError, match=r"notes\.txt is a file; name another"):
        refuse(tmp_path / "index" / "notes.txt")


def test_what_cannot_be_appended_is_said(tmp_path):
    retrieval.Index.build(tmp_path, [np.ones((2, 3))], ["a", "b"])
    before = contents(tmp_path)
    for ids, message in ((["a"], "'a' is given twice"), (None, "has ids; give")):
        with pytest.raises(errors.UserError, match=message):
            retrieval.Index.append(tmp_path, [np.ones((1, 3))], ids)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "O"}, "dtype is 'O', it must be float32 or bfloat16"),
        ({"dtype": ["float32"]}, "it must be float32 or bfloat16"),
        ({"rows": -1}, "rows is -1, it must be a whole number from 0"),
        ({"rows": "2"}, "rows is '2', it must be"),
        ({"dim": 0}, "dim is 0, it must be"),
        ({"largest": None}, "largest is null, it must be a number"),
        ({"made_from": 3}, "made_from is 3, it must be an object"),
        ({"ids": {"bytes": 1}}, "ids is .* it must be null or"),
    ],
)
def test_a_description_of_other_types_is_one_line(tmp_path, change, message):
    retrieval.Index.build(tmp_path, in_batches(50), IDS)
    file = tmp_path / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index.open(tmp_path)


def test_a_description_without_a_key_is_one_line(tmp_path):
    retrieval.Index.build(tmp_path, in_batches(50), IDS)
    file = tmp_path / "index.json"
    state = json.loads(file.read_text())
    del state["largest"]
    file.write_text(json.dumps(state))
    with pytest.raises(errors.UserError, match="has no largest; build it again"):
        retrieval.Index.open(tmp_path)


def test_links_with_the_names_of_our_files_are_not_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("vectors.bin.part", "ids.jsonl.part", "index.json.part"):
        (folder / name).symlink_to(mine)
    retrieval.Index.build(folder, [np.ones((2, 3))], ["a", "b"])
    assert mine.read_text() == "mine"
    for name in ("vectors.bin", "ids.jsonl"):
        (folder / name).rename(folder / f"{name}.mine")
        (folder / name).symlink_to(folder / f"{name}.mine")
        with pytest.raises(errors.UserError, match="is a link to another file; build"):
            retrieval.Index.append(folder, [np.ones((1, 3))], ["c"])
        (folder / f"{name}.mine").replace(folder / name)
    retrieval.Index.append(folder, [np.ones((1, 3))], ["c"])
