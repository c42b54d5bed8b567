"""Paired bootstrap of ratios of sums, e.g. the loss per token of many models.

    value_k = sum_d totals[k, d] / sum_d weights[d]

Documents d are resampled with replacement, the same ones for all k, so that models stay
paired. One resample is a vector of counts n_d; all of its ratios are one product of
matrices, `totals @ n / weights @ n`, instead of a gather of `totals`. Koehn 2004,
*Statistical significance tests for machine translation evaluation*, resamples sentences
for pairs of systems in this way; `least_probability` is its question for K systems.

Deviations: computed in float32 after the mean over k has been taken out in float64,
since what separates models is small beside what separates documents. Of fewer than two
documents nothing can be resampled: intervals and probabilities are NaN.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 64  # resamples alive at a time


class Ratios(NamedTuple):
    """K ratios with percentile intervals, each f64[K].

    Attributes:
        low: lower end of the interval.
        value: the ratio itself.
        high: upper end of the interval.
        least_probability: share of resamples in which the ratio is the least of the K;
            ties share. Sums to 1 over the finite ones; 0 for one that is not finite.
    """

    low: np.ndarray
    value: np.ndarray
    high: np.ndarray
    least_probability: np.ndarray


def ratios(
    totals: np.ndarray,
    weights: np.ndarray,
    *,
    key: jax.Array,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Ratios:
    """The ratios, their paired bootstrap intervals and which one is the least.

    Args:
        totals: f64[K, D], e.g. nats of K models on D documents.
        weights: f64[D], all positive, e.g. tokens.
        key: of the resampling; the same key gives the same resamples.
        resamples: R, how many; memory is R K numbers.
        confidence: of the two-sided intervals, in (0, 1).

    Raises:
        ValueError: shapes that do not fit, weights that are not positive and finite,
            confidence outside (0, 1), R < 1.

    >>> key = jax.random.key(0)
    >>> losses = ratios([[1.0, 4.0], [2.0, 5.0]], [1.0, 2.0], key=key)
    >>> losses.value.round(3).tolist(), losses.least_probability.tolist()
    ([1.667, 2.333], [1.0, 0.0])
    """
    totals, weights = _to_arrays(totals, weights)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    value = totals.sum(axis=1) / weights.sum()
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    least = np.full_like(value, np.nan)
    if len(weights) < 2:
        return Ratios(low, value, high, least)
    finite = np.isfinite(totals).all(axis=1)
    if finite.any():
        # Equal rows once: their rounding may differ, and they have to tie.
        distinct, group = np.unique(totals[finite], axis=0, return_inverse=True)
        differing, common = _draws(distinct, weights, key, resamples)
        differing, common = np.asarray(differing), np.asarray(common)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        # On the host: XLA takes seconds to compile a sort, and this is the only one.
        ends = np.quantile(differing + common[:, None], tails, axis=0)
        low[finite], high[finite] = ends[:, group]
        is_least = differing == differing.min(axis=1, keepdims=True)
        share = (is_least / is_least.sum(axis=1, keepdims=True)).mean(axis=0)
        least[:] = 0
        least[finite] = (share / np.bincount(group))[group]
    return Ratios(low, value, high, least)


def resample_ratios(
    totals: np.ndarray, weights: np.ndarray, *, key: jax.Array, resamples: int = 1000
) -> jax.Array:
    """The ratios of every resample, f32[R, K]; one key, one choice of documents.

    For statistics of several ratios, such as a correlation.

    Raises:
        ValueError: as `ratios`.
    """
    totals, weights = _to_arrays(totals, weights)
    differing, common = _draws(totals, weights, key, resamples)
    return differing + common[:, None]


def _to_arrays(totals, weights):
    totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    if totals.ndim != 2 or weights.shape != totals.shape[1:] or not totals.size:
        raise ValueError(
            f"totals [K, D] and weights [D] are needed, not shapes {totals.shape} and "
            f"{weights.shape}"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("weights must be positive and finite")
    return totals, weights


def _draws(totals, weights, key, resamples):
    """Ratios less their mean over k, f32[R, K], and that mean, f32[R]."""
    if resamples < 1:
        raise ValueError(f"resamples {resamples}; at least 1 is needed")
    finite = totals[np.isfinite(totals).all(axis=1)]
    mean = finite.mean(axis=0) if len(finite) else np.zeros_like(weights)
    parts = (totals - mean, mean, weights)
    return _resample(*(jnp.asarray(p, jnp.float32) for p in parts), key, resamples)


@functools.partial(jax.jit, static_argnames="resamples")
def _resample(differing, common, weights, key, resamples):
    size = weights.size

    def once(key):
        counts = jnp.zeros(size).at[jax.random.randint(key, (size,), 0, size)].add(1.0)
        dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
        weight = dot(weights, counts)
        return dot(differing, counts) / weight, dot(common, counts) / weight

    # Whole blocks, so that one loop is compiled and no remainder beside it.
    keys = jax.random.split(key, -(-resamples // _BLOCK) * _BLOCK)
    drawn = jax.lax.map(once, keys, batch_size=_BLOCK)
    return jax.tree.map(lambda values: values[:resamples], drawn)
