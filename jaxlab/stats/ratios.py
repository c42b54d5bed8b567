"""Paired bootstrap of ratios of sums, e.g. the loss per token of many models.

    value_k = sum_d totals[k, d] / sum_d weights[d]

Items d are resampled with replacement, the same ones for all k, so that models stay
paired. One resample is a vector of counts n_d; all of its ratios are one product of
matrices, `totals @ n / weights @ n`, instead of a gather of `totals`. Koehn 2004,
*Statistical significance tests for machine translation evaluation*, resamples sentences
for pairs of systems in this way; `least_probability` is its question for K systems.

Items may come in groups, as windows come in documents. Then groups are resampled whole;
where they are fewer than `FEW`, the items of each group that was drawn are too. Of a
single group only its items are. An interval reaches t_{n-1} sqrt(n / (n - 1)) s to both
sides: Student's t, for n groups, of standard errors; s, the deviation of the resampled
ratios, is made unbiased by the root. Percentiles would not do: those of n means lie
between the least and the greatest of the n, which miss the truth in 2 of 2^n texts.
Where items are drawn within groups, what sets items apart counts twice: such intervals
are wide rather than narrow.

Deviations: computed in float32 after the mean over k has been taken out in float64,
since what separates models is small beside what separates documents. A single item
cannot be resampled: intervals and probabilities are NaN.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FEW = 10  # groups: with fewer, items are resampled within them
_BLOCK = 64  # resamples alive at a time


class Ratios(NamedTuple):
    """K ratios with intervals, each f64[K].

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
    groups: np.ndarray | None = None,
    *,
    key: jax.Array,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Ratios:
    """The ratios, their paired bootstrap intervals and which one is the least.

    Args:
        totals: f64[K, D], e.g. nats of K models on D documents.
        weights: f64[D], all positive, e.g. tokens.
        groups: i64[D], 0 .. G-1, in order; None for each item alone.
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
    totals, weights, groups = _to_arrays(totals, weights, groups)
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
        differing, common = _draws(distinct, weights, groups, key, resamples)
        differing, common = np.asarray(differing), np.asarray(common)
        drawn = differing.astype(np.float64) + common[:, None]
        reach = _reach(int(groups[-1]) + 1, len(weights), confidence)
        half = (reach * drawn.std(axis=0))[group]
        low[finite], high[finite] = value[finite] - half, value[finite] + half
        is_least = differing == differing.min(axis=1, keepdims=True)
        share = (is_least / is_least.sum(axis=1, keepdims=True)).mean(axis=0)
        least[:] = 0
        least[finite] = (share / np.bincount(group))[group]
    return Ratios(low, value, high, least)


def describe(items: int, groups: np.ndarray | None = None) -> str:
    """What is resampled, or why nothing is, of windows that come in documents.

    >>> describe(40), describe(3, np.array([0, 0, 1])), describe(1)
    ('40 documents', '2 documents and the windows within them', 'nothing: one window')
    """
    count = items if groups is None else int(groups[-1]) + 1
    if items < 2:
        return "nothing: one window"
    if count == 1:
        return f"{items} windows of the only document"
    if count >= FEW or count == items:
        return f"{count} documents"
    return f"{count} documents and the windows within them"


def resample_ratios(
    totals: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    key: jax.Array,
    resamples: int = 1000,
) -> jax.Array:
    """The ratios of every resample, f32[R, K]; one key, one choice of items.

    For statistics of several ratios, such as a correlation.

    Raises:
        ValueError: as `ratios`.
    """
    totals, weights, groups = _to_arrays(totals, weights, groups)
    differing, common = _draws(totals, weights, groups, key, resamples)
    return differing + common[:, None]


def _reach(groups: int, items: int, confidence: float) -> float:
    """How many deviations of the resampled ratios an interval reaches to a side."""
    import scipy.stats  # here: it takes longer to import than what calls this

    n = groups if groups > 1 else items
    return float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * (n / (n - 1)) ** 0.5)


def _to_arrays(totals, weights, groups):
    totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    if totals.ndim != 2 or weights.shape != totals.shape[1:] or not totals.size:
        raise ValueError(
            f"totals [K, D] and weights [D] are needed, not shapes {totals.shape} and "
            f"{weights.shape}"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("weights must be positive and finite")
    if groups is None:
        groups = np.arange(len(weights))
    groups = np.asarray(groups)
    steps = np.diff(groups, prepend=-1) if groups.shape == weights.shape else [-1]
    if not np.isin(steps, (0, 1)).all() or groups[0] != 0:
        raise ValueError("groups must be D numbers 0, 1, ... in order")
    return totals, weights, groups


def _draws(totals, weights, groups, key, resamples):
    """Ratios less their mean over k, f32[R, K], and that mean, f32[R]."""
    if resamples < 1:
        raise ValueError(f"resamples {resamples}; at least 1 is needed")
    finite = totals[np.isfinite(totals).all(axis=1)]
    mean = finite.mean(axis=0) if len(finite) else np.zeros_like(weights)
    parts = (totals - mean, mean, weights)
    sizes = np.bincount(groups)
    longest = 0  # groups are drawn whole
    if len(sizes) < FEW and len(sizes) < len(weights):
        longest = int(sizes.max())
    else:
        starts = np.cumsum(sizes) - sizes
        parts = [np.add.reduceat(part, starts, axis=-1) for part in parts]
    parts = [jnp.asarray(part, jnp.float32) for part in parts]
    return _resample(*parts, jnp.asarray(sizes), key, resamples, longest)


@functools.partial(jax.jit, static_argnames=("resamples", "longest"))
def _resample(differing, common, weights, sizes, key, resamples, longest):
    count, starts = sizes.size, jnp.cumsum(sizes) - sizes

    def draw(key):
        """f32[D]: how often each item is taken."""
        chosen = jax.random.randint(key, (count,), 0, count)
        counts = jnp.zeros(weights.size)
        if not longest:
            return counts.at[chosen].add(1.0)
        within = jax.random.uniform(jax.random.fold_in(key, 1), (count, longest))
        size = sizes[chosen][:, None]
        place = jnp.minimum(jnp.floor(within * size).astype(jnp.int32), size - 1)
        item = starts[chosen][:, None] + place
        # As many items as the group has: the rest of the drawn ones count nothing.
        return counts.at[item].add(jnp.arange(longest)[None] < size)

    def once(key):
        counts = draw(key)
        dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
        weight = dot(weights, counts)
        return dot(differing, counts) / weight, dot(common, counts) / weight

    # Whole blocks, so that one loop is compiled and no remainder beside it.
    keys = jax.random.split(key, -(-resamples // _BLOCK) * _BLOCK)
    drawn = jax.lax.map(once, keys, batch_size=_BLOCK)
    return jax.tree.map(lambda values: values[:resamples], drawn)
