"""Which mixtures a study predicts and which it trains, and how they are written.

Mixtures are {partition: share of the data}.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlab import ablation


def affordable(pool: ablation.ModelPool, most: int = 256) -> list[dict[str, float]]:
    """Every subset of the experts, or all up to the size of which `most` can be had."""
    return pool.mixtures(max_size=affordable_size(len(pool.names), most)[0])


def choose(
    units: Sequence[str], count: int, seed: int, largest: int = 5
) -> list[dict[str, float]]:
    """Mixtures of two or more units to be trained, equal shares, small ones first.

    Sizes take turns, so that the check is not of one size only; within a size the
    choice is random, so that it is not the ranking's favourites either.

    >>> [sorted(mixture) for mixture in choose(["a", "b", "c"], 2, seed=0)]
    [['b', 'c'], ['a', 'b', 'c']]
    """
    random = np.random.default_rng(seed)
    by_size = []
    for size in range(2, min(len(units), largest) + 1):
        subsets = list(itertools.combinations(units, size))
        by_size.append([subsets[i] for i in random.permutation(len(subsets))])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_size))
    chosen = list(itertools.islice((subset for subset in turns if subset), count))
    chosen.sort(key=len)
    return [dict.fromkeys(subset, 1.0 / len(subset)) for subset in chosen]


def whole_percents(mixture: Mapping[str, float]) -> dict[str, float]:
    """A mixture in whole percents, so that one name is one mixture; equal shares stay.

    >>> whole_percents({"law": 0.7461, "code": 0.2519, "cook": 0.002})
    {'law': 0.75, 'code': 0.25}
    """
    shares = np.array(list(mixture.values())) * 100 / sum(mixture.values())
    if np.ptp(shares) < 1e-4:
        return dict(mixture)
    whole = np.floor(shares)
    largest = np.argsort(whole - shares, kind="stable")
    whole[largest[: round(100 - whole.sum())]] += 1
    named = zip(mixture, (whole / 100).tolist(), strict=True)
    return {name: share for name, share in named if share}


def affordable_size(units: int, most: int) -> tuple[int, int]:
    """Members at most, and the number of mixtures of so many: `most`, or fewer."""
    sizes = range(1, units + 1)
    counts = itertools.accumulate(math.comb(units, size) for size in sizes)
    fitting = [(k, n) for k, n in zip(sizes, counts, strict=True) if n <= most]
    return max(fitting, default=(1, units))
