"""ReFIT and what it is compared with, on one set of queries.

    row            what happens                                  calls per query
    bi-encoder     one retrieval                                        0
    bm25           one retrieval by words, where that is the first      0
    rerank         its first K by the reranker                          K
    rerank_2k      its first 2 K: the budget that feedback may use      2 K
    average        q := mean(q, 3 best of the reranker), both rounds    2 K
    rocchio        q := .4 q + .6 mean(5 best of the reranker)          2 K
    tour_hard      three rounds of 10, one step each                    up to 30
    tour_soft
    refit_second   ReFIT as its paper evaluates it: the second round    K
    refit_rrf      ReFIT, ranks of both rounds fused                    K
    refit          ReFIT, both rounds by the reranker                   2 K

Recall is that of the first K, as in the paper: there "rerank" has what the bi-encoder
has, and "rerank_2k" the best K of 2 K. Deeper, rerank_2k could change nothing.

Reddy et al. 2023 (arXiv:2305.11744); the others: `jaxlab.retrieval.feedback` and
`feedback_loop`. All share one reranker whose answers are kept, so that a pair is scored
once and a killed comparison goes on; a row is charged for each pair it asks for, as if
alone.

The first round is the bi-encoder's, or that of another first stage (BM25) where the
queries come with candidates; the second round is always the bi-encoder's.

Deviation: published vector feedback takes the retriever's first documents. Here it gets
the reranker's, as ReFIT does: what is compared is what is done with them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.retrieval import (
    feedback,
    feedback_loop,
    formats,
    metrics,
    own_documents,
    rerank,
)

REFERENCES = ("rerank", "rerank_2k")  # that every row is compared with
METRICS = ("recall@{k}", "ndcg@10", "mrr@10")
LEAST_QUERIES = 6  # of five no sign-flip test can say less than p = 0.06


@dataclasses.dataclass(frozen=True)
class Settings:
    """A comparison as data.

    Attributes:
        rows: of the table, names of ROWS or "bm25".
        k: documents that the reranker reads in a round, and the depth of recall.
        depth: of the rankings, k or more; None: k.
        learning_rate: of Adam, relative to the query's coordinates (see
            `retrieval.refit`). Chosen on queries that no table has: see README.
        num_updates: of ReFIT.
        max_drift: bound on 1 - cos of a query and its start; None: none.
        updates: numbers of updates of the curve.
        feedback: numbers of documents of the curve.
    """

    rows: tuple[str, ...] = ()
    k: int = 100
    depth: int | None = None
    learning_rate: float = 0.005
    num_updates: int = 100
    max_drift: float | None = None
    updates: tuple[int, ...] = (0, 1, 3, 10, 30, 100)
    feedback: tuple[int, ...] = (5, 10, 20, 50, 100)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(name.format(k=self.k) for name in METRICS)

    @property
    def recall(self) -> str:
        """The name of the recall."""
        return self.metrics[0]

    @property
    def ranked(self) -> int:
        """How many documents a ranking has."""
        return self.k if self.depth is None else self.depth

    @property
    def candidates(self) -> int:
        """How many documents per query a first stage must find, its own among them."""
        return max(2 * self.k, self.ranked) + 1


class Queries(NamedTuple):
    """What is asked.

    Attributes:
        ids, texts: of the queries; a text may be "".
        vectors: f32[Q, dim].
        qrels: judgments, or None.
        candidates: their first documents by BM25; None: by the bi-encoder.
        own: each query's own document, which is left out of all that happens; of
            `own_documents.find`.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: np.ndarray
    qrels: metrics.Qrels | None = None
    candidates: feedback_loop.Candidates | None = None
    own: np.ndarray | None = None

    def as_run(self, answer: feedback_loop.Answer, ids: np.ndarray) -> metrics.Run:
        """The rankings by document id."""
        run = metrics.as_run(self.ids, answer.scores, ids[answer.rows])
        if self.own is None:
            return run
        return own_documents.leave_out(run, self.qrels)[0]


class Outcome(NamedTuple):
    """The outcome of a row of the table.

    Attributes:
        answer: rankings; its seconds of reranking are what the pairs cost when they
            were scored.
        evaluation: measures by query; None without judgments.
    """

    answer: feedback_loop.Answer
    evaluation: metrics.Evaluation | None


class Curves(NamedTuple):
    """Recall of the first K: by updates and by documents of feedback."""

    by_updates: dict[int, float]
    by_feedback: dict[int, dict[str, float]]


def compare(
    index: retrieval.Index,
    queries: Queries,
    reranker: rerank.CachedReranker,
    settings: Settings,
    workdir: pathlib.Path,
    *,
    done: Callable[[str, float], None] = lambda name, share: None,
) -> dict[str, Outcome]:
    """Answers the queries in every way; writes runs/ROW.trec and results/ROW.tsv.

    Args:
        index: of the documents.
        queries: to be answered.
        reranker: that is charged.
        settings: which rows, and how.
        workdir: gets the files.
        done: called with (row, share of all rows that are done).

    Returns:
        Row -> outcome, in the table's order.

    Raises:
        UserError: no query, an unknown row, judgments of other queries, rankings of
            fewer than K documents.
    """
    if settings.ranked < settings.k:
        raise errors.UserError(
            f"depth {settings.depth} is less than k {settings.k}, the depth of recall; "
            f"use {settings.k} or more, or leave it out"
        )
    rows = dict(ROWS)
    if queries.candidates is not None:
        rows = {"bm25": _retrieve_by_words, **rows}
    names = settings.rows or tuple(rows)
    if unknown := [name for name in names if name not in rows]:
        raise errors.UserError(f"no row {', '.join(unknown)}; use {', '.join(rows)}")
    if not len(queries.ids):
        raise errors.UserError("no queries; give at least one")
    for folder in ("runs", "results"):
        (workdir / folder).mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for count, name in enumerate(names, start=1):
        before = reranker.seconds
        answer = rows[name](index, queries, reranker, settings)
        answer.seconds["rerank"] = reranker.seconds - before
        run = queries.as_run(answer, index.ids)
        formats.write_run(workdir / "runs" / f"{name}.trec", run, tag=name)
        evaluation = None
        if queries.qrels is not None:
            evaluation = metrics.evaluate(queries.qrels, run, settings.metrics)
            formats.write_results(workdir / "results" / f"{name}.tsv", evaluation)
        outcomes[name] = Outcome(answer, evaluation)
        done(name, count / len(names))
    return outcomes


