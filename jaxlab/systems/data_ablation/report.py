"""The report of a data ablation: what merging predicted, and whether it was right.

Sections stand where there is something to say: agreement where mixtures were trained,
regret where searches were judged, noise where training was repeated.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlab.core import progress, runs
from jaxlab.reports import figures
from jaxlab.reports import page as page_lib
from jaxlab.systems.data_ablation import experts, results
from jaxlab.systems.data_ablation import finding as finding_lib
from jaxlab.systems.data_ablation.study import Outcome

_PROXY_NAMES = {
    "merged": "merged weights",
    "ensemble": "ensemble",
    "mean_of_individual": "mean of members",
}


_PREDICTORS = {
    "predicted perplexity, merged": "of the average of the members' weights",
    "ensemble": "of the average of the members' predictions, token by token",
    "mean of members": "of the mean of the members' own losses: it needs no merging",
}


def write(
    workdir: pathlib.Path,
    outcome: Outcome,
    seconds: Mapping[str, float],
    *,
    samples: Sequence[tuple[str, str]] = (),
    exports: Sequence[pathlib.Path] = (),
) -> None:
    """Writes WORKDIR/report.html and report.json.

    Every number of the page is in report.json or in a metrics.jsonl.

    Args:
        workdir: that holds the runs.
        outcome: of the study.
        seconds: stage -> what it took.
        samples: (prompt, continuation) by the average of all experts.
        exports: Hugging Face folders in `workdir`.
    """
    numbers = results.numbers(outcome, seconds)
    page = page_lib.Page("Which data mixture would train best?")
    page.numbers(**numbers)
    page.finding(finding_lib.finding(outcome, numbers["agreement"]))
    page.text(_introduction(outcome))
    _add_correlations(page, outcome)
    _add_agreement(page, numbers["agreement"])
    _add_choices(page, outcome)
    _add_misses(page, outcome)
    _add_noise(page, outcome)
    page.heading("Ranking by target")
    page.terms(
        _PREDICTORS
        | {
            "95 % interval": "of the predicted perplexity, over the choice of held-out "
            "documents (bootstrap), and of windows within them where they are few",
            "best": "in how many of those resamples no mixture is predicted better",
            "trained": "perplexity of a model that was trained on the mixture",
        }
    )
    for target in outcome.ranking:
        _add_ranking(page, outcome, target)
    page.heading("What each expert gained and lost")
    page.figures(
        "Change of each target's perplexity (columns) against the seed model, in "
        f"percent, by expert (rows); blue is better. {_extremes(outcome)}",
        _heatmap(outcome),
    )
    page.heading("What it cost")
    _add_costs(page, outcome)
    page.heading("Training loss")
    page.figures(
        "Loss in nats per token by step: the seed model, then the experts.",
        _curves(outcome, workdir),
    )
    _add_samples(page, samples)
    _add_files(page, [folder.relative_to(workdir) for folder in exports])
    page.heading("Time and versions")
    rows = [[stage, f"{took:.1f} s"] for stage, took in numbers["seconds"].items()]
    rows += [[package, version] for package, version in numbers["versions"].items()]
    page.table(["stage or package", ""], rows)
    page.write(workdir)


def _introduction(outcome) -> str:
    study = outcome.study
    recipe = study.recipe
    tokens = recipe.base.data.length * recipe.base.data.batch_size
    budget = {
        "mixture": "on as many tokens as one expert",
        "member": "on as many tokens per member as one expert",
    }[study.budget]
    return (
        f"One seed model ({recipe.base.steps * tokens:,} tokens), one expert for "
        f"each of {len(outcome.units)} partitions ({recipe.unit_tokens:,} tokens "
        f"each), {len(outcome.mixtures):,} averages of experts scored on the held-out "
        f"text of {len(outcome.actual)} domains. {len(outcome.comparisons) or 'No'} "
        f"mixtures were then trained for real, {budget}, to see whether merging "
        "predicted them (Na et al. 2024, arXiv:2410.15661)."
    )


def _add_correlations(page, outcome) -> None:
    if not outcome.comparisons:
        return
    kinds = ("spearman", "pearson")
    rows = [
        [target, str(c["n"])]
        + [_two(c[p + kind]) for p in ("", "ensemble_", "baseline_") for kind in kinds]
        for target, c in results.correlations(outcome).items()
    ]
    head = ["target", "mixtures", "merged: Spearman", "Pearson"]
    head += ["ensemble: Spearman", "Pearson", "mean of members: Spearman", "Pearson"]
    page.heading("Did merging predict training?")
    page.table(head, rows)
    page.terms(
        _PREDICTORS
        | {
            "Spearman, Pearson": "correlations with training, of ranks "
            "and of perplexities; 1 is the same order, 0 is none"
        }
    )
    page.figures(
        "Trained perplexity against predicted perplexity, target by target. "
        "Each point is a mixture of two or more members that was also trained; "
        "single ones are left out, since their prediction is the trained model. "
        "A merge (filled) that does not beat the mean of its members (hollow) has "
        "shown nothing. Where points form two clusters, the lower one are mixtures "
        "with the target's own domain: telling the two apart is the easy part.",
        *_scatters(outcome),
    )


def _add_agreement(page, agreement: Mapping[str, Mapping]) -> None:
    """Pearson and Kendall with intervals, in and out of domain and at fixed size."""
    where = {
        "all": "all mixtures",
        "in": "target's domain in the mixture",
        "out": "target's domain not in it",
    }
    rows = []
    for group, what in (("units", "text of the units"), ("others", "other text")):
        columns = [agreement[proxy][group] for proxy in results.PROXIES]
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
        return
    names = [_PROXY_NAMES[proxy] for proxy in results.PROXIES]
    head = ["targets", "members", "pairs", *(f"Pearson, {n}" for n in names)]
    head += [f"Kendall, {name}" for name in names]
    page.heading("At fixed size, in and out of domain", level=3)
    page.table(head, rows)
    page.terms(
        {
            "Pearson, Kendall": "the mean of the targets' correlations of losses, with "
            "the 95 % bootstrap interval over the choice of mixtures; Kendall's is the "
            "share of pairs in the right order less that in the wrong one",
            "units": "the experts' partitions of the text",
            "within sizes": "after subtracting the mean of each size",
        }
    )


def _add_choices(page, outcome) -> None:
    rows = [
        [
            f"{choice.target}: {choice.method}",
            experts.name_of(choice.mixture),
            f"{choice.evaluations:.0f}",
            f"{math.exp(choice.predicted):.2f}",
            f"{math.exp(choice.trained):.2f}",
            f"{choice.regret:.4f}",
        ]
        for choice in results.choices(outcome)
    ]
    if not rows:
        return
    head = ["target and search", "choice", "evaluations", "predicted perplexity"]
    page.heading("What each search chose, and what that costs")
    page.table([*head, "trained perplexity", "regret, nats"], rows)
    page.note(
        f"At most {outcome.study.search_size} members; every choice is trained on "
        f"{outcome.study.choice_units} units of data. Regret: the loss of that "
        "model, less that of the best model trained on as much."
    )


def _add_misses(page, outcome) -> None:
    rows = [
        [f"{target}: {name}", str(predicted), str(trained), str(count)]
        for target, name, predicted, trained, count in results.misses(outcome, "merged")
        if predicted != trained
    ]
    if rows:
        page.heading("Where merging failed most", level=3)
        page.table(
            ["target: mixture", "rank predicted", "rank trained", "of that size"], rows
        )


def _add_noise(page, outcome) -> None:
    rows = [
        [target, f"{within:.4f}", f"{between:.4f}", f"{between / within:.0f}"]
        for target, (within, between) in results.noise(outcome).items()
    ]
    if rows:
        head = ["target", "between data orders, nats", "between mixtures, nats"]
        page.heading("How noisy training is", level=3)
        page.table([*head, "ratio"], rows)


def _add_costs(page, outcome) -> None:
    rows = [
        [
            way.name,
            f"{way.units:,}",
            progress.duration(way.train_seconds),
            progress.duration(way.score_seconds),
        ]
        for way in results.costs(outcome)
    ]
    head = [f"losses of {len(outcome.mixtures):,} mixtures by", "units trained"]
    page.table([*head, "training", "scoring"], rows)


def _add_ranking(page, outcome, target: str, shown: int = 8) -> None:
    """The first rows of a ranking, and all that were trained."""
    trained = results.trained_perplexity(outcome)[target]
    others = [
        results.predicted_perplexity(outcome, proxy)[target]
        for proxy in results.PROXIES[1:]
    ]
    rows = []
    for rank, row in enumerate(outcome.ranking[target], start=1):
        name = experts.name_of(row.mixture)
        actual = trained.get(name)
        if rank <= shown or actual is not None:
            low, high = row.perplexity_interval
            why = row.resampled.removeprefix("nothing: ")
            rows.append(
                [
                    f"{rank}. {name}",
                    f"{row.predicted_perplexity:.2f}",
                    f"{low:.2f} to {high:.2f}" if math.isfinite(low) else why,
                    f"{row.best_probability:.0%}" if math.isfinite(low) else why,
                    *(f"{other[name]:.2f}" for other in others),
                    "" if actual is None else f"{actual:.2f}",
                ]
            )
    head = ["mixture", "predicted perplexity", "95 % interval", "best", "ensemble"]
    page.heading(target, level=3, aside=f"seed model {outcome.seed[target]:.2f}")
    page.table([*head, "mean of members", "trained"], rows)
    resampled = outcome.ranking[target][0].resampled
    page.note(f"Resampled for intervals: {resampled}.")


def _add_samples(page, samples: Sequence[tuple[str, str]]) -> None:
    if samples:
        page.heading("A sample of the average of all experts")
    for prompt, text in samples:
        page.quote(prompt, text)


def _add_files(page, exports: Sequence[pathlib.Path]) -> None:
    page.heading("Files")
    page.files(
        [
            *((f"{folder}", " (Hugging Face folder)") for folder in exports),
            ("pool.json", ": every expert, what it was trained on, hashes"),
            ("runs/*/metrics.jsonl", ""),
            ("runs/*/checkpoints", ""),
        ]
    )


def _scatters(outcome) -> list:
    """One figure per target."""
    actual = results.trained_losses(outcome)
    sides = {
        "merged": results.losses(outcome, "merged"),
        "mean of members": results.losses(outcome, "mean_of_individual"),
    }
    drawn = []
    for target in actual:
        figure, [[axes]] = figures.panels(size=(figures.HALF, 3.2))
        predicted = {name: np.exp(x[target].loss) for name, x in sides.items()}
        figures.agreement(axes, predicted, np.exp(actual[target].loss))
        axes.set_title(figures.label(target), fontsize=10)
        axes.set_xlabel("predicted perplexity")
        axes.set_ylabel("trained perplexity")
        axes.legend(  # below: points may lie anywhere
            fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.22),
            frameon=False, columnspacing=1, handletextpad=0.3,
        )  # fmt: skip
        drawn.append(figure)
    return drawn


def _extremes(outcome) -> str:
    """The largest gain and the largest loss, in words."""
    change = {
        (unit, target): 100 * (by_name[unit] / outcome.seed[target] - 1)
        for target, by_name in results.predicted_perplexity(outcome, "merged").items()
        for unit in outcome.units
    }
    best, worst = min(change, key=change.get), max(change, key=change.get)
    return (
        f"Most is gained by {best[0]} on {best[1]} ({change[best]:+.0f} %), most lost "
        f"by {worst[0]} on {worst[1]} ({change[worst]:+.0f} %)."
    )


def _heatmap(outcome):
    single = results.predicted_perplexity(outcome, "merged")
    change = np.array(
        [
            [100 * (single[t][unit] / outcome.seed[t] - 1) for t in single]
            for unit in outcome.units
        ]
    )
    targets, units = map(figures.label, single), map(figures.label, outcome.units)
    bound = max(np.abs(change).max(), 1e-9)
    size = (0.55 * len(single) + 2.5, 0.4 * len(outcome.units) + 1.8)
    figure, [[axis]] = figures.panels(size=size)
    axis.imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axis.set_xticks(range(len(single)), targets, fontsize=9, rotation=40, ha="right")
    axis.set_yticks(range(len(outcome.units)), units, fontsize=9)
    axis.set_ylabel("expert")
    for (i, j), value in np.ndenumerate(change):
        axis.text(j, i, f"{value:+.0f}", ha="center", va="center", fontsize=9)
    return figure


def _curves(outcome, workdir: pathlib.Path):
    figure, [[axis]] = figures.panels(size=(figures.WIDTH, 4))
    start = 0
    members = [model.path for model in outcome.models if model.why == "expert"]
    for run in [workdir / "runs" / "seed", *members]:
        rows = runs.rows(run)
        points = [(row["step"], row["loss"]) for row in rows if row.get("loss")]
        if not points:
            continue  # a seed model of the user's may come without
        steps, losses = np.array(points).T
        axis.plot(start + steps, losses, label=figures.label(run.name), linewidth=1)
        start = steps[-1] if run.name == "seed" else start
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats per token")
    axis.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _interval(estimate: Mapping) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _two(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "undefined"
