"""Documents: text files, Dolma's JSON lines, TFDS folders; mistakes are one line."""

import gzip
import json

import pytest
import zstandard

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib


def test_text_files_become_one_document_each_in_sorted_order(tmp_path):
    (tmp_path / "b.txt").write_text("two\r\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.md").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / ".hidden.txt").write_text("no")
    found = list(documents_lib.read_documents(tmp_path, domain="d"))
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
    found = list(documents_lib.read_documents(path))
    assert [(d.id, d.text) for d in found] == [("x", "é\n"), (f"{path.name}:3", "b")]
    assert found[1].source == f"{path}:3"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty \(0 bytes\)"),
        ("a.txt", b"ok\nab\xff", r":2 is not UTF-8 \(byte 5 of"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            r":2 is not UTF-8 \(byte 24 ",
        ),
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
        list(documents_lib.read_documents(tmp_path))
    assert "\n" not in str(error.value)


def test_empty_text_files_beside_others_are_left_out(tmp_path):
    (tmp_path / "__init__.py").write_bytes(b"")
    (tmp_path / "code.py").write_text("x = 1\n")
    found = [document.id for document in documents_lib.read_documents(tmp_path)]
    assert found == ["code.py"]


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
    found = list(documents_lib.read_documents(builder.data_path))
    assert sorted(d.text for d in found) == ["two", "één"]
    assert {d.id for d in found} == {"train:0", "train:1"}
    with pytest.raises(errors.UserError, match=r"cannot be read by TFDS .*'val'"):
        list(documents_lib.read_documents(builder.data_path, split="val"))
    features_file = builder.data_path / "features.json"
    features_file.write_text(features_file.read_text().replace("text", "body", 1))
    with pytest.raises(errors.UserError, match=r"no feature text \(features: body\)"):
        list(documents_lib.read_documents(builder.data_path))
    (builder.data_path / "dataset_info.json").write_text("{")
    with pytest.raises(errors.UserError, match="cannot be read by TFDS"):
        list(documents_lib.read_documents(builder.data_path))


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "planted.Thing", "jsonFeature": {"json": "{}"}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.F",
            "featuresDict": {"features": {"text": {"pythonClassName": "planted.T"}}},
        },
    ],
)
def test_a_tfds_folder_whose_features_are_code_of_others_is_refused(tmp_path, features):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "features.json").write_text(json.dumps(features))
    with pytest.raises(errors.UserError, match=r"asks for planted\.T.*not of TFDS"):
        list(documents_lib.read_documents(tmp_path))
