"""A prepared corpus: several sources, parts of domains, what it was made from."""

import gzip
import hashlib
import json

import pytest

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import sentence_pieces
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from tests.support import letters


@pytest.fixture
def text(tmp_path):
    """Two folders of domains: law and code, cook."""
    for folder, domains in (("one", ("law", "code")), ("two", ("cook.en",))):
        (tmp_path / folder).mkdir()
        for domain in domains:
            rows = [{"text": f"{domain} {i} " + "word number " * 20} for i in range(30)]
            lines = "\n".join(json.dumps(row) for row in rows)
            (tmp_path / folder / f"{domain}.jsonl").write_text(lines)
    return tmp_path


def prepare(text, source, **options):
    options = {"vocab_size": 300, "held_out_fraction": 0.2} | options
    return prepared.prepare(source, text / "out", **options)


def test_several_sources_are_one_corpus(text):
    both = f"{text / 'one'},{text / 'two'}"
    found = prepare(text, both)
    assert list(found.train) == ["code", "cook.en", "law"]
    assert list(found.held_out) == list(found.train)
    again = prepare(text, both)
    assert again.tokenizer.fingerprint == found.tokenizer.fingerprint


def test_a_domain_in_two_sources_is_named(text):
    (text / "two" / "law.jsonl").write_text('{"text": "again"}')
    with pytest.raises(
        errors.UserError, match=r"domain 'law' is in .*two.* with that in .*one"
    ):
        prepare(text, f"{text / 'one'},{text / 'two'}")


def test_a_missing_source_is_named(text):
    with pytest.raises(errors.UserError, match=r"no data at .*three"):
        prepare(text, f"{text / 'one'},{text / 'three'}")


def test_parts_of_a_domain_are_disjoint_and_share_its_held_out_text(text):
    found = prepare(text, str(text / "one"), parts=3)
    names = [f"{domain}.{part}" for domain in ("code", "law") for part in (1, 2, 3)]
    assert list(found.train) == names
    assert list(found.held_out) == ["code", "law"]

    def documents(files):
        return [
            tuple(document.tolist()) for file in files for document in _documents(file)
        ]

    parts = documents(found.train[f"law.{part}"] for part in (1, 2, 3))
    held_out = documents([found.held_out["law"]])
    assert len(parts) + len(held_out) == 30
    assert len({*parts, *held_out}) == 30


def _documents(file):
    starts = [0, *file.ends[:-1]]
    return [file.tokens[a:b] for a, b in zip(starts, file.ends, strict=True)]


def test_too_many_parts_are_refused(text):
    with pytest.raises(errors.UserError, match="too few for 100 parts"):
        prepare(text, str(text / "one"), parts=100)
    with pytest.raises(errors.UserError, match="need a held_out_fraction"):
        prepared.prepare(
            str(text / "one"), text / "x", parts=2, vocab_size=300, held_out_fraction=0
        )


def test_other_settings_are_refused(text):
    prepare(text, str(text / "one"))
    with pytest.raises(errors.UserError, match="prepared with parts None, not 2"):
        prepare(text, str(text / "one"), parts=2)


@pytest.mark.parametrize("move", ["folder", "file", "spelling"])
def test_the_same_text_elsewhere_is_the_same_corpus(text, move):
    old = text / ("one/law.jsonl" if move == "file" else "one")
    made = prepare(text, str(old))
    files = {path: path.read_bytes() for path in (text / "out").glob("*.npy")}
    new = f"{old}/../one/" if move == "spelling" else old.rename(text / "new.jsonl")
    again = prepare(text, str(new))
    assert [*again.train] == [*made.train]
    assert {p: p.read_bytes() for p in (text / "out").glob("*.npy")} == files
    if move != "spelling":
        new.rename(text / "away")
    prepare(text, str(new))  # its tokens are there
    assert not [*(text / "out").glob(".compared-*")]


def test_other_text_elsewhere_is_refused(text):
    prepare(text, str(text / "one"))
    (text / "one").rename(text / "new")
    law = text / "new" / "law.jsonl"
    law.write_text(law.read_text().replace("law 7 word", "law 7 worm"))
    with pytest.raises(errors.UserError, match=r"prepared from other text, .*one; use"):
        prepare(text, str(text / "new"))
    with pytest.raises(errors.UserError, match=r"no data at .*one/nothing"):
        prepare(text, str(text / "one" / "nothing"))


