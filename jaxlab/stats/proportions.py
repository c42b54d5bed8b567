"""Intervals of a share: right answers among all.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

Wilson 1927, *Probable inference, the law of succession, and statistical inference*:
unlike p +- z sqrt(p (1 - p) / n) it does not shrink to a point at 0 and at 1, and it
covers for small n (Brown, Cai and DasGupta 2001).
"""

import math
import statistics
from typing import NamedTuple


class Share(NamedTuple):
    """A share with its interval; NaN of nothing."""

    low: float
    value: float
    high: float
    count: int


def share(right: float, count: int, *, confidence: float = 0.95) -> Share:
    """The share of `right` among `count`, with Wilson's interval.

    Args:
        right: how many; halves may count.
        count: of all.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        ValueError: right is not in 0 to count, or the confidence not in (0, 1).

    >>> [round(float(x), 3) for x in share(9, 10)]
    [0.596, 0.9, 0.982, 10.0]
    """
    if not 0 <= right <= count:
        raise ValueError(f"{right} right of {count}; use 0 to {count}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if not count:
        return Share(math.nan, math.nan, math.nan, 0)
    z, p = statistics.NormalDist().inv_cdf((1 + confidence) / 2), right / count
    middle, scale = p + z**2 / (2 * count), 1 + z**2 / count
    reach = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return Share((middle - reach) / scale, p, (middle + reach) / scale, count)
