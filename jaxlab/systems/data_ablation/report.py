"""The report of a data ablation: one self-contained HTML file, plots inline.

Sections stand where there is something to say: agreement where mixtures were trained,
regret where searches were judged, noise where training was repeated.
"""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxlab.core import progress
from jaxlab.reports import page
from jaxlab.systems.data_ablation import experts, results
from jaxlab.systems.data_ablation.study import Outcome

_PROXY_NAMES = {
    "merged": "merged weights",
    "ensemble": "ensemble",
    "mean_of_individual": "mean of members",
}


def write(
    path: pathlib.Path,
    outcome: Outcome,
    summary: Mapping,
    pages: Mapping,
    workdir: pathlib.Path,
) -> None:
    """Writes the report; every number in it is in report.json or metrics.jsonl."""
    parts = [
        _introduction(outcome),
        *_correlations(outcome),
        *_agreement(summary),
        *_choices(outcome),
        *_misses(outcome),
        *_noise(outcome),
        "<h2>Ranking by target</h2>",
        *(_ranking(outcome, target) for target in outcome.ranking),
        "<h2>What each expert gained and lost</h2>",
        page.image(_heatmap(outcome)),
        "<h2>What it cost</h2>",
        _costs(outcome),
        "<h2>Training loss</h2>",
        page.image(_curves(outcome, workdir)),
        *_samples(pages),
        *_files(pages, workdir),
        "<h2>Time and versions</h2>",
        _seconds(summary),
    ]
    page.write(path, "Which data mixture would train best?", parts)


def _introduction(outcome) -> str:
    study = outcome.study
    recipe = study.recipe
    tokens = recipe.base.data.length * recipe.base.data.batch_size
    budget = {
        "mixture": "on as many tokens as one expert",
        "member": "on as many tokens a member as one expert",
    }[study.budget]
    return (
        f"<p>One seed model ({recipe.base.steps * tokens:,} tokens), one expert for "
        f"each of {len(outcome.units)} partitions ({recipe.unit_tokens:,} tokens "
        f"each), {len(outcome.mixtures):,} averages of experts scored on the held-out "
        f"text of {len(outcome.actual)} domains. {len(outcome.checked) or 'No'} "
        f"mixtures were then trained for real, {budget}, to see whether merging "
        "predicted them (Na et al. 2024, arXiv:2410.15661).</p>"
    )


def _correlations(outcome) -> list[str]:
    if not outcome.checked:
        return []
    found = results.correlations(outcome)
    kinds = ("spearman", "pearson")
    rows = [
        [target, str(c["n"])]
        + [_two(c[p + kind]) for p in ("", "ensemble_", "baseline_") for kind in kinds]
        for target, c in found.items()
    ]
    head = ["target", "mixtures", "merged: Spearman", "Pearson"]
    head += ["ensemble: Spearman", "Pearson", "mean of members: Spearman", "Pearson"]
    return [
        "<h2>Did merging predict training?</h2>",
        page.table(head, rows),
        page.image(_scatter(outcome)),
        page.note(
            "Each point is a mixture of two or more members that was also trained; "
            "single ones are left out, since their prediction is the trained model. "
            "The hollow points are the trivial prediction, the mean of the members' "
            "own losses: a merge that does not beat it has shown nothing. Where points "
            "form two clusters, the lower one are mixtures with the target's own "
            "domain: telling the two apart is the easy part."
        ),
    ]


