"""The loop of retrieval and reranking, its files, and `jaxlab retrieve`."""

import functools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.retrieval import feedback_loop, formats, metrics, rerank
from jaxlab.systems.refit import comparison, report

MODELS = pathlib.Path(__file__).parents[1] / "values" / "bert"
relative = functools.partial(
    retrieval.refit_queries, relative=True, learning_rate=0.05, num_updates=20
)


class Asked:
    """A reranker that likes what is near hidden vectors, and counts."""

    def __init__(self, vectors, wanted):
        self.vectors, self.wanted, self.pairs = vectors, wanted, []

    def __call__(self, queries, rows):
        self.pairs += zip(queries.tolist(), rows.tolist(), strict=True)
        return 5 * np.sum(self.wanted[queries] * self.vectors[rows], axis=1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed=0, documents=300, queries=20, dim=16):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(documents, dim))).astype(np.float32)
    asked = unit(rng.normal(size=(queries, dim))).astype(np.float32)
    wanted = asked + 0.5 * rng.normal(size=asked.shape).astype(np.float32)
    return retrieval.Index(vectors), asked, Asked(vectors, wanted)


def found_share(answer, reranker, depth=20):
    """Of the documents that the reranker likes best among all."""
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :depth]
    held = [len({*a} & {*b}) for a, b in zip(answer.rows, best, strict=True)]
    return np.mean(held) / depth


# ---- the loop ----


def test_feedback_finds_what_a_larger_pool_does_not():
    index, queries, reranker = problem()
    pool = feedback_loop.retrieve_and_rerank(
        index, queries, reranker, pool=60, depth=30
    )
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=30, depth=30
    )
    assert answer.reranked.max() <= 60
    assert found_share(answer, reranker) > found_share(pool, reranker) + 0.05


def test_a_union_is_the_rerankers_order_of_both_rounds():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, depth=30
    )
    _, before = index.search_rows(queries, 10)
    _, after = index.search_rows(answer.queries, 30)
    for i, (rows, scores) in enumerate(zip(answer.rows, answer.scores, strict=True)):
        union = list(dict.fromkeys([*before[i], *after[i, :10]]))
        told = 5 * reranker.vectors[union] @ reranker.wanted[i]
        order = np.argsort(-told, kind="stable")
        rest = [row for row in after[i] if row not in union]
        assert rows.tolist() == [*np.array(union)[order], *rest][:30]
        np.testing.assert_allclose(scores[: len(union)], told[order], atol=1e-5)
        assert (np.diff(scores) <= 0).all()


def test_no_pair_is_scored_twice_and_all_are_counted():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, batch=7
    )
    assert len({*reranker.pairs}) == len(reranker.pairs) == answer.reranked.sum()


def test_second_is_a_search_with_the_new_queries():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, merge="second", k=10, depth=15
    )
    scores, rows = index.search_rows(answer.queries, 15)
    np.testing.assert_array_equal(answer.rows, rows)
    np.testing.assert_array_equal(answer.scores, scores)
    assert (answer.reranked == 10).all()


def test_fused_ranks_are_summed_reciprocals():
    index = retrieval.Index(np.eye(4))
    likes = np.array([0.0, 1.0, 9.0, 0.0])

    def stays(queries, candidates, scores):
        return retrieval.RefitResult(queries, None, None)

    answer = feedback_loop.feedback(
        index, np.array([[4.0, 3.0, 2.0, 1.0]]), lambda q, r: likes[r], update=stays,
        merge="rrf", k=3, depth=4,
    )  # fmt: skip
    # Reranked 2, 1, 0; second round 0, 1, 2, 3.
    wanted = {0: 1 / 63 + 1 / 61, 1: 1 / 62 + 1 / 62, 2: 1 / 61 + 1 / 63, 3: 1 / 64}
    assert answer.rows.tolist() == [[2, 0, 1, 3]]
    np.testing.assert_allclose(answer.scores[0], [wanted[i] for i in (2, 0, 1, 3)])


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 30), st.sampled_from(feedback_loop.MERGES))
def test_answers_do_not_depend_on_the_batch(batch, merge):
    index, queries, reranker = problem()
    one, other = (
        feedback_loop.feedback(
            index, queries, reranker, update=relative, merge=merge, k=10, batch=size
        )
        for size in (20, batch)
    )
    np.testing.assert_array_equal(one.rows, other.rows)


