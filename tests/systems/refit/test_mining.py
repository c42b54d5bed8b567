"""Mined negatives: one index, what is negative, who is held out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import load
from jaxlab.retrieval import encode
from jaxlab.systems.refit import mining
from tests.support import toy_retrieval


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_retrieval.write_set(tmp_path_factory.mktemp("toy") / "set")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return toy_retrieval.write_encoder(tmp_path_factory.mktemp("encoder"))


def test_an_index_is_made_once(toy, encoder, tmp_path, monkeypatch):
    opened, options = load.encoder(encoder), {"length": 16, "depth": 4}
    options |= {"held_out": 0.5, "seed": 0}
    first = mining.mine({"folder": toy}, encoder, opened, tmp_path, **options)
    monkeypatch.setattr(encode, "embed_windows", None)
    monkeypatch.setattr(encode, "embed_texts", lambda *_, **__: found)
    rows = np.random.default_rng(0).normal(size=(len(first.queries), 32))
    found = encode.Encoded(rows, 0)
    again = mining.mine({"folder": toy}, encoder, opened, tmp_path, **options)
    assert again.held_out == first.held_out
    assert 0 < len(first.held_out) < len(first.queries)
    assert all(len(rows) == 4 for rows in again.rows.values())


def test_a_querys_own_document_is_not_a_negative(encoder, tmp_path):
    toy = toy_retrieval.write_set(tmp_path / "set")
    own = [
        json.loads(x)["title"] for x in (toy / "corpus.jsonl").read_text().split("\n")
    ]
    with open(toy / "corpus.jsonl", "a") as file:
        file.writelines(
            f'\n{{"_id": "q{i}", "title": "", "text": "{word}"}}'
            for i, word in enumerate(own[::2])
        )
    opened, options = load.encoder(encoder), {"length": 16, "depth": 400}
    options |= {"held_out": 0.0, "seed": 0}
    found = mining.mine({"folder": toy}, encoder, opened, tmp_path / "x", **options)
    for query, rows in found.rows.items():
        assert query not in {found.ids[row] for row in rows}
        assert len(rows) == len(found.ids) - 1


def mined(name, held_out=()):
    """Two documents in common, one of them judged irrelevant, one never found."""
    return mining.MinedSet(
        name,
        ids=["a", "b", "c"],
        passages=[f"{name} {x}" for x in "abc"],
        queries={"q": "one", "r": "two", "s": "three"},
        qrels={"q": {"a": 2, "b": 0}, "r": {"b": 1}, "s": {"c": 0}},
        rows=dict.fromkeys("qrs", np.array([1, 0, 2])),
        scores={key: {0: 0.5, 1: 0.75, 2: 0.25} for key in "qrs"},
        held_out=held_out,
    )


def test_negatives_are_what_was_found_and_is_not_relevant():
    data = mining.training_lists([mined("x", ("r",)), mined("y")], depth=2)
    assert data.queries == ["one", "one", "two"]
    assert data.documents == ["x a", "x b", "x c", "y a", "y b", "y c"]
    assert data.relevant == [{0: 2.0}, {3: 2.0}, {4: 1.0}]
    assert data.negatives == [[1], [4], [3]]
    assert data.prior == ()
    data = mining.training_lists([mined("x", ("r",)), mined("y")], depth=2, prior=2.0)
    assert data.prior[0] == {0: 1.0, 1: 1.5, 2: 0.5}
    assert data.prior[1] == data.prior[2] == {3: 1.0, 4: 1.5, 5: 0.5}


def test_a_set_that_is_repeated_counts_twice_and_has_its_documents_once():
    data = mining.training_lists([mined("x"), mined("x")], depth=3)
    assert data.queries == ["one", "two"] * 2
    assert len(data.documents) == 3
    assert data.relevant[:2] == data.relevant[2:]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1))
def test_queries_that_share_their_document_are_held_out_together(seed, share):
    out = [
        mining.is_held_out(judgments, share, seed)
        for judgments in ({"a": 1}, {"b": 1, "a": 2}, {"a": 3, "0": 0})
    ]
    assert len({*out}) == 1
    assert not mining.is_held_out({"a": 1}, 0.0, seed)
    assert mining.is_held_out({"a": 1}, 1.0, seed)
