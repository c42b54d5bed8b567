"""A prepared corpus: several sources, parts of domains, what it was made from."""

import json

import pytest

from jaxlab.core import errors
from jaxlab.data import prepared


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
        errors.UserError, match=r"domain 'law' is in .*one and in .*two"
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
    with pytest.raises(errors.UserError, match="prepared with other settings"):
        prepare(text, str(text / "one"), parts=2)
