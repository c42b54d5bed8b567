"""Measures of rankings by trec_eval's conventions.

    recall@k  R_k / R              R: relevant documents, R_k: those among the first k
    map@k     1/R sum_{r <= k, r relevant} R_r / r
    mrr@k     1 / rank of the first relevant one, 0 beyond k
    ndcg@k    DCG / DCG of the best order;   DCG = sum_{r <= k} gain_r / log2(r + 1)

Without @k the whole ranking counts. Relevant is what was judged 1 or more; the gain is
the judgment, and 0 of what was not judged or judged below 0. A ranking is by score in
f32, equal scores by document id, the larger string first; ranks written in a run do not
count. trec_eval's names: recall, map_cut, recip_rank, ndcg_cut. nDCG: Järvelin and
Kekäläinen 2002, *Cumulated gain-based evaluation of IR techniques*.

Means are over all judged queries, as with `trec_eval -c`: one without a relevant
document has 0, and so has one that the run lacks. *Deviation* from trec_eval's default,
which leaves out the latter: runs that answer other queries could not be compared.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlab.core import errors
from jaxlab.stats import bootstrap

Run = Mapping[str, Mapping[str, float]]  # query id -> document id -> score
Qrels = Mapping[str, Mapping[str, int]]  # query id -> document id -> judgment

DEFAULT = ("ndcg@10", "recall@100", "mrr@10", "map@100")
_METRIC = re.compile(r"(recall|map|mrr|ndcg)(?:@([1-9]\d*))?")


class Evaluation(NamedTuple):
    """Measures of one run, query by query.

    Attributes:
        queries: ids of the judged queries, in order of the judgments.
        values: metric -> f64[queries].
        missing: ids of judged queries that the run lacks; they count as 0.
    """

    queries: tuple[str, ...]
    values: dict[str, np.ndarray]
    missing: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean over queries."""
        return {name: float(value.mean()) for name, value in self.values.items()}


def evaluate(qrels: Qrels, run: Run, metrics: Sequence[str] = DEFAULT) -> Evaluation:
    """Measures a run; queries that nobody judged are left out.

    Args:
        qrels: judgments, whole numbers.
        run: scores; higher is better.
        metrics: "recall@k", "map@k", "mrr@k", "ndcg@k", or the names alone.

    Raises:
        UserError: an unknown metric, no judged query, none of them in the run, or a
            score that is NaN.

    >>> qrels, run = {"q": {"a": 1, "b": 2}}, {"q": {"c": 3, "a": 2}}
    >>> evaluate(qrels, run, ["map@5"]).means
    {'map@5': 0.25}
    """
    parsed = {name: _parse(name) for name in metrics}
    judged = {query: judgments for query, judgments in qrels.items() if judgments}
    missing = tuple(query for query in judged if query not in run)
    if len(missing) == len(judged):
        raise errors.UserError(
            f"the run holds none of the {len(judged)} judged queries; compare their ids"
        )
    rows = {name: np.zeros(len(judged)) for name in metrics}
    for row, (query, judgments) in enumerate(judged.items()):
        ranked = ranking(run.get(query, {}), query)
        gains = np.array([max(judgments.get(x, 0), 0) for x in ranked], float)
        ideal = np.sort([max(j, 0) for j in judgments.values()])[::-1].astype(float)
        for name, (kind, depth) in parsed.items():
            rows[name][row] = _MEASURES[kind](gains[:depth], ideal[:depth], ideal)
    return Evaluation(tuple(judged), rows, missing)


def ranking(scores: Mapping[str, float], query: str = "") -> list[str]:
    """Document ids, best first: by f32 score, then by id, larger strings first.

    >>> ranking({"a": 1.0, "b": 1.0, "c": 2.0})
    ['c', 'b', 'a']
    """
    ids = sorted(scores, reverse=True)
    values = np.array([scores[x] for x in ids], np.float32)
    if np.isnan(values).any():
        bad = ids[int(np.argmax(np.isnan(values)))]
        raise errors.UserError(f"query {query!r}: the score of {bad!r} is NaN")
    return [ids[i] for i in np.argsort(-values, kind="stable")]


def compare(
    a: Evaluation,
    b: Evaluation,
    metric: str,
    *,
    key: jax.Array,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> bootstrap.Interval:
    """Paired-bootstrap interval of the mean of `a` minus that of `b`.

    Args:
        a, b: evaluations of the same queries.
        metric: that both hold.
        key: of the resampling of queries.
        resamples: how many.
        confidence: of the two-sided interval.

    Raises:
        UserError: other queries, or a metric that was not measured.
    """
    if a.queries != b.queries:
        raise errors.UserError("the evaluations are of other queries; use one qrels")
    if lacking := {metric} - (a.values.keys() & b.values.keys()):
        raise errors.UserError(f"{lacking.pop()} was not measured in both")
    return bootstrap.paired_difference(
        a.values[metric],
        b.values[metric],
        key=key,
        resamples=resamples,
        confidence=confidence,
    )


def as_run(
    queries: Sequence[str], scores: np.ndarray, ids: np.ndarray
) -> dict[str, dict[str, float]]:
    """A run of what `Index.search` returns; ids become strings.

    >>> as_run(["q"], np.array([[0.5, 0.25]], np.float32), np.array([[7, 3]]))
    {'q': {'7': 0.5, '3': 0.25}}
    """
    rankings = zip(queries, np.asarray(scores), np.asarray(ids), strict=True)
    return {
        query: {str(x): float(s) for x, s in zip(documents, values, strict=True)}
        for query, values, documents in rankings
    }


def _parse(name):
    match = _METRIC.fullmatch(name)
    if match is None:
        raise errors.UserError(
            f"unknown metric {name!r}; use recall, map, mrr or ndcg, with @k for the "
            "first k, e.g. ndcg@10"
        )
    return match[1], None if match[2] is None else int(match[2])


def _recall(gains, best, ideal):
    relevant = np.count_nonzero(ideal)
    return np.count_nonzero(gains) / relevant if relevant else 0.0


def _average_precision(gains, best, ideal):
    relevant, ranks = np.count_nonzero(ideal), 1 + np.flatnonzero(gains)
    return np.sum(np.arange(1, len(ranks) + 1) / ranks) / relevant if relevant else 0.0


def _reciprocal_rank(gains, best, ideal):
    ranks = np.flatnonzero(gains)
    return 1 / (1 + ranks[0]) if len(ranks) else 0.0


def _ndcg(gains, best, ideal):
    highest = _dcg(best)
    return _dcg(gains) / highest if highest else 0.0


def _dcg(gains):
    return np.sum(gains / np.log2(np.arange(2, len(gains) + 2)))


# Each takes the gains of the ranking and the highest gains, both cut at k, and all.
_MEASURES = {
    "recall": _recall,
    "map": _average_precision,
    "mrr": _reciprocal_rank,
    "ndcg": _ndcg,
}
