"""Retrieve, rerank, learn from the reranker, retrieve again, merge.

    retrieve               q_0 -> the N nearest documents
    retrieve_and_rerank    the first `pool` of them ordered by the reranker; the others
                           follow
    feedback               the first K reranked, q_0 -> q_n by the reranker's scores,
                           and the documents nearest to q_n; both rounds are merged
    tour                   several short rounds of feedback, one step each

The first documents may come from elsewhere, e.g. from BM25: see `Candidates`.

    merge           documents of both rounds                     calls of the reranker
    second          those nearest to q_n, by inner product       K
    rrf             sum of 1 / (60 + rank): reranked K, second   K
    union_rerank    the first K, and the K nearest to q_n of     2 K
                    those that are new, by the reranker

ReFIT is `feedback` with `refit.refit_queries` (Reddy et al. 2023, arXiv:2305.11744),
which evaluates `second`; with other updates (`feedback.py`) it is what ReFIT is
compared with. TouR: Sung et al. 2023 (arXiv:2205.12680). Fusion of ranks: Cormack et
al. 2009, *Reciprocal rank fusion*.

A ranking has one list of scores that fall: where its order is the reranker's, the
reranker's scores, and below the worst of them, in steps of 1, what the reranker has not
seen.

Deviation: how ReFIT's paper merges the two rounds is not known here; `union_rerank` is
this project's default. It reads as many documents as reranking 2 K: the second round
passes over what the first one read, so that a query that does not move is answered as
by `retrieve_and_rerank` with a pool of 2 K, and one that moves trades the documents
K + 1 to 2 K of the first search for the second's. (Of the second search's first K most
were read before: those alone would add few.)
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.retrieval import feedback as feedback_lib
from jaxlab.retrieval import index as index_lib
from jaxlab.retrieval import own_documents, refit, rerank

MERGES = ("union_rerank", "second", "rrf")
STAGES = ("retrieve", "rerank", "distil", "retrieve_again")
_RRF = 60.0

# (queries [B, dim], candidates [B, K, dim], reranker's scores [B, K]) -> new queries
Update = Callable[[np.ndarray, np.ndarray, np.ndarray], refit.RefitResult]


class Candidates(NamedTuple):
    """The first documents of each query by another first stage than the index.

    Attributes:
        rows: i64[Q, N], row numbers of the index, best first. N is at least the number
            of documents that are reranked, and the depth of a ranking, or all there
            are.
        scores: f32[Q, N], falling.
        seconds: what finding them took.
    """

    rows: np.ndarray
    scores: np.ndarray
    seconds: float = 0.0


class Answer(NamedTuple):
    """Rankings of queries.

    Attributes:
        rows: i64[Q, depth], row numbers of the index, best first.
        scores: f32[Q, depth], falling.
        queries: f32[Q, dim], the vectors that were searched with last.
        reranked: i64[Q], how many documents the reranker was asked about.
        seconds: stage -> of all queries; one of STAGES.
    """

    rows: np.ndarray
    scores: np.ndarray
    queries: np.ndarray
    reranked: np.ndarray
    seconds: dict[str, float]


def retrieve(
    index: index_lib.Index,
    queries: np.ndarray,
    *,
    depth: int = 100,
    candidates: Candidates | None = None,
    own: np.ndarray | None = None,
) -> Answer:
    """The nearest documents, or the candidates themselves, without a reranker.

    Args:
        index: of the documents.
        queries: [Q, dim].
        depth: of the ranking; of fewer documents, all.
        candidates: instead of the nearest documents.
        own: each query's own document, which is left out; of `own_documents.find`.
    """
    watch = _Watch(candidates)
    search = own_documents.Searches(index, own, candidates)
    with watch("retrieve"):
        scores, rows = search.first(queries, depth)
    rows = rows.astype(np.int64)
    none = np.zeros(len(rows), np.int64)
    return Answer(rows, scores, _vectors(queries), none, watch.seconds)


def retrieve_and_rerank(
    index: index_lib.Index,
    queries: np.ndarray,
    reranker: rerank.Reranker,
    *,
    pool: int = 100,
    depth: int = 100,
    candidates: Candidates | None = None,
    own: np.ndarray | None = None,
) -> Answer:
    """The nearest `pool` documents in the reranker's order, then the next nearest.

    Args:
        index, queries, depth, candidates, own: as for `retrieve`.
        reranker: see `rerank`.
        pool: how many documents it orders.

    Raises:
        UserError: a score that is not a number (names query and document).
    """
    watch, ask = _Watch(candidates), _CountingReranker(index, reranker, len(queries))
    search = own_documents.Searches(index, own, candidates)
    pool = search.limit(pool)
    with watch("retrieve"):
        _, rows = search.first(queries, max(pool, depth))
    with watch("rerank"):
        scores = ask(0, rows[:, :pool])
    ranked = [
        _rank(rows[i, :pool], scores[i], rows[i], depth) for i in range(len(rows))
    ]
    return _answer(ranked, _vectors(queries), ask.counts, watch)


def feedback(
    index: index_lib.Index,
    queries: np.ndarray,
    reranker: rerank.Reranker,
    *,
    update: Update = refit.refit_queries,
    merge: str = "union_rerank",
    k: int = 100,
    depth: int = 100,
    batch: int = 64,
    candidates: Candidates | None = None,
    own: np.ndarray | None = None,
) -> Answer:
    """Two rounds: the reranker's scores of the first one change the queries.

    Args:
        index, queries, reranker, depth, candidates, own: as for `retrieve_and_rerank`;
            the second round always searches the index.
        update: makes new queries, e.g. `refit_queries` with `functools.partial`.
            Encoders of unit length want `relative=True` there.
        merge: one of MERGES.
        k: documents that the reranker reads in a round.
        batch: queries at a time; bounds the memory, and is the one compiled shape.

    Raises:
        UserError: as `retrieve_and_rerank`; an unknown merge; a batch or k below 1.

    >>> index = index_lib.Index(np.eye(3))
    >>> likes = np.array([0.0, 0.0, 9.0])
    >>> answer = feedback(index, np.array([[2.0, 1.0, 0.0]]), lambda q, r: likes[r],
    ...                   k=2, depth=3)
    >>> answer.rows.tolist(), answer.reranked.tolist()
    ([[2, 0, 1]], [3])
    """
    if merge not in MERGES:
        raise errors.UserError(f"merge {merge!r}; use one of {', '.join(MERGES)}")
    if batch < 1:
        raise errors.UserError(f"batch {batch}; use 1 or more")
    watch, ask = _Watch(candidates), _CountingReranker(index, reranker, len(queries))
    search = own_documents.Searches(index, own, candidates)
    k, twice = search.limit(k), search.limit(2 * k)
    ranked, moved = [], []
    for start in range(0, len(queries), batch):
        some = _vectors(queries[start : start + batch])
        with watch("retrieve"):
            _, rows = search.first(some, k, start)
        with watch("rerank"):
            scores = ask(start, rows)
        with watch("distil"):
            new = _update_queries(update, some, index.take(rows), scores, batch)
        with watch("retrieve_again"):
            near, again = search.nearest(new, max(twice, depth), start)
        moved.append(new)
        for i in range(len(some)):
            if merge == "second":
                ranked.append((again[i, :depth], near[i, :depth]))
            elif merge == "rrf":
                ranked.append(_rank_fusion(rows[i], scores[i], again[i], depth))
        if merge == "union_rerank":
            with watch("rerank"):
                ranked += _rank_union(ask, start, rows, scores, again, twice, depth)
    return _answer(ranked, _concatenate(moved, queries), ask.counts, watch)


def tour(
    index: index_lib.Index,
    queries: np.ndarray,
    reranker: rerank.Reranker,
    *,
    form: str = "hard",
    turns: int = 3,
    k: int = 10,
    depth: int = 100,
    learning_rate: float = 1.2,
    candidates: Candidates | None = None,
    own: np.ndarray | None = None,
) -> Answer:
    """TouR: `turns` times retrieve k, rerank, one step; then all that was reranked.

    Args:
        index, queries, reranker, depth, candidates, own: as for `feedback`.
        form: "hard" or "soft"; see `feedback.tour_queries`.
        turns, k, learning_rate: of the released loop.

    Returns:
        What the reranker read, in its order; then the nearest to the last queries.
    """
    watch, ask = _Watch(candidates), _CountingReranker(index, reranker, len(queries))
    current, previous = _vectors(queries), None
    search = own_documents.Searches(index, own, candidates)
    k = search.limit(k)
    with watch("retrieve"):
        _, rows = search.first(current, k)
    seen: list[dict[int, float]] = [{} for _ in current]
    for turn in range(turns):
        with watch("rerank"):
            scores = ask(0, rows)
        for known, some, values in zip(seen, rows, scores, strict=True):
            known.update(zip(some.tolist(), values.tolist(), strict=True))
        with watch("distil"):
            step = feedback_lib.tour_queries(
                current, index.take(rows), scores, form=form, turn=turn, turns=turns,
                previous=previous, learning_rate=learning_rate,
            )  # fmt: skip
            previous, current = current, np.asarray(step.queries)
        with watch("retrieve_again"):
            _, nearest = search.nearest(current, max(k, depth))
        rows = nearest[:, :k]
    ranked = [
        _rank(np.array([*known]), np.array([*known.values()]), nearest[i], depth)
        for i, known in enumerate(seen)
    ]
    return _answer(ranked, current, ask.counts, watch)


class _Watch:
    """Seconds by stage; `with watch(stage)` adds to them."""

    def __init__(self, candidates: Candidates | None = None):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        if candidates is not None:
            self.seconds["retrieve"] = candidates.seconds

    def __call__(self, stage: str) -> "_Watch":
        self._stage, self._started = stage, time.perf_counter()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_) -> None:
        self.seconds[self._stage] += time.perf_counter() - self._started


class _CountingReranker:
    """The reranker, asked about rows of a batch of queries; no pair twice."""

    def __init__(self, index, reranker, count):
        self._index, self._reranker = index, reranker
        self._known: list[dict[int, float]] = [{} for _ in range(count)]

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(known) for known in self._known], np.int64)

    def __call__(self, start: int, rows) -> np.ndarray:
        """f32[B, K] of rows [B, K], or of B lists of rows, flat."""
        numbers = np.repeat(np.arange(len(rows)) + start, [len(row) for row in rows])
        flat = np.concatenate([*rows, []]).astype(np.int64)
        pairs = list(zip(numbers.tolist(), flat.tolist(), strict=True))
        new = [pair for pair in pairs if pair[1] not in self._known[pair[0]]]
        if new:
            query, row = np.array(new, np.int64).T
            scores = np.asarray(self._reranker(query, row), np.float32)
            self._refuse(scores, query, row)
            for (i, document), score in zip(new, scores.tolist(), strict=True):
                self._known[i][document] = score
        flat = np.array([self._known[i][document] for i, document in pairs], "f4")
        return flat.reshape(np.shape(rows)) if isinstance(rows, np.ndarray) else flat

    def _refuse(self, scores, query, row) -> None:
        if scores.shape != query.shape:
            raise errors.UserError(
                f"the reranker returned shape {scores.shape} for {len(query)} pairs; "
                "return one score per pair"
            )
        if len(bad := np.flatnonzero(~np.isfinite(scores))):
            raise errors.UserError(
                f"the reranker gave {scores[bad[0]]} for query {query[bad[0]]} and "
                f"document {self._index.ids[row[bad[0]]]}; give finite scores"
            )


def _update_queries(update, queries, candidates, scores, batch) -> np.ndarray:
    """New queries; a short batch is filled up, so that nothing is compiled again."""
    missing = batch - len(queries)
    given = [
        np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x
        for x in (queries, candidates, scores)
    ]
    return np.asarray(update(*given).queries[: len(queries)], np.float32)


def _rank_union(ask, start, rows, scores, again, twice, depth):
    """The rankings of a batch by `union_rerank`; `twice` documents are read in all."""
    fresh = [
        after[~np.isin(after, before)][: twice - len(before)]
        for before, after in zip(rows, again[:, :twice], strict=True)
    ]
    told = np.split(ask(start, fresh), np.cumsum([len(x) for x in fresh])[:-1])
    return [
        _rank(
            np.concatenate([rows[i], fresh[i]]),
            np.concatenate([scores[i], told[i]]),
            again[i],
            depth,
        )
        for i in range(len(rows))
    ]


def _rank(rows, scores, rest, depth):
    """(rows, scores): by score, equal ones as they come; then the rest in its order."""
    order = np.argsort(-scores, kind="stable")
    rows, scores = rows[order], scores[order].astype(np.float32)
    left = rest[~np.isin(rest, rows)]
    lowest = scores[-1] if len(scores) else np.float32(0)
    below = lowest - 1 - np.arange(len(left), dtype=np.float32)
    return np.concatenate([rows, left])[:depth], np.concatenate([scores, below])[:depth]


def _rank_fusion(rows, scores, again, depth):
    """(rows, scores) by reciprocal ranks of the reranked and of the second round."""
    total: dict[int, float] = {}
    for ranked in (rows[np.argsort(-scores, kind="stable")], again):
        for rank, row in enumerate(ranked.tolist(), start=1):
            total[row] = total.get(row, 0.0) + 1 / (_RRF + rank)
    values = np.array([*total.values()], np.float32)
    order = np.argsort(-values, kind="stable")[:depth]
    return np.array([*total])[order], values[order]


def _answer(ranked, queries, counts, watch) -> Answer:
    """Rankings as arrays: all are as deep, the index holding what it holds."""
    rows = np.array([rows for rows, _ in ranked], np.int64)
    scores = np.array([scores for _, scores in ranked], np.float32)
    return Answer(rows, scores, queries, counts, watch.seconds)


def _vectors(queries) -> np.ndarray:
    return np.asarray(queries, np.float32)


def _concatenate(parts, queries) -> np.ndarray:
    return np.concatenate(parts) if parts else _vectors(queries)
