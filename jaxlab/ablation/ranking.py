"""Which mixture is best by a proxy, and how sure that is.

A ranking is of one target and one proxy. Documents are resampled with replacement, and
where they are few their windows too, the same ones for all mixtures
(`stats/ratios.py`), which gives every mixture an interval and the probability that it
is the best: the share of resamples that it wins.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlab.ablation import documents, proxies
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, types
from jaxlab.stats import ratios

_NOT_FINITE = "nothing: a loss that is not finite"
Predict = Callable[[str, Iterable[types.Batch]], documents.DocumentLosses]


class RankedMixture(NamedTuple):
    """A mixture and what a proxy says about training on it.

    Attributes:
        mixture: expert -> weight.
        predicted_loss: nats per token.
        predicted_perplexity: its exponential.
        low: lower end of the loss's interval; NaN where there is one window.
        high: upper end.
        best_probability: share of resamples that it wins.
        rank: from 1; equal losses share the better rank.
        resampled: what the interval is over, in words; or why there is none.
    """

    mixture: dict[str, float]
    predicted_loss: float
    predicted_perplexity: float
    low: float = math.nan
    high: float = math.nan
    best_probability: float = math.nan
    rank: int = 0
    resampled: str = ""

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """The interval of the perplexity."""
        return _perplexity(self.low), _perplexity(self.high)


def rank_mixtures(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    evaluation: Mapping[str, Iterable[types.Batch]],
    losses_fn: proxies.TokenLosses,
    *,
    mode: proxies.Mode = "map",
    key: jax.Array | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    progress: Callable[[str, int, int | None], None] | None = None,
    predict: Predict | None = None,
) -> dict[str, list[RankedMixture]]:
    """The mixtures by the loss of their merged models, best first, for each target.

    Args:
        pool: the experts.
        mixtures: the candidates.
        evaluation: target -> batches; batches of one shape share one compiled program.
        losses_fn: as for `proxies.document_losses`.
        mode: as for `proxies.document_losses`.
        key: of the resampling of documents; None for `jax.random.key(0)`.
        resamples: how many.
        confidence: of the intervals.
        progress: called with (target, batches done, batches in all or None).
        predict: (target, its batches) -> losses of the mixtures by document, by another
            proxy or from a cache; None merges them, by `proxies.document_losses`.

    Returns:
        target -> ranking, as `rank`.

    Raises:
        UserError: no targets, or as `proxies.document_losses`.
    """
    if not evaluation:
        raise errors.UserError("no evaluation targets are given")
    ranking = {}
    for target, batches in evaluation.items():
        if predict is None:
            report = None if progress is None else functools.partial(progress, target)
            losses = proxies.document_losses(
                pool, mixtures, losses_fn, batches, mode=mode, progress=report
            )
        else:
            losses = predict(target, batches)
        ranking[target] = rank(
            mixtures, losses, key=key, resamples=resamples, confidence=confidence
        )
    return ranking


def rank(
    mixtures: Sequence[pools.Mixture],
    losses: documents.DocumentLosses,
    *,
    key: jax.Array | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[RankedMixture]:
    """A ranking from any proxy's losses: best first, NaN last, ties in given order.

    Args:
        mixtures: K of them.
        losses: of the K, e.g. one of `proxies.predictions`.
        key: of the resampling; None for `jax.random.key(0)`.
        resamples: how many.
        confidence: of the intervals.
    """
    key = jax.random.key(0) if key is None else key
    found = ratios.ratios(*losses, key=key, resamples=resamples, confidence=confidence)
    finite = np.isfinite(found.value)
    resampled = [losses.resampled if f else _NOT_FINITE for f in finite]
    order = np.argsort(found.value, kind="stable")  # NaN comes last
    ranks = np.searchsorted(found.value[order], found.value) + 1
    return [
        RankedMixture(
            mixture=dict(mixtures[i]),
            predicted_loss=float(found.value[i]),
            predicted_perplexity=_perplexity(found.value[i]),
            low=float(found.low[i]),
            high=float(found.high[i]),
            best_probability=float(found.least_probability[i]),
            rank=int(ranks[i]),
            resampled=resampled[i],
        )
        for i in order
    ]


def _perplexity(loss: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(loss))
