"""Token files: OLMo's layout, the same bytes each time, damage that is named."""

import csv
import gzip
import hashlib
import json
import re

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.data.batches import loader
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import token_files, token_writer
from tests.support import letters

DOCUMENTS = [
    documents_lib.Document(f"doc{i}", f"Text number {i}.\n" * (i + 1), f"here:{i}")
    for i in range(12)
]


def test_token_files_have_olmos_layout(tmp_path):
    file = token_writer.write_tokens(DOCUMENTS, letters.Letters(), tmp_path / "a.b")
    raw = np.fromfile(tmp_path / "a.b.npy", "<u2")  # headerless, exactly the tokens
    expected = [i for d in DOCUMENTS for i in [*letters.Letters().encode(d.text), 2]]
    assert raw.tolist() == expected == file.tokens.tolist()
    with gzip.open(tmp_path / "a.b.csv.gz", "rt") as table:
        rows = list(csv.reader(table))
    sizes = [len(d.text) + 1 for d in DOCUMENTS]
    assert rows[1] == [str(sizes[0]), str(sum(sizes[:2])), "doc1", "here:1", "1"]
    info = json.loads((tmp_path / "a.b.json").read_text())
    assert info["sha256"] == hashlib.sha256(raw.tobytes()).hexdigest()
    assert info["tokens"] == len(raw)
    assert info["bytes"] == sum(len(d.text) for d in DOCUMENTS)
    assert info["tokenizer"] == "letters"
    assert file.document_bytes.tolist() == [len(d.text) for d in DOCUMENTS]
    assert file.document_at(sizes[0]).id == "doc1"
    assert file.document_at(sizes[0] - 1).id == "doc0"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted(
        [".npy", ".gz", ".bytes", ".json"]
    )


def test_writing_twice_gives_the_same_bytes_and_batches_do_not_matter(
    tmp_path, monkeypatch
):
    first = token_writer.write_tokens(
        iter(DOCUMENTS), letters.Letters(), tmp_path / "a"
    )
    monkeypatch.setattr(token_writer, "_BATCH_BYTES", 1)
    second = token_writer.write_tokens(
        iter(DOCUMENTS), letters.Letters(), tmp_path / "b"
    )
    assert first.info == second.info
    table = (tmp_path / "a.csv.gz").read_bytes()
    assert table == (tmp_path / "b.csv.gz").read_bytes()


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Large(letters.Letters):
        vocab_size, eos_id = 100278, 100257

    file = token_writer.write_tokens(DOCUMENTS, Large(), tmp_path / "a")
    assert file.dtype == np.dtype("<u4")
    assert file.tokens[-1] == 100257


def test_nothing_is_left_behind_when_encoding_fails(tmp_path):
    def failing():
        yield DOCUMENTS[0]
        raise errors.UserError("bad document")

    with pytest.raises(errors.UserError, match="bad document"):
        token_writer.write_tokens(failing(), letters.Letters(), tmp_path / "a")
    with pytest.raises(errors.UserError, match="no document with text"):
        token_writer.write_tokens(
            [documents_lib.Document("x", " ")], letters.Letters(), tmp_path / "a"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_olmo_file_opens_with_its_dtype_and_end_token(tmp_path):
    np.array([5, 6, 9, 7, 9, 8], "<u2").tofile(tmp_path / "part.npy")
    with pytest.raises(errors.UserError, match="pass dtype"):
        token_files.TokenFile.open(tmp_path / "part.npy")
    file = token_files.TokenFile.open(tmp_path / "part", "uint16", eos_id=9)
    assert file.ends.tolist() == [3, 5, 6]  # the last document is cut short
    assert file.document_at(4)[:3] == (1, 3, 5)
    bare = token_files.TokenFile.open(tmp_path / "part", "uint16")
    with pytest.raises(errors.UserError, match="pass eos_id"):
        bare.document_at(0)
    with gzip.open(tmp_path / "part.csv.gz", "wt") as table:  # Dolma's own table
        table.write("0,3,id-a,s3://x/a.jsonl.gz,1\n3,6,id-b,s3://x/a.jsonl.gz,2\n")
    assert token_files.TokenFile.open(tmp_path / "part", "uint16").document_at(
        5
    ).id == ("id-b")


def test_damaged_token_files_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    with pytest.raises(errors.UserError, match="does not exist"):
        token_files.TokenFile.open(path)
    file = token_writer.write_tokens(DOCUMENTS, letters.Letters(), tmp_path / "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(errors.UserError, match="is truncated"):
        token_files.TokenFile.open(path)
    with pytest.raises(errors.UserError, match="changed size while in use"):
        _ = file.tokens
    path.unlink()
    with pytest.raises(errors.UserError, match="does not exist"):
        _ = file.tokens
    path.write_bytes(b"")
    with pytest.raises(errors.UserError, match=re.escape("empty (0 bytes)")):
        token_files.TokenFile.open(path)
    np.save(tmp_path / "saved.npy", np.arange(4, dtype=np.uint16))
    with pytest.raises(errors.UserError, match="NumPy header"):
        token_files.TokenFile.open(tmp_path / "saved", "uint16")
    path.write_bytes(whole)
    long = b"0,3," + b"x" * (1 << 20) + b",y,0\n"
    tables = (b"0,3,x,y,0\n", b"0,x,x,y,0\n", b"0\n", long, b"0,0,x,y,0\n" * 9)
    for table in map(gzip.compress, tables):
        (tmp_path / "a.csv.gz").write_bytes(table)
        with pytest.raises(errors.UserError, match="does not describe"):
            _ = token_files.TokenFile.open(path).ends
        (tmp_path / "a.csv.gz").write_bytes(b"x" + table)
        with pytest.raises(
            errors.UserError, match=r"is damaged .* prepare a.npy again"
        ):
            _ = token_files.TokenFile.open(path).ends
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(errors.UserError, match="is damaged"):
        token_files.TokenFile.open(path)


@pytest.mark.parametrize("dtype", ["uint17", "int32", "float32", ">u2", "tokens"])
def test_a_dtype_that_tokens_do_not_have_is_refused(tmp_path, dtype):
    np.arange(64, dtype="<u2").tofile(tmp_path / "part.npy")
    with pytest.raises(errors.UserError, match="is not unsigned and little-endian"):
        token_files.TokenFile.open(tmp_path / "part", dtype)


def test_a_file_of_wider_tokens_is_not_read_as_a_narrow_one(tmp_path):
    ids = np.random.default_rng(0).integers(3, 100_000, 500)
    ids.astype("<u4").tofile(tmp_path / "part.npy")
    with pytest.raises(errors.UserError, match="looks like uint32, not uint16"):
        token_files.TokenFile.open(tmp_path / "part", "uint16")
    assert token_files.TokenFile.open(tmp_path / "part", "uint32").size == 500


@pytest.mark.parametrize("layout", loader.LAYOUTS)
def test_ids_beyond_the_vocabulary_are_refused_in_the_row_that_holds_them(
    tmp_path, layout
):
    ids = np.tile(np.arange(10), 20)
    ids[[9, 157]] = 0, 400  # the end of a document, and one that is beyond
    ids.astype("<u2").tofile(tmp_path / "part.npy")
    file = token_files.TokenFile.open(
        tmp_path / "part", "uint16", eos_id=0, vocab_size=400
    )
    batches = loader.Loader(file, length=20, batch_size=1, layout=layout)
    refused = 0
    for step in range(batches.source_rows[0]):
        try:
            batches(step)
        except errors.UserError as error:
            refused += "token 400, beyond the vocabulary of 400" in str(error)
    assert refused == 1
