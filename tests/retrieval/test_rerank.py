"""A reranker's scores, cached: what is asked, what a file keeps."""

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.retrieval import rerank


def test_kept_scores_survive_a_kill_in_the_middle_of_a_record(tmp_path):
    path, asked = tmp_path / "scores.bin", []

    def score(queries, rows):
        asked.append(len(queries))
        return queries + rows / 8

    first = rerank.CachedReranker(score, path, made_from="one", at_once=3)
    queries, rows = np.arange(6), np.arange(6)[::-1]
    expected = first(queries, rows)
    path.write_bytes(path.read_bytes()[:-5])
    again = rerank.CachedReranker(score, path, made_from="one")
    np.testing.assert_array_equal(again(queries, rows), expected)
    assert asked == [3, 3, 1]
    assert again.pairs == 6
    assert again.seconds > 0
    third = rerank.CachedReranker(score, path, made_from="one")
    np.testing.assert_array_equal(third(queries, rows), expected)
    assert asked == [3, 3, 1]
    with pytest.raises(errors.UserError, match="other models or texts"):
        rerank.CachedReranker(score, path, made_from="two")


def test_a_pair_that_comes_twice_is_asked_once_and_charged_twice():
    asked = []
    kept = rerank.CachedReranker(lambda q, r: asked.append(len(q)) or np.ones(len(q)))
    assert kept(np.array([1, 1, 2]), np.array([0, 0, 0])).tolist() == [1, 1, 1]
    assert asked == [2]
    assert kept.pairs == 3
    assert kept(np.zeros(0, int), np.zeros(0, int)).shape == (0,)
