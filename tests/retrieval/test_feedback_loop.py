"""The loop of retrieval and reranking, and what each merge of two rounds finds."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.retrieval import feedback_loop
from tests.support import reranking

relative = functools.partial(
    retrieval.refit_queries, relative=True, learning_rate=0.05, num_updates=20
)


def found_share(answer, reranker, depth=20):
    """Of the documents that the reranker likes best among all."""
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :depth]
    held = [len({*a} & {*b}) for a, b in zip(answer.rows, best, strict=True)]
    return np.mean(held) / depth


def test_feedback_finds_what_a_larger_pool_does_not():
    index, queries, reranker = reranking.problem()
    pool = feedback_loop.retrieve_and_rerank(
        index, queries, reranker, pool=60, depth=30
    )
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=30, depth=30
    )
    assert answer.reranked.max() <= 60
    assert found_share(answer, reranker) > found_share(pool, reranker) + 0.05


def test_a_union_is_the_rerankers_order_of_both_rounds():
    index, queries, reranker = reranking.problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, depth=30
    )
    _, before = index.search_rows(queries, 10)
    _, after = index.search_rows(answer.queries, 30)
    for i, (rows, scores) in enumerate(zip(answer.rows, answer.scores, strict=True)):
        fresh = [row for row in after[i] if row not in before[i]][:10]
        union = [*before[i], *fresh]
        told = 5 * reranker.vectors[union] @ reranker.wanted[i]
        order = np.argsort(-told, kind="stable")
        rest = [row for row in after[i] if row not in union]
        assert rows.tolist() == [*np.array(union)[order], *rest][:30]
        np.testing.assert_allclose(scores[: len(union)], told[order], atol=1e-5)
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("k", [1, 3, 10, 150, 200])
def test_feedback_reads_what_reranking_twice_as_many_reads(k):
    """And of queries that it does not move, the same documents."""
    index, queries, reranker = reranking.problem()
    twice = feedback_loop.retrieve_and_rerank(
        index, queries, reranker, pool=2 * k, depth=k
    )
    moved, stays = (
        feedback_loop.feedback(index, queries, reranker, update=update, k=k, depth=k)
        for update in (relative, functools.partial(relative, num_updates=0))
    )
    np.testing.assert_array_equal(moved.reranked, twice.reranked)
    np.testing.assert_array_equal(stays.rows, twice.rows)
    np.testing.assert_array_equal(stays.scores, twice.scores)


def test_no_pair_is_scored_twice_and_all_are_counted():
    index, queries, reranker = reranking.problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, batch=7
    )
    assert len({*reranker.pairs}) == len(reranker.pairs) == answer.reranked.sum()


def test_second_is_a_search_with_the_new_queries():
    index, queries, reranker = reranking.problem()
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
    index, queries, reranker = reranking.problem()
    one, other = (
        feedback_loop.feedback(
            index, queries, reranker, update=relative, merge=merge, k=10, batch=size
        )
        for size in (20, batch)
    )
    np.testing.assert_array_equal(one.rows, other.rows)


def test_tour_reads_at_most_its_turns_and_ranks_them_first():
    index, queries, reranker = reranking.problem()
    answer = feedback_loop.tour(index, queries, reranker, depth=40)
    assert answer.reranked.min() >= 10
    assert answer.reranked.max() <= 30
    for i, count in enumerate(answer.reranked):
        read = {row for query, row in reranker.pairs if query == i}
        assert {*answer.rows[i, :count].tolist()} == read


@pytest.mark.parametrize("merge", feedback_loop.MERGES)
def test_a_corpus_smaller_than_k_is_ranked_whole(merge):
    index, queries, reranker = reranking.problem(documents=7)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, merge=merge
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(7)]] * 20


def test_duplicates_and_vectors_of_zeros_are_ranked_once_each():
    vectors = np.zeros((9, 4), np.float32)
    vectors[:4] = [1, 0, 0, 0]
    index = retrieval.Index(vectors)
    reranker = reranking.CountingReranker(vectors, np.zeros((2, 4), np.float32))
    queries = np.array([[1.0, 2, 0, 0], [0, 0, 0, 0]], np.float32)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=3, depth=9
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(9)]] * 2
    np.testing.assert_array_equal(answer.queries, queries)  # equal scores teach nothing


def test_a_score_that_is_no_number_names_query_and_document():
    index, queries, _ = reranking.problem()
    with pytest.raises(errors.UserError, match=r"gave nan for query 0 and document \d"):
        feedback_loop.retrieve_and_rerank(
            index, queries, lambda q, r: np.full(len(q), np.nan)
        )
    with pytest.raises(errors.UserError, match=r"shape \(1,\) for 2000 pairs"):
        feedback_loop.retrieve_and_rerank(index, queries, lambda q, r: np.zeros(1))
    with pytest.raises(errors.UserError, match="use one of union_rerank"):
        feedback_loop.feedback(index, queries, lambda q, r: q, merge="best")


ANSWERS = {
    "retrieve": lambda *given, **own: feedback_loop.retrieve(*given[:2], **own),
    "rerank": functools.partial(feedback_loop.retrieve_and_rerank, pool=4),
    "tour": functools.partial(feedback_loop.tour, k=3),
    **{
        merge: functools.partial(
            feedback_loop.feedback, update=relative, merge=merge, k=4, batch=2
        )
        for merge in feedback_loop.MERGES
    },
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("depth", [5, 8, 20])
@pytest.mark.parametrize("by_words", [False, True])
def test_a_querys_own_document_is_never_asked_about(name, depth, by_words):
    vectors = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    queries, own = 3 * vectors[:5], np.array([0, 1, -1, 3, 4])
    asked = []

    def reranker(queries, rows):
        asked.extend(zip(queries.tolist(), rows.tolist(), strict=True))
        return -rows.astype(np.float32)

    candidates = None
    if by_words:
        rows = np.array([np.roll(np.arange(8), -i) for i in range(5)])
        scores = np.tile(-np.arange(8.0, dtype=np.float32), (5, 1))
        candidates = feedback_loop.Candidates(rows, scores)
    answer = ANSWERS[name](
        retrieval.Index(vectors), queries, reranker, depth=depth,
        own=own, candidates=candidates,
    )  # fmt: skip
    assert all(own[query] != row for query, row in asked)
    assert answer.rows.shape == (5, min(depth, 8))
    for query, rows in enumerate(answer.rows.tolist()):
        assert len({*rows}) == len(rows)
        if own[query] in rows:  # nothing else was left
            assert rows.index(own[query]) == len(rows) - 1 == 7
    assert (np.diff(answer.scores) <= 0).all()
