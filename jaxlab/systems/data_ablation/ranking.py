"""The ranking of all mixtures for one target, with what it has to beat.

Beside the proxy that ranks, merged models or the ensemble, each mixture has the
perplexity of its ensemble and that of the mean of its members' own losses, which needs
no merging. What was predicted is kept by `predictions.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab import ablation
from jaxlab.core import progress as progress_lib
from jaxlab.core import types
from jaxlab.systems.data_ablation import experts, predictions, results


class Ranking(NamedTuple):
    """One target.

    Attributes:
        rows: one row per mixture, best predicted first, as in report.json.
        seed: perplexity of the seed model; None where it is unknown.
        best_single: {"expert": its name, "perplexity": its own}.
    """

    rows: list[dict[str, Any]]
    seed: float | None
    best_single: dict[str, Any]


def rank_target(
    subject: predictions.Subject,
    mixtures: Sequence[ablation.Mixture],
    target: str,
    batches: Sequence[types.Batch],
    proxy: Literal["merged", "ensemble"],
    meter: Callable[[str], progress_lib.Progress],
) -> Ranking:
    """Ranks mixtures by a proxy's loss on one target.

    Args:
        subject: the experts.
        mixtures: the candidates.
        target: its name.
        batches: its held-out text.
        proxy: merged models; or the ensemble, which merges none.
        meter: what is counted -> a callback of (batches done, all).
    """
    # ---- the experts alone, and their ensembles: one pass of each expert
    progress = meter(f"{target}: batches of experts' predictions")
    logps = predictions.expert_logps(subject, batches, progress)
    ensemble = predictions.ensemble_losses(subject, mixtures, logps)
    names = subject.pool.names
    alone = predictions.ensemble_losses(
        subject, [{name: 1.0} for name in names], logps
    ).loss
    best = int(np.argmin(np.nan_to_num(alone, nan=np.inf)))

    # ---- the ranking
    def predict(target, batches):
        if proxy == "ensemble":
            return ensemble
        progress = meter(f"{target}: batches of merged mixtures")
        return predictions.merged_losses(subject, mixtures, batches, progress)

    ranking = ablation.rank_mixtures(
        subject.pool, mixtures, {target: batches}, subject.losses_fn, predict=predict
    )[target]

    # ---- what it has to beat
    means = (subject.pool.weights(mixtures) @ alone).astype(np.float32)
    keys = [experts.name_of(mixture) for mixture in mixtures]
    seed = predictions.seed_loss(subject, batches)
    return Ranking(
        results.ranking_rows(
            ranking,
            dict(zip(keys, np.exp(ensemble.loss).tolist(), strict=True)),
            dict(zip(keys, np.exp(means).tolist(), strict=True)),
            {},
        ),
        None if seed is None else math.exp(seed),
        {"expert": names[best], "perplexity": math.exp(alone[best])},
    )
