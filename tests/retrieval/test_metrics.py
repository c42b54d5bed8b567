"""Measures by hand and by trec_eval, and comparisons of runs."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors
from jaxlab.retrieval import metrics

quick = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**16)


QRELS = {
    "q1": {"a": 2, "b": 1, "c": 0, "d": -1, "e": 1},
    "q2": {"a": 1},
    "q3": {"a": 0},
    "q4": {"z": 1},
}
RUN = {
    "q1": {"d": 5.0, "b": 4.0, "x": 3.0, "a": 2.0, "c": 1.0},
    "q2": {"a": 1.0, "b": 1.0},
    "q3": {"a": 1.0},
    "q9": {"a": 1.0},
}
ALL = ("recall@2", "recall@10", "recall", "map@2", "map@10", "map", "mrr@1", "mrr@10",
       "mrr", "ndcg@2", "ndcg@10", "ndcg")  # fmt: skip


def test_measures_are_what_they_are_by_hand():
    found = metrics.evaluate(QRELS, RUN, ALL)
    assert found.queries == ("q1", "q2", "q3", "q4")
    assert found.missing == ("q4",)
    # q1 ranks d b x a c: gains 0 1 0 2 0, three relevant. q2: b before a, as they tie.
    log = np.log2([2, 3, 4, 5, 6])
    best = 2 / log[0] + 1 / log[1] + 1 / log[2]
    wanted = {
        "recall@2": [1 / 3, 1],
        "recall@10": [2 / 3, 1],
        "map@2": [1 / 2 / 3, 1 / 2],
        "map@10": [(1 / 2 + 2 / 4) / 3, 1 / 2],
        "mrr@1": [0, 0],
        "mrr@10": [1 / 2, 1 / 2],
        "ndcg@2": [(1 / log[1]) / (2 / log[0] + 1 / log[1]), 1 / log[1]],
        "ndcg@10": [(1 / log[1] + 2 / log[3]) / best, 1 / log[1]],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found.values[name], [*values, 0, 0], rtol=1e-15)
        assert found.means[name] == pytest.approx(sum(values) / 4, rel=1e-15)
    for name in ("recall", "map", "mrr", "ndcg"):
        np.testing.assert_array_equal(found.values[name], found.values[f"{name}@10"])


def test_scores_tie_in_f32_and_the_larger_id_comes_first():
    assert metrics.ranking({"9": 1.0, "10": 1.0 + 1e-9, "b": 1.0}) == ["b", "9", "10"]


def test_runs_are_compared_query_by_query():
    qrels = {f"q{i}": {"a": 1} for i in range(40)}
    first = {f"q{i}": {"a": 1.0, "b": 0.0} for i in range(40)}
    second = {f"q{i}": {"a": 1.0, "b": 2.0 * (i % 4 == 0)} for i in range(40)}
    a, b = (metrics.evaluate(qrels, run, ["mrr"]) for run in (first, second))
    low, value, high = metrics.compare(a, b, "mrr", key=jax.random.key(0))
    assert 0 < low < value < high
    assert float(value) == pytest.approx(0.125, rel=1e-6)  # one in four at rank 2
    with pytest.raises(errors.UserError, match="map was not measured"):
        metrics.compare(a, b, "map", key=jax.random.key(0))
    fewer = metrics.evaluate({"q0": {"a": 1}}, first, ["mrr"])
    with pytest.raises(errors.UserError, match="other queries"):
        metrics.compare(a, fewer, "mrr", key=jax.random.key(0))


@pytest.mark.parametrize(
    ("run", "names", "message"),
    [
        (RUN, ["P@5"], "unknown metric 'P@5'"),
        (RUN, ["ndcg@0"], "unknown metric"),
        ({"q7": {"a": 1.0}}, ["map"], "none of the 4 judged queries"),
        ({"q1": {"a": float("nan")}}, ["map"], "'q1': the score of 'a' is NaN"),
    ],
)
def test_runs_that_cannot_be_measured_are_said(run, names, message):
    with pytest.raises(errors.UserError, match=message):
        metrics.evaluate(QRELS, run, names)


@pytest.mark.oracle
@quick
@given(seeds)
def test_live_trec_eval_agrees(seed):
    import pytrec_eval

    rng = np.random.default_rng(seed)
    names = [str(i) for i in range(30)]
    qrels = {
        f"q{i}": {str(d): int(rng.integers(-1, 4)) for d in rng.choice(30, 12, False)}
        for i in range(5)
    }
    run = {
        query: {
            d: float(rng.integers(0, 4)) + 1e-9 * rng.random()
            for d in rng.choice(names, 20, False).tolist()
        }
        for query in qrels
    }
    ours = metrics.evaluate(qrels, run, ["recall@5", "map@5", "map", "mrr", "ndcg@5",
                                         "ndcg@100", "ndcg"])  # fmt: skip
    measures = {"recall.5", "map_cut.5", "map", "recip_rank", "ndcg_cut.5,100", "ndcg"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for name, other in zip(
        ours.values,
        ("recall_5", "map_cut_5", "map", "recip_rank", "ndcg_cut_5", "ndcg_cut_100",
         "ndcg"), strict=True,
    ):  # fmt: skip
        wanted = [theirs[query][other] for query in ours.queries]
        np.testing.assert_allclose(ours.values[name], wanted, rtol=1e-12, err_msg=name)