def curves(
    index: retrieval.Index,
    queries: Queries,
    reranker: rerank.Reranker,
    settings: Settings,
) -> Curves:
    """Recall by the number of updates (second round alone), and by that of documents.

    Args:
        index, queries, reranker, settings: as for `compare`; with judgments.
    """

    def recall(merge, **changed):
        # As deep for fewer documents of feedback.
        changed = dataclasses.replace(settings, depth=settings.ranked, **changed)
        answer = _refit(index, queries, reranker, changed, merge=merge)
        run = queries.as_run(answer, index.ids)
        name = settings.recall
        return metrics.evaluate(queries.qrels, run, (name,)).means[name]

    return Curves(
        {n: recall("second", num_updates=n) for n in settings.updates},
        {
            k: {merge: recall(merge, k=k) for merge in ("second", "union_rerank")}
            for k in settings.feedback
            if k <= settings.k
        },
    )


def differences(
    outcomes: Mapping[str, Outcome], settings: Settings
) -> dict[str, dict[str, dict[str, tuple[float, float, float]]]]:
    """Row -> reference -> metric -> (difference, and its paired-bootstrap interval)."""
    result: dict = {}
    for name, outcome in outcomes.items():
        for reference in REFERENCES:
            if name == reference or reference not in outcomes:
                continue
            other = outcomes[reference].evaluation
            result.setdefault(name, {})[reference] = {
                metric: difference(outcome.evaluation, other, metric)
                for metric in settings.metrics
            }
    return result


def difference(
    a: metrics.Evaluation, b: metrics.Evaluation, metric: str
) -> tuple[float, float, float]:
    """Mean of `a` less that of `b`, and the ends of its paired-bootstrap interval.

    Of fewer than LEAST_QUERIES, whose resamples are no sample, the ends are NaN.
    """
    if len(a.queries) < LEAST_QUERIES:
        return float(np.mean(a.values[metric] - b.values[metric])), np.nan, np.nan
    key = jax.random.key(0)
    interval = metrics.compare(a, b, metric, key=key, resamples=10_000)
    return float(interval.value), float(interval.low), float(interval.high)


def _refit(index, queries, reranker, settings, *, merge) -> feedback_loop.Answer:
    update = functools.partial(
        retrieval.refit_queries,
        relative=True,
        learning_rate=settings.learning_rate,
        num_updates=settings.num_updates,
        max_drift=settings.max_drift,
    )
    return _two_rounds(index, queries, reranker, settings, update, merge)


def _two_rounds(index, queries, reranker, settings, update, merge="union_rerank"):
    return feedback_loop.feedback(
        index,
        queries.vectors,
        reranker,
        update=update,
        merge=merge,
        k=settings.k,
        depth=settings.ranked,
        candidates=queries.candidates,
        own=queries.own,
    )


def _retrieve(index, queries, reranker, settings):
    return feedback_loop.retrieve(
        index, queries.vectors, depth=settings.ranked, own=queries.own
    )


def _retrieve_by_words(index, queries, reranker, settings):
    return feedback_loop.retrieve(
        index,
        queries.vectors,
        depth=settings.ranked,
        candidates=queries.candidates,
        own=queries.own,
    )


def _rerank(index, queries, reranker, settings, *, times):
    return feedback_loop.retrieve_and_rerank(
        index,
        queries.vectors,
        reranker,
        pool=times * settings.k,
        depth=settings.ranked,
        candidates=queries.candidates,
        own=queries.own,
    )


def _average(index, queries, reranker, settings):
    def update(vectors, candidates, scores):
        return feedback.average_queries(vectors, candidates, scores=scores)

    return _two_rounds(index, queries, reranker, settings, update)


def _rocchio(index, queries, reranker, settings):
    def update(vectors, candidates, scores):
        return feedback.rocchio_queries(vectors, candidates, scores=scores)

    return _two_rounds(index, queries, reranker, settings, update)


def _tour(index, queries, reranker, settings, *, form):
    return feedback_loop.tour(
        index,
        queries.vectors,
        reranker,
        form=form,
        depth=settings.ranked,
        candidates=queries.candidates,
        own=queries.own,
    )


ROWS: dict[str, Callable[..., feedback_loop.Answer]] = {
    "bi-encoder": _retrieve,
    "rerank": functools.partial(_rerank, times=1),
    "rerank_2k": functools.partial(_rerank, times=2),
    "average": _average,
    "rocchio": _rocchio,
    "tour_hard": functools.partial(_tour, form="hard"),
    "tour_soft": functools.partial(_tour, form="soft"),
    "refit_second": functools.partial(_refit, merge="second"),
    "refit_rrf": functools.partial(_refit, merge="rrf"),
    "refit": functools.partial(_refit, merge="union_rerank"),
}
