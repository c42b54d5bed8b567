"""Documents, token files, held-out splits: round trips and clear errors."""

import csv
import gzip
import hashlib
import json
import pathlib
import re
import runpy

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import zstandard

from jaxlab.core import errors
from jaxlab.data.corpus import domains as domains_lib
from jaxlab.data.corpus import token_writer
from jaxlab.data.tokenizers import tokenizer

DOCUMENTS = [
    domains_lib.Document(f"doc{i}", f"Text number {i}.\n" * (i + 1), f"here:{i}")
    for i in range(12)
]


class Letters:
    """A tokenizer of bytes: id = byte + 3."""

    vocab_size, bos_id, eos_id, pad_id, fingerprint = 259, None, 2, 1, "letters"

    def encode(self, text, *, special=False):
        return [byte + 3 for byte in text.encode()]

    def encode_batch(self, texts, *, special=False):
        return [self.encode(text) for text in texts]

    def decode(self, ids, *, special=False):
        return bytes(i - 3 for i in ids if i >= 3).decode()

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)


def test_text_files_become_one_document_each_in_sorted_order(tmp_path):
    (tmp_path / "b.txt").write_text("two\r\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.md").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / ".hidden.txt").write_text("no")
    found = list(domains_lib.read_documents(tmp_path, domain="d"))
    assert [(d.id, d.text, d.domain) for d in found] == [
        ("a/c.md", "one", "d"),
        ("b.txt", "two\r\n", "d"),
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_dolma_json_lines_are_read_from_every_compression(tmp_path, suffix):
    rows = [{"id": "x", "text": "é\n", "source": "s", "metadata": {}}, {"text": "b"}]
    data = "\n\n".join(json.dumps(row) for row in rows).encode()
    packed = {
        "": lambda: data,
        ".gz": lambda: gzip.compress(data),
        ".zst": lambda: zstandard.compress(data),
    }[suffix]()
    path = tmp_path / f"part.jsonl{suffix}"
    path.write_bytes(packed)
    found = list(domains_lib.read_documents(path))
    assert [(d.id, d.text) for d in found] == [("x", "é\n"), (f"{path.name}:3", "b")]
    assert found[1].source == f"{path}:3"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty \(0 bytes\)"),
        ("a.txt", b"ok\nab\xff", r"byte 5 \(line 2\) is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"byte 24 \(line 2\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}', r'jsonl:1 has no string field "text".*body'),
        ("a.jsonl", b'["text"]', r"jsonl:1 has no string field"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"jsonl:1 holds half a surrogate"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-9], "cut short"),
        ("a.jsonl.zst", b"not zstd at all", "cannot be read"),
        ("a.bin", b"x", "holds no document"),
    ],
)
def test_bad_files_end_in_one_line_that_names_the_place(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.UserError, match=message) as error:
        list(domains_lib.read_documents(tmp_path))
    assert "\n" not in str(error.value)


def test_domains_are_subfolders_and_json_lines_of_the_wanted_split(tmp_path):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "a.txt").write_text("law")
    for split in ("train", "val"):
        (tmp_path / f"code.{split}.jsonl").write_text(json.dumps({"text": split}))
    (tmp_path / "README.md").write_text("not a domain")
    domains = domains_lib.read_domains(tmp_path)
    assert {k: [d.text for d in v] for k, v in domains.items()} == {
        "code": ["train"],
        "law": ["law"],
    }
    assert [
        d.text for d in domains_lib.read_domains(tmp_path, split="val")["code"]
    ] == ["val"]


def test_empty_text_files_beside_others_are_left_out(tmp_path):
    (tmp_path / "__init__.py").write_bytes(b"")
    (tmp_path / "code.py").write_text("x = 1\n")
    found = [document.id for document in domains_lib.read_documents(tmp_path)]
    assert found == ["code.py"]


