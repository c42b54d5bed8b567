"""What a comparison of feedback found: one page, and its numbers.

Differences are means over queries with paired-bootstrap intervals (95 %, 10,000
resamples); one whose interval holds 0 is not one, and is printed without a star.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import report
from jaxlab.reports import page as page_lib
from jaxlab.retrieval import feedback_loop, formats, metrics
from jaxlab.systems.refit import comparison

_SHOWN = 5  # queries won, and lost


def write(
    workdir: pathlib.Path,
    title: str,
    outcomes: Mapping[str, comparison.Outcome],
    queries: comparison.Queries,
    corpus: formats.Corpus,
    settings: comparison.Settings,
    curves: comparison.Curves | None,
    seconds: float,
) -> None:
    """Writes WORKDIR/report.html and report.json.

    Args:
        workdir: gets the files.
        title: of the page.
        outcomes: of `refit.compare`.
        queries, settings: as they were compared.
        corpus: texts by row; of vectors without text, empty strings.
        curves: of `refit.curves`, with judgments.
        seconds: that it all took.
    """
    judged = queries.qrels is not None
    differences = comparison.differences(outcomes, settings) if judged else {}
    numbers: dict[str, Any] = {
        "title": title,
        "queries": len(queries.ids),
        "documents": len(corpus.ids),
        "settings": vars(settings),
        "rows": {name: _row(x, differences.get(name)) for name, x in outcomes.items()},
        "seconds": {"total": seconds},
        "versions": report.versions(),
    }
    page = [
        page_lib.note(
            f"{len(queries.ids)} queries, {len(corpus.ids)} documents; the reranker "
            f"reads {settings.k} documents a round, {settings.num_updates} updates, "
            f"rankings to {settings.depth}. * : the interval does not hold 0."
        ),
        page_lib.table(*cells(outcomes, differences, settings)),
    ]
    if curves is not None:
        numbers["curves"] = {
            "recall_by_updates": curves.by_updates,
            "recall_by_feedback": curves.by_feedback,
        }
        page += ["<h2>Recall</h2>", page_lib.image(_curves(curves, settings))]
    page += ["<h2>Latency</h2>", page_lib.image(_latency(outcomes, len(queries.ids)))]
    if judged and {"refit", "rerank"} <= outcomes.keys():
        page += _examples(outcomes, queries, corpus, settings)
    report.write_json(workdir / "report.json", numbers)
    page_lib.write(workdir / "report.html", title, page)


def cells(
    outcomes: Mapping[str, comparison.Outcome],
    differences: Mapping[str, Any],
    settings: comparison.Settings,
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table as text."""
    judged = any(x.evaluation is not None for x in outcomes.values())
    references = [name for name in comparison.REFERENCES if name in outcomes and judged]
    recall, ndcg = settings.metrics[:2]
    head = [
        "row", *(settings.metrics if judged else ()),
        *(f"{name} less {x}" for x in references for name in (recall, ndcg)),
        "reranked", "ms a query",
    ]  # fmt: skip
    body = []
    for name, outcome in outcomes.items():
        against = differences.get(name, {})
        body.append(
            [
                name,
                *(f"{x:.3f}" for x in _means(outcome).values()),
                *(
                    _difference(against.get(x, {}).get(metric))
                    for x in references
                    for metric in (recall, ndcg)
                ),
                f"{outcome.answer.reranked.mean():.0f}",
                f"{1000 * _total(outcome) / len(outcome.answer.rows):.0f}",
            ]
        )
    return head, body


def _row(outcome, against) -> dict[str, Any]:
    count = len(outcome.answer.rows)
    return {
        "metrics": _means(outcome),
        "less": against,
        "reranked_a_query": float(outcome.answer.reranked.mean()),
        "milliseconds_a_query": {
            stage: 1000 * seconds / count
            for stage, seconds in outcome.answer.seconds.items()
        },
    }


def _means(outcome) -> dict[str, float]:
    return {} if outcome.evaluation is None else outcome.evaluation.means


def _total(outcome) -> float:
    return sum(outcome.answer.seconds.values())