@pytest.mark.parametrize(
    "names",
    [
        ("law", "law.held_out"),
        ("law", "law.npy"),
        ("corpus",),
        ("plan",),
        ("manifest",),
    ],
)
def test_domains_that_would_share_a_file_are_refused(names, tmp_path):
    for name in names:
        rows = [json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    with pytest.raises(errors.UserError, match="rename"):
        prepared.prepare(str(tmp_path), tmp_path / "out", vocab_size=300)


def test_a_source_may_have_commas_in_its_name(text):
    (text / "two").rename(text / "two, or three")
    found = prepare(text, f"{text / 'one'},{text / 'two, or three'}")
    assert [*found.train] == ["code", "cook.en", "law"]


def test_every_domain_is_written_with_its_held_out_side(text):
    model = sentence_pieces.train(["law code word number 0123456789 "], 300)
    files = prepared.write_domains(
        text / "one", model, text / "out", held_out_fraction=0.3
    )
    assert sorted(files) == ["code", "code.held_out", "law", "law.held_out"]
    counts = {name: file.info["documents"] for name, file in files.items()}
    assert counts["law"] + counts["law.held_out"] == 30
    again = token_files.TokenFile.open(text / "out" / "law.held_out")
    loaded = tokenizer_lib.load(text / "out" / "tokenizer")
    span = again.document_at(0)
    read = loaded.decode(again.tokens[span.start : span.stop].tolist())
    assert read in {f"law {i} " + "word number " * 20 for i in range(30)}
    assert again.info["tokenizer"] == loaded.fingerprint


# sha256 of what commit 865b6a5 wrote of this text: pools and tables keep their numbers.
PUBLISHED = {
    "blank": "7b887c6b9edaaf82",
    "blank.held_out": "365d9c3b45c93622",
    "files": "90492d35c0a91665",
    "files.held_out": "e94bbb1b235a940e",
    "many": "dd945ab600c32610",
    "many.held_out": "8fbf03eeef70815d",
    "same": "81f278349595cc13",
    "same.held_out": "d0ea4ea2d09d9467",
    "two": "f6dc71547c2b88a1",
    "two.held_out": "e38242a0586284dc",
}


def digest(path):
    """Of the four files of a token file, the table unzipped: zlibs differ."""
    table = gzip.decompress(path.with_suffix(".csv.gz").read_bytes())
    others = [path.with_suffix(s).read_bytes() for s in (".bytes", ".json", ".npy")]
    return hashlib.sha256(b"".join([table, *others])).hexdigest()[:16]


@pytest.fixture
def small_domains(tmp_path, monkeypatch):
    """Domains in which the limit moves, and an ordinary one; `text` names them."""
    monkeypatch.chdir(tmp_path)  # sources are named as they are given
    (tmp_path / "text" / "files").mkdir(parents=True)
    domains = {
        "two": ["one text", "another"],
        "blank": ["one text", " ", "another", "a third", ""],
        "same": ["the same"] * 4,
        "many": [f"text {i} " * (i % 5 + 1) for i in range(60)],
    }
    for name, texts in domains.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "text" / f"{name}.jsonl").write_text(lines)
    for i in range(5):
        (tmp_path / "text" / "files" / f"{i}.txt").write_text(f"file {i}\n")
    return tmp_path


def test_the_bytes_are_those_of_published_pools(small_domains):
    out = small_domains / "out"
    prepared.write_domains("text", letters.Letters(), out, held_out_fraction=0.1)
    assert {path.stem: digest(path) for path in sorted(out.glob("*.npy"))} == PUBLISHED


def test_a_vocabulary_too_large_is_one_line_and_exit_code_2(text, capsys):
    argv = ["data", "prepare", str(text / "one"), str(text / "out")]
    assert cli.run([*argv, "--vocab-size=9999"]) == 2
    message = capsys.readouterr().err
    assert "use at most" in message
    assert message.count("\n") == 1
    assert cli.run([*argv, "--vocab-size=290"]) == 0
    assert "tokenizer of 290 tokens" in capsys.readouterr().out
