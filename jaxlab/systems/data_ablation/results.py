"""Results of a data ablation from its `Outcome`: agreement, regret, noise, cost.

A correlation over all mixtures is easily high: mixtures with the target's own domain
are better, larger ones are different. So agreement is given in and out of the mixture's
domains, at fixed size and within sizes, with intervals, and beside the trivial
prediction that merges nothing. Regret is what a decision by the proxy costs.

`numbers` is report.json, `headlines` what the terminal says; `report` has the page.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import ablation
from jaxlab.core import json_text, report
from jaxlab.stats import correlation
from jaxlab.systems.data_ablation import experts
from jaxlab.systems.data_ablation.study import Outcome

PROXIES = ("merged", "ensemble", "mean_of_individual")


class Choice(NamedTuple):
    """What a search chose for a target.

    Attributes:
        target: that it was to be good at.
        method: of searching.
        mixture: its choice.
        predicted: nats per token, by what the method reads.
        trained: nats per token of the model trained on it.
        regret: `trained` less that of the best model trained on as many tokens, chosen
            or not, in nats per token.
        evaluations: what the search cost, as `ablation.Found` counts.
    """

    target: str
    method: str
    mixture: dict[str, float]
    predicted: float
    trained: float
    regret: float
    evaluations: float


class Way(NamedTuple):
    """One way to the losses of K mixtures, and what it takes."""

    name: str
    units: int  # base units of training
    train_seconds: float
    score_seconds: float


def losses(outcome: Outcome, proxy: str) -> dict[str, ablation.DocumentLosses]:
    """Target -> a proxy's losses of the mixtures that were trained to check it."""
    names = [experts.name_of(mixture) for mixture in outcome.mixtures]
    rows = [names.index(_name(outcome, i)) for i in outcome.comparisons]
    return {
        target: by_proxy[proxy].models(rows)
        for target, by_proxy in outcome.predicted.items()
    }


def trained_losses(outcome: Outcome) -> dict[str, ablation.DocumentLosses]:
    """Target -> losses of those mixtures, trained for real."""
    return {
        target: every.models(outcome.comparisons)
        for target, every in outcome.actual.items()
    }


def predicted_perplexity(outcome: Outcome, proxy: str) -> dict[str, dict[str, float]]:
    """Target -> {name of a mixture: perplexity by a proxy}, of all that were scored."""
    names = [experts.name_of(mixture) for mixture in outcome.mixtures]
    return {
        target: dict(zip(names, np.exp(by_proxy[proxy].loss).tolist(), strict=True))
        for target, by_proxy in outcome.predicted.items()
    }