def test_missing_and_empty_domains_are_named(tmp_path):
    with pytest.raises(errors.UserError, match="holds no domain"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law").mkdir()
    with pytest.raises(errors.UserError, match="law holds no document"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law" / "a.txt").write_text(" \n")
    with pytest.raises(errors.UserError, match=r"domain 'law' .* holds no text"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law.jsonl").write_text("{}")
    with pytest.raises(errors.UserError, match="domain 'law' is both"):
        domains_lib.read_domains(tmp_path)
    with pytest.raises(errors.UserError, match="does not exist"):
        list(domains_lib.read_documents(tmp_path / "nothing"))


def test_a_tfds_folder_is_read_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": [(0, {"text": "één"}), (1, {"text": "two"})]}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    found = list(domains_lib.read_documents(builder.data_path))
    assert sorted(d.text for d in found) == ["two", "één"]
    assert {d.id for d in found} == {"train:0", "train:1"}
    with pytest.raises(errors.UserError, match=r"cannot be read by TFDS .*'val'"):
        list(domains_lib.read_documents(builder.data_path, split="val"))
    features_file = builder.data_path / "features.json"
    features_file.write_text(features_file.read_text().replace("text", "body", 1))
    with pytest.raises(errors.UserError, match=r"no feature text \(features: body\)"):
        list(domains_lib.read_documents(builder.data_path))
    (builder.data_path / "dataset_info.json").write_text("{")
    with pytest.raises(errors.UserError, match="cannot be read by TFDS"):
        list(domains_lib.read_documents(builder.data_path))


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=2),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_a_split_is_a_partition_with_two_sides_that_order_does_not_change(
    texts, fraction, seed
):
    given = [domains_lib.Document(str(i), text) for i, text in enumerate(texts)]
    train, held_out = domains_lib.split_documents(given, fraction, seed)
    assert sorted(train + held_out) == sorted(given)
    assert train
    assert held_out
    if len(set(texts)) > 1:
        assert not {d.text for d in train} & {d.text for d in held_out}
    again = domains_lib.split_documents(given[::-1], fraction, seed)
    if len(set(texts)) > 1:
        assert sorted(again[0]) == sorted(train)


def test_a_held_out_fraction_outside_zero_and_one_is_refused():
    with pytest.raises(errors.UserError, match="not between 0 and 1"):
        domains_lib.split_documents(DOCUMENTS, 1.0)


def test_token_files_have_olmos_layout(tmp_path):
    file = domains_lib.write_tokens(DOCUMENTS, Letters(), tmp_path / "a.b")
    raw = np.fromfile(tmp_path / "a.b.npy", "<u2")  # headerless, exactly the tokens
    expected = [i for d in DOCUMENTS for i in [*Letters().encode(d.text), 2]]
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
    first = domains_lib.write_tokens(iter(DOCUMENTS), Letters(), tmp_path / "a")
    monkeypatch.setattr(token_writer, "_BATCH_BYTES", 1)
    second = domains_lib.write_tokens(iter(DOCUMENTS), Letters(), tmp_path / "b")
    assert first.info == second.info
    table = (tmp_path / "a.csv.gz").read_bytes()
    assert table == (tmp_path / "b.csv.gz").read_bytes()


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Large(Letters):
        vocab_size, eos_id = 100278, 100257

    file = domains_lib.write_tokens(DOCUMENTS, Large(), tmp_path / "a")
    assert file.dtype == np.dtype("<u4")
    assert file.tokens[-1] == 100257


def test_nothing_is_left_behind_when_encoding_fails(tmp_path):
    def failing():
        yield DOCUMENTS[0]
        raise errors.UserError("bad document")

    with pytest.raises(errors.UserError, match="bad document"):
        domains_lib.write_tokens(failing(), Letters(), tmp_path / "a")
    with pytest.raises(errors.UserError, match="no document with text"):
        domains_lib.write_tokens(
            [domains_lib.Document("x", " ")], Letters(), tmp_path / "a"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_olmo_file_opens_with_its_dtype_and_end_token(tmp_path):
    np.array([5, 6, 9, 7, 9, 8], "<u2").tofile(tmp_path / "part.npy")
    with pytest.raises(errors.UserError, match="pass dtype"):
        domains_lib.TokenFile.open(tmp_path / "part.npy")
    file = domains_lib.TokenFile.open(tmp_path / "part", "uint16", eos_id=9)
    assert file.ends.tolist() == [3, 5, 6]  # the last document is cut short
    assert file.document_at(4)[:3] == (1, 3, 5)
    bare = domains_lib.TokenFile.open(tmp_path / "part", "uint16")
    with pytest.raises(errors.UserError, match="pass eos_id"):
        bare.document_at(0)
    with gzip.open(tmp_path / "part.csv.gz", "wt") as table:  # Dolma's own table
        table.write("0,3,id-a,s3://x/a.jsonl.gz,1\n3,6,id-b,s3://x/a.jsonl.gz,2\n")
    assert domains_lib.TokenFile.open(tmp_path / "part", "uint16").document_at(
        5
    ).id == ("id-b")


def test_damaged_token_files_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    with pytest.raises(errors.UserError, match="does not exist"):
        domains_lib.TokenFile.open(path)
    file = domains_lib.write_tokens(DOCUMENTS, Letters(), tmp_path / "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(errors.UserError, match="is truncated"):
        domains_lib.TokenFile.open(path)
    with pytest.raises(errors.UserError, match="changed size while in use"):
        _ = file.tokens
    path.unlink()
    with pytest.raises(errors.UserError, match="does not exist"):
        _ = file.tokens
    path.write_bytes(b"")
    with pytest.raises(errors.UserError, match=re.escape("empty (0 bytes)")):
        domains_lib.TokenFile.open(path)
    np.save(tmp_path / "saved.npy", np.arange(4, dtype=np.uint16))
    with pytest.raises(errors.UserError, match="NumPy header"):
        domains_lib.TokenFile.open(tmp_path / "saved", "uint16")
    path.write_bytes(whole)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,3,x,y,0\n"))
    with pytest.raises(errors.UserError, match="does not describe"):
        _ = domains_lib.TokenFile.open(path).ends
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(errors.UserError, match="is damaged"):
        domains_lib.TokenFile.open(path)


def test_prepare_writes_every_domain_with_its_held_out_side(tmp_path):
    for name in ("law", "code"):
        with (tmp_path / f"{name}.jsonl").open("w") as stream:
            for document in DOCUMENTS:
                stream.write(json.dumps({"text": name + document.text}) + "\n")
    model = tokenizer.train_sentencepiece([d.text for d in DOCUMENTS], 282)
    files = domains_lib.prepare(
        tmp_path, model, tmp_path / "out", held_out_fraction=0.3
    )
    assert sorted(files) == ["code", "code.held_out", "law", "law.held_out"]
    counts = {name: file.info["documents"] for name, file in files.items()}
    assert counts["law"] + counts["law.held_out"] == len(DOCUMENTS)
    again = domains_lib.TokenFile.open(tmp_path / "out" / "law.held_out")
    loaded = tokenizer.load(tmp_path / "out" / "tokenizer")
    span = again.document_at(0)
    text = loaded.decode(again.tokens[span.start : span.stop].tolist())
    assert text in {"law" + document.text for document in DOCUMENTS}
    assert again.info["tokenizer"] == loaded.fingerprint


def test_the_command_line_tool_prepares_files_and_reports_mistakes(tmp_path, capsys):
    path = pathlib.Path(__file__).parents[2] / "tools" / "prepare_corpus.py"
    main = runpy.run_path(str(path))["main"]
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "a.txt").write_text("The law of the land.\n" * 20)
    arguments = [str(tmp_path), str(tmp_path / "out"), "--train-vocab"]
    assert main([*arguments, "9999"]) == 2
    message = capsys.readouterr().err
    assert "use at most" in message
    assert message.count("\n") == 1
    assert main([*arguments, "280"]) == 0
    assert "law: 1 documents" in capsys.readouterr().out
    assert domains_lib.TokenFile.open(tmp_path / "out" / "law").info["documents"] == 1
