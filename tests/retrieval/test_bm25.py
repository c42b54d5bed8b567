"""BM25: its formula, and what it says where it cannot work."""

import sys

import numpy as np
import pytest

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.retrieval import bm25, feedback_loop

TEXTS = ["the cat sat on the mat", "a dog and a cat", "", "cat cat dog", "東京 cat"]


def by_formula(terms, counts, k1=0.9, b=0.4):
    """Scores of each text: terms is {term: its counts}, sizes are in terms."""
    sizes = np.array([3, 2, 0, 3, 2])
    total = np.zeros(5)
    for term in terms:
        tf = np.array(counts[term])
        n = np.count_nonzero(tf)
        idf = np.log(1 + (5 - n + 0.5) / (n + 0.5))
        total += idf * tf / (tf + k1 * (1 - b + b * sizes / 2))
    return total


def test_a_missing_bm25s_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)  # as if it were not installed
    with pytest.raises(errors.UserError, match=r"pip install -e '.*\[bm25\]'$"):
        bm25.Bm25(TEXTS)


def test_candidates_take_the_place_of_the_first_search():
    index = retrieval.Index(np.eye(6, dtype=np.float32))
    queries = np.array([[3.0, 2.0, 1.0, 0.0, 0.5, 0.0]], np.float32)
    rows = np.array([[5, 4, 3, 2, 1, 0]])
    candidates = feedback_loop.Candidates(rows, -np.arange(6.0)[None], seconds=2.0)
    likes = np.array([0.0, 0.0, 0.0, 1.0, 5.0, 2.0])
    asked = []

    def reranker(queries, rows):
        asked.extend(rows.tolist())
        return likes[rows]

    options = {"depth": 6, "candidates": candidates}
    answer = feedback_loop.retrieve_and_rerank(
        index, queries, reranker, pool=3, **options
    )
    assert answer.rows.tolist() == [[4, 5, 3, 2, 1, 0]]
    assert answer.seconds["retrieve"] >= 2.0
    assert sorted(asked) == [3, 4, 5]
    second = feedback_loop.feedback(
        index, queries, reranker, k=2, merge="second", **options
    )
    assert set(asked) == {3, 4, 5}  # the first two candidates were asked about again
    assert second.rows.shape == (1, 6)
    assert second.queries[0, 4] > 0.5  # moved towards the one that is liked
    alone = feedback_loop.retrieve(index, queries, depth=2, candidates=candidates)
    assert alone.rows.tolist() == [[5, 4]]
    few = candidates._replace(rows=rows[:, :1])
    with pytest.raises(errors.UserError, match="1 candidates per query; give 3"):
        feedback_loop.retrieve_and_rerank(
            index, queries, reranker, pool=3, depth=3, candidates=few
        )


@pytest.mark.oracle
def test_bm25_is_its_formula_and_needs_no_known_term():
    model = bm25.Bm25(TEXTS, ["a", "b", "c", "d", "e"])
    scores, ids = model.search(["Dogs? a DOG!", "", "xyzzy"], 3)
    wanted = by_formula(["dog"], {"dog": [0, 1, 0, 1, 0]})
    np.testing.assert_allclose(scores[0], np.sort(wanted)[::-1][:3], rtol=1e-6)
    assert ids.tolist() == [["b", "d", "a"], ["a", "b", "c"], ["a", "b", "c"]]
    assert not scores[1:].any()
    assert model.search(["cat"], 9)[0].shape == (1, 5)
    with pytest.raises(errors.UserError, match="none of 2 documents has a term"):
        bm25.Bm25(["", "!"])


@pytest.mark.oracle
def test_terms_of_a_query_add_up():
    scores, rows = bm25.Bm25(TEXTS).search(["cat dog"], 5)
    counts = {"cat": [1, 1, 0, 2, 1], "dog": [0, 1, 0, 1, 0]}
    wanted = by_formula(["cat", "dog"], counts)
    np.testing.assert_allclose(scores[0], wanted[rows[0]], rtol=1e-6)
    assert rows[0].tolist() == np.argsort(-wanted, kind="stable").tolist()
