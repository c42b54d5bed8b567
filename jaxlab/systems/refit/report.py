"""The report of a comparison of feedback: measures, curves, latency, examples.

Differences are means over queries with paired-bootstrap intervals (95 %, 10,000
resamples); one whose interval holds 0 is not one, and is printed without a star.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.core import report
from jaxlab.reports import figures
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
    page = page_lib.Page(title)
    page.numbers(
        title=title,
        queries=len(queries.ids),
        documents=len(corpus.ids),
        settings=settings,
        rows={name: _row(x, differences.get(name)) for name, x in outcomes.items()},
        seconds={"total": seconds},
        versions=report.versions(),
    )
    page.note(
        f"{len(queries.ids)} queries, {len(corpus.ids)} documents; the reranker "
        f"reads {settings.k} documents per round, {settings.num_updates} updates, "
        f"rankings to {settings.depth}. * : the interval does not hold 0."
    )
    page.table(*cells(outcomes, differences, settings))
    if curves is not None:
        page.numbers(
            curves={
                "recall_by_updates": curves.by_updates,
                "recall_by_feedback": curves.by_feedback,
            }
        )
        page.heading("Recall")
        page.figure(_curves(curves, settings))
    page.heading("Latency")
    page.figure(_latency(outcomes, len(queries.ids)))
    if judged and {"refit", "rerank"} <= outcomes.keys():
        _add_examples(page, outcomes, queries, corpus, settings)
    page.write(workdir)


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
        "reranked", "ms per query",
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


def _difference(estimate: tuple[float, float, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (round(x, 3) + 0.0 for x in estimate)  # no -0.000
    star = "*" if low > 0 or high < 0 else ""
    return f"{value:+.3f}{star} [{low:+.3f}, {high:+.3f}]"


def _curves(curves, settings):
    figure, [[left, right]] = figures.panels(1, 2, size=(9, 3.4))
    updates = [*curves.by_updates]
    left.plot(updates, [*curves.by_updates.values()], "o-")
    left.set_xscale("symlog", linthresh=1)
    left.set_xlabel(f"updates of the query (feedback of {settings.k}, second round)")
    left.set_ylabel(f"recall@{settings.depth}")
    for merge in ("second", "union_rerank"):
        values = [recall[merge] for recall in curves.by_feedback.values()]
        right.plot([*curves.by_feedback], values, "o-", label=merge)
    right.set_xscale("log")
    right.set_xlabel("documents of feedback")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _latency(outcomes, count):
    figure, [[axes]] = figures.panels(size=(8, 0.4 * len(outcomes) + 1))
    names = [*outcomes][::-1]
    stages = {
        stage.replace("_", " "): [
            1000 * outcomes[name].answer.seconds[stage] / count for name in names
        ]
        for stage in feedback_loop.STAGES
    }
    figures.stacked_bars(axes, names, stages)
    axes.set_xlabel("milliseconds per query")
    axes.legend(fontsize=8)
    return figure


def _add_examples(page, outcomes, queries, corpus, settings) -> None:
    """Queries whose recall changed most, and a document that came or went."""
    recall = settings.metrics[0]
    after, before = outcomes["refit"], outcomes["rerank"]
    change = after.evaluation.values[recall] - before.evaluation.values[recall]
    won, lost = int(np.sum(change > 0)), int(np.sum(change < 0))
    page.heading("Queries won and lost")
    page.note(
        f"{recall}, refit against rerank: {won} queries are better, {lost} worse, "
        f"{len(change) - won - lost} equal."
    )
    texts = dict(zip(queries.ids, queries.texts, strict=True))
    numbers = {query: i for i, query in enumerate(queries.ids)}
    for word, sign, (more, less) in (
        ("won", 1, (after, before)),
        ("lost", -1, (before, after)),
    ):
        rows = []
        for i in np.argsort(-sign * change, kind="stable")[:_SHOWN]:
            if sign * change[i] <= 0:
                break
            query = after.evaluation.queries[i]
            sides = (x.answer.rows[numbers[query]] for x in (more, less))
            moved = _relevant_in_one(*sides, corpus.ids, queries.qrels[query])
            document = _excerpt(corpus, moved[0]) if moved else ""
            rows.append([texts[query] or query, f"{change[i]:+.2f}", document])
        if rows:
            page.table([f"query {word}", "recall", "document"], rows)


def _relevant_in_one(rows, others, ids, judgments) -> list[int]:
    """Rows of relevant documents in one ranking and not in the other, by their ids."""
    gone = {*np.asarray(rows).tolist()} - {*np.asarray(others).tolist()}
    gone = [row for row in gone if judgments.get(ids[row], 0) > 0]
    return sorted(gone, key=lambda row: ids[row])


def _excerpt(corpus: formats.Corpus, row: int) -> str:
    """The start of a document's text; its id where there is none."""
    text = f"{corpus.titles[row]} {corpus.texts[row]}".strip() or corpus.ids[row]
    return text if len(text) <= 160 else text[:157] + "..."


def evaluation_cells(
    evaluations: Mapping[str, metrics.Evaluation],
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the measures of several runs."""
    names = list(next(iter(evaluations.values())).values)
    rows = [
        [name, *(f"{every.means[x]:.4f}" for x in names), str(len(every.missing))]
        for name, every in evaluations.items()
    ]
    return ["run", *names, "missing"], rows


def against_first(
    evaluations: Mapping[str, metrics.Evaluation],
) -> list[tuple[str, str, str]]:
    """(run, metric, difference from the first run with its interval as text)."""
    (_, first), *others = evaluations.items()
    return [
        (name, metric, _difference(comparison.difference(evaluation, first, metric)))
        for name, evaluation in others
        for metric in evaluation.values
    ]
