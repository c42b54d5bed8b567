"""Percentile bootstrap intervals: for any statistic of one or several samples.

    resample rows with replacement R times, take the statistic of each, and report its
    (1 - confidence) / 2 and (1 + confidence) / 2 quantiles

Efron 1979, *Bootstrap methods: another look at the jackknife*. All samples are
resampled by the same rows, so that what is paired (two models on one document, a proxy
and its truth for one mixture) stays paired. Resamples run compiled, in blocks, so that
memory is that of one block.

Deviations: resamples on which the statistic is NaN (a correlation of a resample that
repeats one item) are left out of the quantiles, unless the statistic of the samples
themselves is NaN. The interval is the percentile one; it is too narrow for a handful of
rows, where no bootstrap helps.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 64  # resamples alive at a time


class Interval(NamedTuple):
    """A statistic and its bootstrap interval, each of the statistic's shape."""

    low: jax.Array
    value: jax.Array
    high: jax.Array


def bootstrap(
    statistic: Callable[..., jax.Array],
    samples: jax.Array | Sequence[jax.Array],
    *,
    key: jax.Array,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """The statistic of the samples, with its percentile interval.

    Args:
        statistic: `statistic(*samples)` -> an array, made of jax functions. It keys the
            compilation cache: pass one function object, not a new lambda per call.
        samples: one array [n, ...], or several with the same n, resampled together.
        key: of the resampling; the same key gives the same interval.
        resamples: R, how many.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        ValueError: samples of different or no rows, confidence outside (0, 1), R < 1.

    >>> x = jnp.arange(100.0)
    >>> low, value, high = bootstrap(jnp.mean, x, key=jax.random.key(0))
    >>> bool(low < value < high), float(value)
    (True, 49.5)
    """
    several = isinstance(samples, list | tuple)
    arrays = tuple(map(jnp.asarray, samples if several else [samples]))
    rows = {array.shape[0] if array.ndim else None for array in arrays}
    if len(rows) != 1 or not rows - {None, 0}:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"samples need one common number of rows, not shapes {shapes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples {resamples}; at least 1 is needed")
    return _bootstrap(statistic, arrays, key, resamples, confidence)


def paired_difference(
    a: jax.Array,
    b: jax.Array,
    *,
    key: jax.Array,
    statistic: Callable[[jax.Array], jax.Array] = jnp.mean,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """The interval of `statistic(a) - statistic(b)` where row i of both is one item.

    Far narrower than two separate intervals when the items differ more than `a` and `b`
    do. If the interval is without 0, `a` and `b` differ.

    Args:
        a: f32[n, ...], e.g. losses of one model by document.
        b: f32[n, ...], of another on the same documents.
        key: of the resampling.
        statistic: of one array.
        resamples: how many.
        confidence: of the interval.

    Raises:
        ValueError: as `bootstrap`.

    >>> a = jnp.arange(10.0)
    >>> low, value, high = paired_difference(a + a % 2, a, key=jax.random.key(0))
    >>> bool(0 < low < high < 1), round(float(value), 4)
    (True, 0.5)
    """
    return bootstrap(
        _Difference(statistic),
        (a, b),
        key=key,
        resamples=resamples,
        confidence=confidence,
    )


@dataclasses.dataclass(frozen=True)
class _Difference:  # equal statistics make equal instances: one compiled program
    statistic: Callable[[jax.Array], jax.Array]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return self.statistic(a) - self.statistic(b)


@functools.partial(jax.jit, static_argnames=("statistic", "resamples"))
def _bootstrap(
    statistic: Any, samples: tuple, key: jax.Array, resamples: int, confidence: float
) -> Interval:
    size = samples[0].shape[0]

    def resample(key):
        rows = jax.random.randint(key, (size,), 0, size)
        return statistic(*(sample[rows] for sample in samples))

    draws = jax.lax.map(
        resample, jax.random.split(key, resamples), batch_size=min(_BLOCK, resamples)
    )
    value = statistic(*samples)
    tails = jnp.stack([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = jnp.where(
        jnp.isnan(value)[None], jnp.nan, jnp.nanquantile(draws, tails, axis=0)
    )
    return Interval(low, value, high)
