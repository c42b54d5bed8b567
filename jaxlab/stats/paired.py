"""Paired comparison of two methods over seeds: t interval, exact sign-flip test.

    d_i = a_i - b_i                 the difference of seed i
    interval    mean d -+ t sd(d) / sqrt(n),     t of Student's law, n - 1 degrees
    p           share of the 2^n choices of signs with |sum_i s_i d_i| >= |sum_i d_i|

p is how often a mean this far from 0 comes about when a and b are exchangeable
within a seed; it assumes nothing else, and is exact. Fisher 1935, *The design of
experiments*, section 21.

For a handful of runs, where the percentile interval of `stats.bootstrap` is too narrow;
that one is for many items (documents, queries) and for statistics other than the mean.

Deviations: above 20 pairs p is that of the paired t test, which then hardly differs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

_EXACT = 20  # pairs up to which all signs are tried: 2^20 sums


class PairedDifference(NamedTuple):
    """The mean of a - b over matched seeds.

    Attributes:
        mean: of the differences.
        low: lower end of the interval of the mean.
        high: upper end.
        p_value: two-sided. It is at least 2 / 2^n: five seeds reach 0.0625
            at the least, six reach 0.031.
        n: how many pairs.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
) -> PairedDifference:
    """How far `a` is from `b`, where entry i of both is a run with seed i.

    Args:
        a: f64[n], e.g. final perplexities of one optimizer.
        b: f64[n], of another with the same seeds.
        confidence: of the two-sided t interval, in (0, 1).

    Returns:
        Of one pair the interval is NaN and p 1. All but n is NaN when a value is not
        finite: a run that diverged has no mean.

    Raises:
        ValueError: not two vectors of one length, no pairs, a confidence outside
            (0, 1).

    >>> difference = paired_difference([3.0, 5.0, 6.0, 8.0], [2.0, 3.0, 5.0, 6.0])
    >>> [round(value, 3) for value in difference]
    [1.5, 0.581, 2.419, 0.125, 4]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(
            f"pairs need two vectors of one length, not shapes {a.shape} and {b.shape}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    n = a.size
    if not np.isfinite([a, b]).all():
        return PairedDifference(math.nan, math.nan, math.nan, math.nan, n)
    differences = a - b
    mean = float(differences.mean())
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, 1.0, n)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(confidence, n - 1) * error
    # Equal differences of unequal numbers are equal only up to this; they have to tie.
    rounding = n * np.finfo(np.float64).eps * (np.abs(a).sum() + np.abs(b).sum())
    if n <= _EXACT:
        p_value = _sign_flip_p(differences, rounding)
    else:
        t = abs(mean) / error if error else (math.inf if mean else 0.0)
        p_value = float(2 * special.stdtr(n - 1, -t))
    return PairedDifference(mean, mean - half, mean + half, p_value, n)


def t_quantile(confidence: float, degrees: float) -> float:
    """The t with P(|T| <= t) = confidence, for degrees of freedom >= 1.

    >>> round(t_quantile(0.95, 4), 4)
    2.7764
    """
    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def _sign_flip_p(differences, rounding):
    # The first sign stays: flipping all of them changes no absolute value.
    sums = differences[:1]
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - rounding))
