"""The report of a comparison of feedback: measures, curves, latency, examples.

Differences are means over queries with paired-bootstrap intervals (95 %, 10,000
resamples); one whose interval holds 0 is not one, and is printed without a star. Of
fewer than six queries there is no interval.
"""

import math
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
    page.finding(finding(outcomes, differences, settings, len(corpus.ids)))
    page.table(*cells(outcomes, differences, settings))
    page.terms(_terms(outcomes, settings, judged))
    if curves is not None:
        page.numbers(
            curves={
                "recall_by_updates": curves.by_updates,
                "recall_by_feedback": curves.by_feedback,
            }
        )
        page.heading("Recall")
        page.figures(*_curves(curves, settings))
    page.heading("Latency")
    slowest = max(outcomes, key=lambda name: _total(outcomes[name]))
    page.figures(
        "Milliseconds per query by stage; the longest is "
        f"{slowest}, {1000 * _total(outcomes[slowest]) / len(queries.ids):.0f} ms.",
        _latency(outcomes, len(queries.ids)),
    )
    if judged and {"refit", "rerank"} <= outcomes.keys():
        _add_examples(page, outcomes, queries, corpus, settings)
    page.write(workdir)


def finding(
    outcomes: Mapping[str, comparison.Outcome],
    differences: Mapping[str, Any],
    settings: comparison.Settings,
    documents: int,
) -> str:
    """The answer in a paragraph: what feedback gave, how sure, and what it cost."""
    count = len(next(iter(outcomes.values())).answer.rows)
    asked = f"{count} queries, {documents} documents"
    if not differences:
        return (
            f"{asked}: no judgments were given, so nothing here says which way of "
            "answering is better; give --qrels to measure it."
        )
    row = next((x for x in ("refit", *outcomes) if x in differences), None)
    if row is None:
        best = max(outcomes, key=lambda x: _means(outcomes[x])[settings.recall])
        value = _means(outcomes[best])[settings.recall]
        return f"{best} has {settings.recall} {value:.3f}; {asked}."
    sentences = []
    for reference, by_metric in differences[row].items():
        gaps = ", ".join(
            f"{metric} {spell_difference(by_metric[metric])}"
            for metric in settings.metrics[:2]
        )
        pairs = outcomes[reference].answer.reranked.mean()
        sentences.append(f"against {reference} ({pairs:.0f} pairs per query) {gaps}")
    recall = settings.recall
    gaps = [x[recall] for x in differences[row].values()]
    word = "differs from none of them"
    if all(low > 0 for _, low, _ in gaps):
        word = "finds more"
    elif all(high < 0 for *_, high in gaps):
        word = "finds less"
    elif any(low > 0 or high < 0 for _, low, high in gaps):
        word = "differs from some and not from others"
    return (
        f"{row}, with {outcomes[row].answer.reranked.mean():.0f} pairs reranked per "
        f"query, {word} in {recall}: {'; '.join(sentences)} (95 % intervals; * does "
        f"not hold 0). {asked}."
    )


_ROW_TERMS = {
    "bi-encoder": "one search by vectors, no reranker",
    "bm25": "one search by words, no reranker",
    "rerank": "the first {k} documents in the reranker's order",
    "rerank_2k": "the first {twice}: what two rounds of feedback may read",
    "average": "the query becomes the mean of itself and the reranker's 3 best",
    "rocchio": "the query becomes 0.4 of itself and 0.6 of the mean of the 5 best",
    "tour_hard": "TouR: three rounds of 10 documents, a step to the best after each",
    "tour_soft": "TouR with all scores as weights",
    "refit_second": "ReFIT, the second search alone, as its paper evaluates it",
    "refit_rrf": "ReFIT, ranks of both searches fused",
    "refit": "ReFIT: {n} updates of the query by the reranker's scores, a second "
    "search for {k} documents that were not read, all {twice} in the reranker's order "
    "(union_rerank)",
}