def _difference(found) -> str:
    if found is None:
        return ""
    value, low, high = (round(x, 3) + 0.0 for x in found)  # no -0.000
    star = "*" if low > 0 or high < 0 else ""
    return f"{value:+.3f}{star} [{low:+.3f}, {high:+.3f}]"


def _curves(curves, settings):
    figure, (left, right) = page_lib.pyplot().subplots(1, 2, figsize=(9, 3.4))
    updates = [*curves.by_updates]
    left.plot(updates, [*curves.by_updates.values()], "o-")
    left.set_xscale("symlog", linthresh=1)
    left.set_xlabel(f"updates of the query (feedback of {settings.k}, second round)")
    left.set_ylabel(f"recall@{settings.depth}")
    for merge in ("second", "union_rerank"):
        values = [found[merge] for found in curves.by_feedback.values()]
        right.plot([*curves.by_feedback], values, "o-", label=merge)
    right.set_xscale("log")
    right.set_xlabel("documents of feedback")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _latency(outcomes, count):
    figure, axes = page_lib.pyplot().subplots(figsize=(8, 0.4 * len(outcomes) + 1))
    names, left = [*outcomes][::-1], np.zeros(len(outcomes))
    for stage in feedback_loop.STAGES:
        values = [1000 * outcomes[x].answer.seconds[stage] / count for x in names]
        axes.barh(names, values, left=left, label=stage.replace("_", " "))
        left += values
    axes.set_xlabel("milliseconds a query")
    axes.legend(fontsize=8)
    return figure


def _examples(outcomes, queries, corpus, settings) -> list[str]:
    """Queries whose recall changed most, and a document that came or went."""
    recall = settings.metrics[0]
    after, before = outcomes["refit"], outcomes["rerank"]
    change = after.evaluation.values[recall] - before.evaluation.values[recall]
    texts = dict(zip(queries.ids, queries.texts, strict=True))
    places = {query: i for i, query in enumerate(queries.ids)}
    documents = {each: row for row, each in enumerate(corpus.ids)}
    won, lost = int(np.sum(change > 0)), int(np.sum(change < 0))
    parts = [
        "<h2>Queries won and lost</h2>",
        page_lib.note(
            f"{recall}, refit against rerank: {won} queries are better, {lost} worse, "
            f"{len(change) - won - lost} equal."
        ),
    ]
    for word, order, (more, less) in (
        ("won", np.argsort(-change, kind="stable"), (after, before)),
        ("lost", np.argsort(change, kind="stable"), (before, after)),
    ):
        rows = []
        for number in order[:_SHOWN]:
            if change[number] == 0 or (change[number] > 0) != (word == "won"):
                break
            query = after.evaluation.queries[number]
            held = {corpus.ids[row] for row in more.answer.rows[places[query]]}
            held -= {corpus.ids[row] for row in less.answer.rows[places[query]]}
            judged = queries.qrels[query]
            moved = [x for x in sorted(held) if judged.get(x, 0) > 0]
            text = texts[query] or query
            rows.append(
                [text, f"{change[number]:+.2f}", _shown(moved, documents, corpus)]
            )
        if rows:
            parts.append(page_lib.table([f"query {word}", "recall", "document"], rows))
    return parts


def _shown(ids: Sequence[str], documents, corpus) -> str:
    if not ids:
        return ""
    row = documents[ids[0]]
    text = f"{corpus.titles[row]} {corpus.texts[row]}".strip() or ids[0]
    return text if len(text) <= 160 else text[:157] + "..."


def evaluation_cells(
    evaluations: Mapping[str, metrics.Evaluation],
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the measures of several runs."""
    names = list(next(iter(evaluations.values())).values)
    rows = [
        [name, *(f"{found.means[x]:.4f}" for x in names), str(len(found.missing))]
        for name, found in evaluations.items()
    ]
    return ["run", *names, "missing"], rows


def against_first(
    evaluations: Mapping[str, metrics.Evaluation],
) -> list[tuple[str, str, str]]:
    """(run, metric, difference from the first run with its interval as text)."""
    (_, base), *others = evaluations.items()
    found = []
    for name, evaluation in others:
        for metric in evaluation.values:
            interval = comparison.difference(evaluation, base, metric)
            found.append((name, metric, _difference(interval)))
    return found
