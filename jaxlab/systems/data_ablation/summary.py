"""report.json of a data ablation, and the lines that say what it found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab import ablation
from jaxlab.core import report
from jaxlab.systems.data_ablation import experts, results
from jaxlab.systems.data_ablation.study import Outcome


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
            "interval": plain(list(row.perplexity_interval)),
            "best_probability": plain(row.best_probability),
            "trained_perplexity": trained.get(name),
            "ensemble_perplexity": ensemble[name],
            "mean_of_members_perplexity": means[name],
        }
        for row in ranking
        for name in [experts.name_of(row.mixture)]
    ]


def summarise(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """report.json: what was predicted, what was found, versions, seconds."""
    trained = results.trained_perplexity(outcome)
    means = results.predicted_perplexity(outcome, "mean_of_individual")
    ensemble = results.predicted_perplexity(outcome, "ensemble")
    ranking = {
        target: ranking_rows(rows, ensemble[target], means[target], trained[target])
        for target, rows in outcome.ranking.items()
    }
    return {
        "ranking": ranking,
        "correlation": plain(results.correlations(outcome)),
        "agreement": {
            proxy: plain(results.agreement(outcome, proxy)) for proxy in results.PROXIES
        },
        "choices": plain(results.choices(outcome)),
        "noise": plain(results.noise(outcome)),
        "cost": plain(results.costs(outcome)),
        "seed_perplexity": outcome.seed,
        "versions": report.versions(),
        "seconds": dict(seconds),
    }


def headlines(outcome: Outcome) -> list[str]:
    """What a researcher wants to know, a line a target."""
    agreement = results.correlations(outcome)
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
        found = agreement[target]
        if found["n"]:
            line += (
                f"; spearman {found['spearman']:.2f} over {found['n']} trained "
                f"mixtures (ensemble {found['ensemble_spearman']:.2f}, mean of members "
                f"alone {found['baseline_spearman']:.2f})"
            )
        lines.append(line)
    return lines


def plain(value: Any) -> Any:
    """Named tuples as mappings, and None for the numbers that JSON does not have.

    >>> plain([0.5, float("nan")])
    [0.5, None]
    """
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