def _agreement(summary) -> list[str]:
    """Pearson and Kendall with intervals, in and out of domain and at fixed size."""
    where = {
        "all": "all mixtures",
        "in": "target's domain in the mixture",
        "out": "target's domain not in it",
    }
    rows = []
    found = summary["agreement"]
    for group, what in (("units", "text of the units"), ("others", "other text")):
        columns = [found[proxy][group] for proxy in results.PROXIES]
        for cells in zip(*columns, strict=True):
            size = {None: "any", "within": "within sizes"}
            first = cells[0]
            rows.append(
                [f"{what}, {where[first['domain']]}"]
                + [str(size.get(first["size"], first["size"])), str(first["pairs"])]
                + [_interval(cell["pearson"]) for cell in cells]
                + [_interval(cell["kendall"]) for cell in cells]
            )
    if not rows:
        return []
    names = [_PROXY_NAMES[proxy] for proxy in results.PROXIES]
    head = ["targets", "members", "pairs", *(f"Pearson, {n}" for n in names)]
    head += [f"Kendall, {name}" for name in names]
    return [
        "<h3>At fixed size, in and out of domain</h3>",
        page.table(head, rows),
        page.note(
            "The mean of the targets' correlations of losses, with the 95 % interval "
            "over the choice of mixtures. Within sizes: after subtracting the mean of "
            "each size."
        ),
    ]


def _choices(outcome) -> list[str]:
    found = results.choices(outcome)
    if not found:
        return []
    rows = [
        [
            f"{choice.target}: {choice.method}",
            experts.name_of(choice.mixture),
            f"{choice.evaluations:.0f}",
            f"{math.exp(choice.predicted):.2f}",
            f"{math.exp(choice.trained):.2f}",
            f"{choice.regret:.4f}",
        ]
        for choice in found
    ]
    head = ["target and search", "choice", "evaluations", "predicted perplexity"]
    return [
        "<h2>What each search chose, and what that costs</h2>",
        page.table([*head, "trained perplexity", "regret, nats"], rows),
        page.note(
            f"At most {outcome.study.search_size} members; every choice is trained on "
            f"{outcome.study.choice_units} units of data. Regret: the loss of that "
            "model, less that of the best model trained on as much."
        ),
    ]


def _misses(outcome) -> list[str]:
    rows = [
        [f"{target}: {name}", str(predicted), str(trained), str(count)]
        for target, name, predicted, trained, count in results.misses(outcome, "merged")
        if predicted != trained
    ]
    if not rows:
        return []
    return [
        "<h3>Where merging failed most</h3>",
        page.table(
            ["target: mixture", "rank predicted", "rank trained", "of that size"], rows
        ),
    ]


def _noise(outcome) -> list[str]:
    found = results.noise(outcome)
    if not found:
        return []
    rows = [
        [target, f"{within:.4f}", f"{between:.4f}", f"{between / within:.0f}"]
        for target, (within, between) in found.items()
    ]
    head = ["target", "between data orders, nats", "between mixtures, nats", "ratio"]
    return ["<h3>How noisy training is</h3>", page.table(head, rows)]


def _costs(outcome) -> str:
    rows = [
        [
            way.name, f"{way.units:,}", progress.duration(way.train_seconds),
            progress.duration(way.score_seconds),
        ]
        for way in results.costs(outcome)
    ]  # fmt: skip
    head = [f"losses of {len(outcome.mixtures):,} mixtures by", "units trained"]
    return page.table([*head, "training", "scoring"], rows)


def _ranking(outcome, target: str, shown: int = 8) -> str:
    trained = results.trained_perplexity(outcome)[target]
    others = [
        results.predicted_perplexity(outcome, proxy)[target]
        for proxy in results.PROXIES[1:]
    ]
    rows = []
    for place, row in enumerate(outcome.ranking[target], start=1):
        name = experts.name_of(row.mixture)
        actual = trained.get(name)
        if place <= shown or actual is not None:
            low, high = row.perplexity_interval
            rows.append(
                [
                    f"{place}. {name}",
                    f"{row.predicted_perplexity:.2f}",
                    f"{low:.2f} to {high:.2f}" if math.isfinite(low) else "",
                    f"{row.best_probability:.0%}" if math.isfinite(low) else "",
                    *(f"{other[name]:.2f}" for other in others),
                    "" if actual is None else f"{actual:.2f}",
                ]
            )
    head = ["mixture", "predicted perplexity", "interval", "best", "ensemble"]
    return (
        f"<h3>{page.safe(target)} <span class=note>seed model "
        f"{outcome.seed[target]:.2f}</span></h3>"
        + page.table([*head, "mean of members", "trained"], rows)
    )


