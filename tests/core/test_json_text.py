"""JSON files of ours that somebody or something damaged: one line, or the object."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors, json_text

WHOLE = json.dumps({"steps": 4, "names": ["a", "é"], "model": {"embed": 8}}).encode()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(WHOLE)), st.binary(max_size=4))
def test_whatever_is_done_to_a_file_is_a_line_that_names_it_and_the_fix(cut, more):
    data = WHOLE[:cut] + more
    try:
        expected = json.loads(data)
    except ValueError:
        expected = None
    if isinstance(expected, dict):
        assert json_text.parse_object(data, "config.json", "restore it") == expected
        return
    with pytest.raises(errors.UserError, match=r"is damaged: it .*; restore it"):
        json_text.parse_object(data, "config.json", "restore it")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is not JSON (Expecting value at column 1)"),
        (b"\xff\xfe{", "it is not UTF-8 (at byte 0)"),
        (b"[" * 100_000, "it is nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it holds a number of thousands of digits"),
        (b"[1]", "it is not a JSON object"),
        (b"null", "it is not a JSON object"),
        (b'{"b": 1}', "it has no 'a'"),
    ],
)
def test_each_kind_of_damage_is_called_by_its_name(tmp_path, data, reason):
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(errors.UserError) as caught:
        json_text.read_object(file, "remove it", ("a",))
    assert str(caught.value) == f"{file} is damaged: {reason}; remove it"


def test_a_byte_order_mark_is_no_damage_and_no_file_is_none(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert json_text.read_object(tmp_path / "x.json", "fix") == {"a": 1}
    assert json_text.read_object(tmp_path / "y.json", "fix") is None


def test_only_files_are_read_and_only_so_much_of_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # its reader would wait for ever
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(5 << 30)  # sparse
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(errors.UserError, match=f"{name} is a pipe, socket or dev"):
            json_text.read_object(tmp_path / name, "restore it")
    with pytest.raises(errors.UserError, match="holds more than the 134,217,728 bytes"):
        json_text.read_object(tmp_path / "large.json", "restore it")
    assert json_text.read_object(tmp_path / "none.json", "restore it") is None