def trained_perplexity(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Target -> {name of a mixture: perplexity trained for real}; experts left out.

    Choices of searches that were trained on another budget than a checked mixture of
    their size are left out too.
    """
    rows = [
        i
        for i, model in enumerate(outcome.models)
        if model.why in ("checked", "chosen")
        and model.units == outcome.study.units_of(model.mixture)
    ]
    names = [_name(outcome, i) for i in rows]
    return {
        target: dict(zip(names, np.exp(every.loss[rows]).tolist(), strict=True))
        for target, every in outcome.actual.items()
    }


def correlations(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Target -> n, and Spearman and Pearson of perplexities, of each proxy.

    `spearman` and `pearson` are of merging, those with `ensemble_` of the ensemble,
    those with `baseline_` of the mean of the members' own losses; NaN of one mixture.
    """
    actual = {t: np.exp(real.loss) for t, real in trained_losses(outcome).items()}
    result = {t: {"n": len(values)} for t, values in actual.items()}
    prefixes = ("", "ensemble_", "baseline_")
    for prefix, proxy in zip(prefixes, PROXIES, strict=True):
        for target, predicted in losses(outcome, proxy).items():
            for kind in ("spearman", "pearson"):
                value = math.nan
                if len(predicted.nats) > 1:
                    sides = np.exp(predicted.loss), actual[target]
                    value = float(getattr(correlation, kind)(*sides))
                result[target][prefix + kind] = value
    return result


def agreement(outcome: Outcome, proxy: str) -> dict[str, list[ablation.Agreement]]:
    """How a proxy's losses agree with training, with intervals and by mixture size.

    Returns:
        "units": over targets that are a unit's domain, with rows in and out of the
        mixture's domains; "others": over targets of other text, out of every domain.
        [] where there is no such target or are too few mixtures.
    """
    predicted, actual = losses(outcome, proxy), trained_losses(outcome)
    mixtures = [outcome.models[i].mixture for i in outcome.comparisons]
    sizes = [len(mixture) for mixture in mixtures]
    domains = [{outcome.units[name] for name in mixture} for mixture in mixtures]
    own = [t for t in actual if t in {*outcome.units.values()}]
    inside = {t: [t in domain for domain in domains] for t in own}
    others = [t for t in actual if t not in own]

    def rows(targets, in_domain):
        if not targets or not sizes:
            return []
        sides = [{t: side[t] for t in targets} for side in (predicted, actual)]
        return ablation.agreement(*sides, sizes, in_domain=in_domain)

    return {"units": rows(own, inside), "others": rows(others, None)}


def choices(outcome: Outcome) -> list[Choice]:
    """What every search chose, and what its choice costs."""
    names = [_name(outcome, i) for i in range(len(outcome.models))]
    units = np.array([model.units for model in outcome.models])
    rivals = units == outcome.study.choice_units
    result = []
    for target, by_method in outcome.found.items():
        trained = outcome.actual[target].loss
        for method, choice in by_method.items():
            same = np.array(names) == experts.name_of(choice.mixture)
            own = trained[np.flatnonzero(same & rivals)[0]]
            result.append(
                Choice(
                    target,
                    method,
                    choice.mixture,
                    choice.predicted_loss,
                    float(own),
                    float(own - trained[rivals].min()),
                    choice.evaluations,
                )
            )
    return result


def noise(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Target -> (spread between repeats, spread between mixtures), in nats per token.

    The standard deviations of trained losses: of one mixture with other data orders,
    and of the mixtures that were repeated. {} where nothing was repeated.
    """
    groups: dict[str, list[int]] = {}
    for i, model in enumerate(outcome.models):
        if model.why in ("checked", "repeated"):
            groups.setdefault(experts.name_of(model.mixture), []).append(i)
    groups = {name: rows for name, rows in groups.items() if len(rows) > 1}
    if len(groups) < 2:
        return {}
    result = {}
    for target, every in outcome.actual.items():
        table = [every.loss[rows] for rows in groups.values()]
        within = np.sqrt(np.mean([np.var(row, ddof=1) for row in table]))
        between = np.std([row.mean() for row in table], ddof=1)
        result[target] = (float(within), float(between))
    return result


def costs(outcome: Outcome) -> list[Way]:
    """What it takes to know the losses of all K mixtures, in three ways.

    Seconds of training are those of the experts' steps, however often they were
    resumed; training every mixture is counted from what a unit took.
    """
    study, seconds = outcome.study, outcome.seconds
    n = len(outcome.units)
    trained = sum(
        experts.training_seconds(model.path)
        for model in outcome.models
        if model.why == "expert"
    )
    every = sum(study.units_of(mixture) for mixture in outcome.mixtures)
    passes = seconds.get("predictions of experts", 0.0)
    return [
        Way("train every mixture", every, every * trained / n, 0.0),
        Way("merge", n, trained, seconds.get("merged mixtures", 0.0)),
        Way("ensemble", n, trained, passes),
    ]


def misses(outcome: Outcome, proxy: str, count: int = 5) -> list[tuple]:
    """Where a proxy fails most: (target, mixture, its rank predicted, trained, of).

    Ranks are among the mixtures of the same size, from 1.
    """
    predicted, actual = losses(outcome, proxy), trained_losses(outcome)
    mixtures = [outcome.models[i].mixture for i in outcome.comparisons]
    sizes = np.array([len(mixture) for mixture in mixtures])
    rows = []
    for target in actual:
        for size in np.unique(sizes):
            where = np.flatnonzero(sizes == size)
            ranks = [
                np.argsort(np.argsort(side[target].loss[where])) + 1
                for side in (predicted, actual)
            ]
            for k, number in enumerate(where):
                name = experts.name_of(mixtures[number])
                rows.append(
                    (target, name, int(ranks[0][k]), int(ranks[1][k]), len(where))
                )
    rows.sort(key=lambda row: -abs(row[2] - row[3]) / row[4])
    return rows[:count]


def numbers(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """report.json: what was predicted, how well, versions, seconds.

    Args:
        outcome: of the study.
        seconds: stage -> what it took.
    """
    trained = trained_perplexity(outcome)
    means = predicted_perplexity(outcome, "mean_of_individual")
    ensemble = predicted_perplexity(outcome, "ensemble")
    ranking = {
        target: ranking_rows(rows, ensemble[target], means[target], trained[target])
        for target, rows in outcome.ranking.items()
    }
    return json_text.json_value(
        {
            "ranking": ranking,
            "correlation": correlations(outcome),
            "agreement": {proxy: agreement(outcome, proxy) for proxy in PROXIES},
            "choices": choices(outcome),
            "noise": noise(outcome),
            "cost": costs(outcome),
            "seed_perplexity": outcome.seed,
            "versions": report.versions(),
            "seconds": seconds,
        }
    )


def ranking_rows(
    ranking: Sequence[ablation.RankedMixture],
    ensemble: Mapping[str, float],
    means: Mapping[str, float],
    trained: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A ranking as JSON, best first.

    Args:
        ranking: of one target.
        ensemble: name of a mixture -> perplexity of its ensemble.
        means: name -> that of the mean of the members' own losses.
        trained: name -> that of the model trained on it, where there is one.
    """
    return [
        {
            "mixture": row.mixture,
            "predicted_perplexity": row.predicted_perplexity,
            "interval": json_text.json_value(row.perplexity_interval),
            "best_probability": json_text.json_value(row.best_probability),
            "resampled": row.resampled,
            "trained_perplexity": trained.get(name),
            "ensemble_perplexity": ensemble[name],
            "mean_of_members_perplexity": means[name],
        }
        for row in ranking
        for name in [experts.name_of(row.mixture)]
    ]


def headlines(outcome: Outcome) -> list[str]:
    """What a researcher wants to know, one line per target."""
    by_target = correlations(outcome)
    lines = ["best predicted mixture of two or more domains, by target:"]
    for target in outcome.ranking:
        mixed = (row for row in outcome.ranking[target] if len(row.mixture) > 1)
        best = next(mixed, None)
        if best is None:
            continue
        line = (
            f"  {target}: {experts.name_of(best.mixture)} at perplexity "
            f"{best.predicted_perplexity:.1f} (seed model {outcome.seed[target]:.1f})"
        )
        row = by_target[target]
        if row["n"]:
            line += (
                f"; spearman {row['spearman']:.2f} over {row['n']} trained "
                f"mixtures (ensemble {row['ensemble_spearman']:.2f}, mean of members "
                f"alone {row['baseline_spearman']:.2f})"
            )
        lines.append(line)
    return lines


def _name(outcome: Outcome, index: int) -> str:
    return experts.name_of(outcome.models[index].mixture)
