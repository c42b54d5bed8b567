"""The comparison of feedback: every row, its files and its page."""

import json
import re

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.retrieval import formats, metrics, own_documents, rerank
from jaxlab.systems.refit import comparison, report
from tests.support import reranking


@pytest.mark.slow
def test_a_comparison_writes_runs_measures_and_a_page(tmp_path):
    index, vectors, reranker = reranking.problem()
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :5]
    names = [f"q{i}" for i in range(len(vectors))]
    qrels = {
        name: {str(row): 1 for row in rows}
        for name, rows in zip(names, best, strict=True)
    }
    queries = comparison.Queries(names, [""] * len(names), vectors, qrels)
    chosen = comparison.Settings(
        k=20, learning_rate=0.05, updates=(0, 10), feedback=(5, 20)
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
        written = (tmp_path / "results" / f"{name}.tsv").read_text().splitlines()
        column = written[0].split("\t").index("ndcg@10")
        values = [float(line.split("\t")[column]) for line in written[1:]]
        assert values == again.values["ndcg@10"].tolist()
    numbers = json.loads((tmp_path / "report.json").read_text())
    value, low, high = numbers["rows"]["refit"]["less"]["rerank_2k"]["recall@20"]
    assert low < value < high
    assert value == pytest.approx(recall["refit"] - recall["rerank_2k"], abs=1e-6)
    page = (tmp_path / "report.html").read_text()
    assert "A &amp; B" in page
    first = page.split("</h1>")[1].split("</p>")[0]
    assert "refit, with" in first
    assert "finds more in recall@20" in first
    assert "query won" in page
    assert "<b>" not in page
    with pytest.raises(errors.UserError, match="no row best"):
        comparison.compare(
            index, queries, kept, comparison.Settings(rows=("best",)), tmp_path
        )


@pytest.mark.parametrize(("k", "depth"), [(4, None), (7, 7), (7, 30)])
def test_recall_is_of_the_first_k_whatever_the_rankings_hold(tmp_path, k, depth):
    index, vectors, _ = reranking.problem()
    names = [str(i) for i in range(len(vectors))]
    near = index.search_rows(vectors, 2 * k)[1]
    # Relevant: one document that K reach, and one that only 2 K reach.
    qrels = {
        name: {str(rows[0]): 1, str(rows[2 * k - 1]): 1}
        for name, rows in zip(names, near, strict=True)
    }

    def knows(queries, rows):
        judged = zip(queries.tolist(), rows.tolist(), strict=True)
        return np.array([float(str(row) in qrels[names[i]]) for i, row in judged])

    rows = ("bi-encoder", "rerank", "rerank_2k")
    chosen = comparison.Settings(rows, k=k, depth=depth, updates=(0,), feedback=(k,))
    queries = comparison.Queries(names, names, vectors, qrels)
    kept = rerank.CachedReranker(knows)
    outcomes = comparison.compare(index, queries, kept, chosen, tmp_path)
    found = {name: x.evaluation.means[f"recall@{k}"] for name, x in outcomes.items()}
    assert found == {"bi-encoder": 0.5, "rerank": 0.5, "rerank_2k": 1.0}
    assert outcomes["rerank"].answer.rows.shape == (len(names), depth or k)
    curves = comparison.curves(index, queries, kept, chosen)
    assert curves.by_updates == {0: 0.5}
    report.write(
        tmp_path, "A", outcomes, queries,
        formats.Corpus([str(i) for i in range(300)], [""] * 300, [""] * 300),
        chosen, curves, 1.0,
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    written = json.loads((tmp_path / "report.json").read_text())["rows"]["rerank_2k"]
    printed = report.spell_table(outcomes, chosen)
    for text in (page, printed, json.dumps(written)):
        assert {*re.findall(r"recall@\d+", text)} == {f"recall@{k}"}
    assert written["less"]["rerank"][f"recall@{k}"] == [0.5, 0.5, 0.5]


def test_rankings_that_are_shorter_than_k_are_refused(tmp_path):
    index, vectors, reranker = reranking.problem()
    queries = comparison.Queries([*range(len(vectors))], [], vectors)
    chosen = comparison.Settings(k=10, depth=9)
    with pytest.raises(errors.UserError, match="depth 9 is less than k 10"):
        comparison.compare(index, queries, reranker, chosen, tmp_path)


def test_of_few_queries_there_is_no_interval_and_no_star():
    few = [
        metrics.Evaluation(("a", "b"), {"ndcg@10": np.array(x)})
        for x in ([1.0, 0.75], [0.5, 0.25])
    ]
    value, low, high = comparison.difference(*few, "ndcg@10")
    assert value == 0.5
    assert np.isnan([low, high]).all()
    found = report.against_first({"b": few[1], "a": few[0]})["a"]["ndcg@10"]
    said = report.spell_difference(found)
    assert said == "+0.500 (too few queries for an interval)"


def test_a_querys_own_document_is_neither_read_nor_ranked_nor_measured(tmp_path):
    index, vectors, _ = reranking.problem()
    vectors = 2 * index.take(np.arange(len(vectors)))  # each query finds itself first
    names = [str(i) for i in range(len(vectors))]
    qrels = {x: {"0" if x == "1" else "1": 1} for x in names} | {"5": {"5": 1}}
    asked = []

    def reranker(queries, rows):
        asked.extend(zip(queries.tolist(), rows.tolist(), strict=True))
        return -np.asarray(rows, np.float32)

    own = own_documents.find(names, index.ids, qrels)
    queries = comparison.Queries(names, names, vectors, qrels, own=own)
    rows = ("bi-encoder", "rerank", "average")
    chosen = comparison.Settings(rows, k=10, depth=10, updates=(0,), feedback=())
    kept = rerank.CachedReranker(reranker)
    comparison.compare(index, queries, kept, chosen, tmp_path)
    comparison.curves(index, queries, kept, chosen)
    assert {query for query, row in asked if query == row} == {5}  # it is judged
    for file in (tmp_path / "runs").iterdir():
        run = formats.read_run(file)
        assert {x for x in names if x in run[x]} <= {"5"}
        assert {*map(len, run.values())} == {10}
