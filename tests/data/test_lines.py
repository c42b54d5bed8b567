"""The one reader of lines: compressed or not, with file and line in its errors."""

import gzip
import itertools
import pathlib
import re
import tempfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors
from jaxlab.data import lines

PACKED = {
    "a.jsonl": bytes,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstandard.compress,
}


@pytest.fixture(params=PACKED)
def write(request, tmp_path):
    """Writes bytes as each kind of file; its path."""

    def written(data):
        path = tmp_path / request.param
        path.write_bytes(PACKED[request.param](data))
        return path

    return written


def test_lines_have_the_numbers_that_an_editor_shows(write):
    path = write("\ufeffone\r\n \n\ntwo \u2028 still two\nlast".encode())
    wanted = [(1, "one"), (4, "two \u2028 still two"), (5, "last")]
    assert list(lines.read(path)) == wanted
    blank = list(lines.read(str(path), keep_blank=True))
    assert blank == [wanted[0], (2, " "), (3, ""), *wanted[1:]]


def test_json_is_read_line_by_line(write):
    path = write(b'{"a": 1}\n\n[2]\n"\\u00e9"\n')
    assert list(lines.read_json(path)) == [(1, {"a": 1}), (3, [2]), (4, "é")]
    rows = lines.read_objects(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(errors.UserError, match=r"a\.jsonl.*:3 is not a JSON object"):
        next(rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r":2 is not JSON \(Expecting value at column 7\)"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r":2 is not UTF-8 \(byte 16 of the file\)"),
        (b"", "holds no line"),
        (b"1\n" + b"[" * 9999 + b"]" * 9999, r":2 is nested too deep; write one"),
        (b'{"n": ' + b"1" * 5000 + b"}", r":1 holds a number of thousands of digits"),
        (b'1\n{"a": [{"b": 1, "c": 2, "b": 1}]}', r":2 has 'b' twice in one object"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(write, data, message):
    with pytest.raises(errors.UserError, match=message) as error:
        list(lines.read_json(write(data)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        ("a".encode("utf-16"), "convert it: iconv -f utf-16"),
        (b"%PDF-1.4\n\xff", "it is no text; give a text file"),
        (b"\x00\xff", "it is no text"),
        (b"caf\xe9", "iconv -f latin1"),
    ],
)
def test_bytes_of_another_kind_are_told_what_to_do(write, data, fix):
    with pytest.raises(errors.UserError, match=re.escape(fix)):
        list(lines.read(write(data)))


def test_lines_before_a_mistake_are_read(write):
    rows = lines.read_json(write(b"1\nnone\n"))
    assert next(rows) == (1, 1)
    with pytest.raises(errors.UserError, match=":2 is not JSON"):
        next(rows)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_not_what_its_name_says_is_damaged(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"plain text")
    with pytest.raises(errors.UserError, match=r"cannot be read .* copy it anew"):
        list(lines.read(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "A.JSONL.ZST"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_packed_file_that_is_cut_anywhere_but_between_frames_is_damaged(name, data):
    pack = PACKED[name.lower()]
    frames = [pack(b"".join(b"%d\n" % n**3 for n in range(i, 99))) for i in range(4)]
    whole = b"".join(frames)
    borders = {0, *itertools.accumulate(map(len, frames))}
    cuts = st.integers(0, len(whole)).filter(lambda cut: cut not in borders)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        path.write_bytes(whole)
        assert sum(1 for _ in lines.read(path)) == 99 + 98 + 97 + 96
        path.write_bytes(whole[: data.draw(cuts)])
        with pytest.raises(errors.UserError, match=r"cannot be read .* cut short"):
            list(lines.read(path))


def test_a_frame_of_any_window_is_read_and_frames_without_text_are_passed(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    note = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    path.write_bytes(note + packer.compress(b"1\n") + packer.flush() + note)
    assert [value for _, value in lines.read_json(path)] == [1]


def test_what_the_disk_refuses_is_not_called_damaged(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(errors.UserError, match="is a folder; name a file in it"):
        list(lines.read(tmp_path / "a.jsonl"))


def test_frames_that_follow_each_other_are_one_file(tmp_path):
    for name, pack in PACKED.items():
        path = tmp_path / name
        path.write_bytes(pack(b"1\n") + pack(b"2\n"))
        assert [value for _, value in lines.read_json(path)] == [1, 2]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"b\.jsonl does not exist"):
        list(lines.read(tmp_path / "b.jsonl"))


def test_a_whole_text_keeps_its_line_ends():
    assert lines.decode("\ufeffa\r\nb\n".encode(), "a.txt") == "a\r\nb\n"
    with pytest.raises(errors.UserError, match=r"a\.txt:2 is not UTF-8 \(byte 5 of"):
        lines.decode(b"ok\nab\xff", "a.txt")


def test_half_a_surrogate_pair_is_not_text():
    assert lines.require_utf8("é", "a:1") == "é"
    with pytest.raises(errors.UserError, match="a:1 holds half a surrogate pair at ch"):
        lines.require_utf8("ab\ud800", "a:1")


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.text("ab\r\u2028 ", max_size=40), max_size=12),
    block=st.integers(1, 50),
    ends=st.booleans(),
)
def test_lines_of_a_packed_file_are_those_of_a_plain_one(parts, block, ends):
    data = "\n".join(parts).encode() + b"\n" * ends
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block)
        found = []
        for name, pack in PACKED.items():
            path = pathlib.Path(folder, name)
            path.write_bytes(pack(data))
            if data:
                found.append(list(lines.read(path, keep_blank=True)))
        assert found in ([], 3 * found[:1])


@pytest.mark.parametrize("name", PACKED)
def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(lines, "_MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 64)
    path = tmp_path / name
    path.write_bytes(PACKED[name](b"short\n" * 500 + b"x" * 5000))
    read = lines.read(path)
    assert [next(read)[1] for _ in range(500)] == 500 * ["short"]
    with pytest.raises(errors.UserError, match="a line of more than 1,000 bytes; cut"):
        next(read)
    path.write_bytes(PACKED[name](b"x" * 900 + b"\n" + b"y" * 900 + b"\n"))
    assert [len(line) for _, line in lines.read(path)] == [900, 900]