def test_tour_reads_at_most_its_turns_and_ranks_them_first():
    index, queries, reranker = problem()
    answer = feedback_loop.tour(index, queries, reranker, depth=40)
    assert answer.reranked.min() >= 10
    assert answer.reranked.max() <= 30
    for i, count in enumerate(answer.reranked):
        read = {row for query, row in reranker.pairs if query == i}
        assert {*answer.rows[i, :count].tolist()} == read


@pytest.mark.parametrize("merge", feedback_loop.MERGES)
def test_a_corpus_smaller_than_k_is_ranked_whole(merge):
    index, queries, reranker = problem(documents=7)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, merge=merge
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(7)]] * 20


def test_duplicates_and_vectors_of_zeros_are_ranked_once_each():
    vectors = np.zeros((9, 4), np.float32)
    vectors[:4] = [1, 0, 0, 0]
    index = retrieval.Index(vectors)
    reranker = Asked(vectors, np.zeros((2, 4), np.float32))
    queries = np.array([[1.0, 2, 0, 0], [0, 0, 0, 0]], np.float32)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=3, depth=9
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(9)]] * 2
    np.testing.assert_array_equal(answer.queries, queries)  # equal scores teach nothing


def test_a_score_that_is_no_number_names_query_and_document():
    index, queries, _ = problem()
    with pytest.raises(errors.UserError, match=r"gave nan for query 0 and document \d"):
        feedback_loop.retrieve_and_rerank(
            index, queries, lambda q, r: np.full(len(q), np.nan)
        )
    with pytest.raises(errors.UserError, match=r"shape \(1,\) for 2000 pairs"):
        feedback_loop.retrieve_and_rerank(index, queries, lambda q, r: np.zeros(1))
    with pytest.raises(errors.UserError, match="use one of union_rerank"):
        feedback_loop.feedback(index, queries, lambda q, r: q, merge="best")


# ---- kept scores ----


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


# ---- the comparison ----


def test_a_comparison_writes_runs_measures_and_a_page(tmp_path):
    index, vectors, reranker = problem()
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :5]
    names = [f"q{i}" for i in range(len(vectors))]
    qrels = {
        name: {str(row): 1 for row in rows}
        for name, rows in zip(names, best, strict=True)
    }
    queries = comparison.Queries(names, [""] * len(names), vectors, qrels)
    chosen = comparison.Settings(
        k=20, depth=20, learning_rate=0.05, updates=(0, 10), feedback=(5, 20)
    )
    kept = rerank.CachedReranker(reranker)
    outcomes = comparison.compare(index, queries, kept, chosen, tmp_path)
    assert list(outcomes) == list(comparison.ROWS)
    recall = {n: x.evaluation.means["recall@20"] for n, x in outcomes.items()}
    assert recall["refit"] > recall["rerank_2k"] > recall["rerank"]
    curves = comparison.curves(index, queries, kept, chosen)
    assert curves.by_updates[0] == recall["bi-encoder"]
    corpus = formats.Corpus([str(i) for i in range(300)], [""] * 300, ["<b>"] * 300)
    report.write(tmp_path, "A & B", outcomes, queries, corpus, chosen, curves, 1.0)
    for name, outcome in outcomes.items():
        run = formats.read_run(tmp_path / "runs" / f"{name}.trec")
        again = metrics.evaluate(qrels, run, chosen.metrics)
        np.testing.assert_array_equal(
            again.values["recall@20"], outcome.evaluation.values["recall@20"]
        )
        kept_values = formats.read_results(tmp_path / "results" / f"{name}.tsv")
        np.testing.assert_array_equal(
            kept_values.values["ndcg@10"], again.values["ndcg@10"]
        )
    numbers = json.loads((tmp_path / "report.json").read_text())
    value, low, high = numbers["rows"]["refit"]["less"]["rerank_2k"]["recall@20"]
    assert low < value < high
    assert value == pytest.approx(recall["refit"] - recall["rerank_2k"], abs=1e-6)
    page = (tmp_path / "report.html").read_text()
    assert "A &amp; B" in page
    assert "query won" in page
    assert "<b>" not in page
    with pytest.raises(errors.UserError, match="no row best"):
        comparison.compare(
            index, queries, kept, comparison.Settings(rows=("best",)), tmp_path
        )