def _terms(outcomes, settings, judged: bool) -> dict[str, str]:
    """What the rows and columns of the table are."""
    numbers = {"k": settings.k, "twice": 2 * settings.k, "n": settings.num_updates}
    terms = {x: _ROW_TERMS[x].format(**numbers) for x in outcomes if x in _ROW_TERMS}
    if judged:
        terms["less ..."] = (
            "mean difference over queries from that row, with its 95 % "
            "paired-bootstrap interval; * where it does not hold 0; of fewer than "
            f"{comparison.LEAST_QUERIES} queries there is none"
        )
    terms["reranked"] = "pairs of query and document that the reranker read, per query"
    return terms


def spell_table(
    outcomes: Mapping[str, comparison.Outcome], settings: comparison.Settings
) -> str:
    """The table as the READMEs have it, in Markdown."""
    differences = comparison.differences(outcomes, settings)
    head, body = cells(outcomes, differences, settings)
    rows = (head, ["---"] * len(head), *body)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
                    spell_difference(against.get(x, {}).get(metric))
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


def spell_difference(estimate: tuple[float, float, float] | None) -> str:
    """A difference with a star if it is one, and its interval; "" of None."""
    if estimate is None:
        return ""
    value, low, high = (round(x, 3) + 0.0 for x in estimate)  # no -0.000
    if math.isnan(low):
        return f"{value:+.3f} (too few queries for an interval)"
    star = "*" if low > 0 or high < 0 else ""
    return f"{value:+.3f}{star} [{low:+.3f}, {high:+.3f}]"


def _curves(curves, settings):
    """What the figures show, and recall by updates and by documents of feedback."""
    recall = settings.recall
    left, [[axes]] = figures.panels(size=(figures.HALF, 3))
    updates = [*curves.by_updates]
    axes.plot(updates, [*curves.by_updates.values()], "o-")
    axes.set_xscale("symlog", linthresh=1)
    figures.tick_values(axes.xaxis, updates)
    axes.set_xlabel(f"updates (second search, feedback of {settings.k})")
    axes.set_ylabel(recall)
    right, [[other]] = figures.panels(size=(figures.HALF, 3))
    for merge, name in (("second", "second search"), ("union_rerank", "both searches")):
        values = [value[merge] for value in curves.by_feedback.values()]
        other.plot([*curves.by_feedback], values, "o-", label=name)
    other.set_xscale("log")
    figures.tick_values(other.xaxis, [*curves.by_feedback])
    other.set_xlabel("documents of feedback")
    other.set_ylabel(recall)
    other.legend()
    for each in (axes, other):
        each.grid(alpha=0.3)
        figures.end_at_shares(each)
    first, last = (curves.by_updates[x] for x in (updates[0], updates[-1]))
    caption = (
        f"{recall} of the second search goes from {first:.3f} before feedback to "
        f"{last:.3f} after {updates[-1]} updates. Right: by how many documents the "
        "reranker reads."
    )
    return caption, left, right


def _latency(outcomes, count):
    size = (figures.WIDTH, 0.35 * len(outcomes) + 1.4)
    figure, [[axes]] = figures.panels(size=size)
    names = [*outcomes][::-1]
    stages = {
        stage.replace("_", " "): [
            1000 * outcomes[name].answer.seconds[stage] / count for name in names
        ]
        for stage in feedback_loop.STAGES
    }
    figures.stacked_bars(axes, names, stages)
    axes.set_xlabel("milliseconds per query")
    axes.locator_params(axis="x", nbins=5)
    axes.legend(fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return figure


def _add_examples(page, outcomes, queries, corpus, settings) -> None:
    """Queries whose recall changed most, and a document that came or went."""
    recall = settings.recall
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
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Run -> metric -> difference from the first run, and its interval."""
    (_, first), *others = evaluations.items()
    return {
        name: {x: comparison.difference(every, first, x) for x in every.values}
        for name, every in others
    }


def evaluation_numbers(
    evaluations: Mapping[str, metrics.Evaluation],
    differences: Mapping[str, Mapping[str, tuple[float, float, float]]],
) -> dict[str, Any]:
    """The measures of several runs and those of `against_first`, as JSON has them."""
    return {
        "runs": {
            name: {**every.means, "missing": [*every.missing]}
            for name, every in evaluations.items()
        },
        "less_first": {
            name: {
                metric: {"difference": value, "low": low, "high": high}
                for metric, (value, low, high) in by_metric.items()
            }
            for name, by_metric in differences.items()
        },
    }