def _seconds(summary) -> str:
    rows = [
        [stage, f"{seconds:.1f} s"] for stage, seconds in summary["seconds"].items()
    ]
    rows += [[name, version] for name, version in summary["versions"].items()]
    return page.table(["stage or package", ""], rows)


def _samples(pages) -> list[str]:
    if not pages.get("samples"):
        return []
    safe = page.safe
    return [
        "<h2>A sample of the average of all experts</h2>",
        *(f"<pre><b>{safe(p)}</b>{safe(text)}</pre>" for p, text in pages["samples"]),
    ]


def _files(pages, workdir) -> list[str]:
    exports = [
        f"<li><code>{page.safe(folder.relative_to(workdir))}</code> (Hugging Face "
        "folder)</li>"
        for folder in pages.get("exports", ())
    ]
    return [
        "<h2>Files</h2><ul>",
        *exports,
        "<li><code>pool.json</code>: every expert, what it was trained on, hashes</li>",
        "<li><code>runs/*/metrics.jsonl</code>, <code>runs/*/checkpoints</code></li>",
        "</ul>",
    ]


def _scatter(outcome):
    plot = page.pyplot()
    actual = results.trained_losses(outcome)
    merged = results.losses(outcome, "merged")
    trivial = results.losses(outcome, "mean_of_individual")
    columns = min(len(actual), 5)
    rows = -(-len(actual) // columns)
    figure, axes = plot.subplots(
        rows, columns, figsize=(3.1 * columns, 3.3 * rows), squeeze=False
    )
    for axis in axes.ravel()[len(actual) :]:
        axis.set_axis_off()
    for axis, target in zip(axes.ravel(), actual, strict=False):
        trained = np.exp(actual[target].loss)
        axis.scatter(
            np.exp(trivial[target].loss),
            trained,
            facecolors="none",
            edgecolors="#999999",
        )
        axis.scatter(np.exp(merged[target].loss), trained, color="#b3261e")
        axis.set_title(target, fontsize=10)
        axis.set_xlabel("predicted perplexity", fontsize=9)
    axes[0][0].set_ylabel("trained perplexity", fontsize=9)
    return figure


def _heatmap(outcome):
    plot = page.pyplot()
    single = results.predicted_perplexity(outcome, "merged")
    change = np.array(
        [
            [100 * (single[t][unit] / outcome.seed[t] - 1) for t in single]
            for unit in outcome.units
        ]
    )
    bound = max(np.abs(change).max(), 1e-9)
    size = (1.1 * len(single) + 3, 0.45 * len(outcome.units) + 2)
    figure, axis = plot.subplots(figsize=size)
    axis.imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axis.set_xticks(
        range(len(single)), list(single), fontsize=8, rotation=30, ha="right"
    )
    axis.set_yticks(range(len(outcome.units)), list(outcome.units), fontsize=8)
    axis.set_ylabel("expert")
    axis.set_title("change of perplexity against the seed model, %", fontsize=10)
    for (i, j), value in np.ndenumerate(change):
        axis.text(j, i, f"{value:+.0f}", ha="center", va="center", fontsize=8)
    return figure


def _curves(outcome, workdir: pathlib.Path):
    plot = page.pyplot()
    figure, axis = plot.subplots(figsize=(8, 3.2))
    start = 0
    members = [model.path for model in outcome.models if model.why == "expert"]
    for run in [workdir / "runs" / "seed", *members]:
        if not (run / "metrics.jsonl").exists():
            continue  # a seed model of the user's may come without
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        points = [(row["step"], row["loss"]) for row in rows if row.get("loss")]
        steps, losses = np.array(points).T
        axis.plot(start + steps, losses, label=run.name, linewidth=1)
        start = steps[-1] if run.name == "seed" else start
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats a token")
    axis.legend(fontsize=7, ncols=2)
    return figure


def _interval(found) -> str:
    if found["value"] is None:
        return "undefined"
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _two(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "undefined"
