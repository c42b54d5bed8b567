"""Mixtures: which row of which source is drawn when.

Two kinds, both pure functions of (seed, number of the draw):

* Without weights, sources are concatenated and each epoch is one permutation of all
  rows: `uint32 arange(n)` shuffled by `Generator(PCG64(seed + epoch))`, exactly OLMo's
  order (Groeneveld et al., 2024, arXiv:2402.00838; olmo/data/iterable_dataset.py). A
  source is up-weighted by being listed again, as there.
* With weights, draws follow one fixed cycle of at most 100,000 draws in which source s
  has `quota_s` draws, spread evenly: the k-th of them stands at (k + 1/2) / quota_s of
  the cycle. Every prefix holds each source's share up to fewer draws than there are
  sources. Each source then goes through its own epochs, in OLMo's order.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data.corpus import token_files

_CYCLE = 100_000  # weights are exact to five decimals


class Draws(NamedTuple):
    """What a range of draws reads; arrays i64[draws].

    Attributes:
        source: which source.
        row: which of the source's rows.
        epoch: how often the order was begun before: over all rows without weights,
            over the source's rows with weights.
    """

    source: np.ndarray
    row: np.ndarray
    epoch: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Token files with the shares in which they are drawn.

    Attributes:
        sources: token files; one may be listed more than once.
        weights: share of each source (any positive scale), or None for concatenation.
        names: for reports; the files' names by default.

    Raises:
        UserError: no source, a count that does not match, a weight that is not a
            positive number.

    >>> mixture = Mixture(["a", "b"], [3, 1], ["a", "b"])
    >>> mixture.quotas
    (3, 1)
    >>> mixture.draws(0, 8, rows=[5, 5], seed=0).source.tolist()
    [0, 0, 1, 0, 0, 0, 1, 0]
    """

    sources: Sequence[token_files.TokenFile]
    weights: Sequence[float] | None = None
    names: Sequence[str] | None = None

    def __post_init__(self):
        if not self.sources:
            raise errors.UserError("a mixture needs a source; give token files")
        if self.names is None:
            object.__setattr__(self, "names", [file.name for file in self.sources])
        for what in ("names", "weights"):
            given = getattr(self, what)
            if given is not None and len(given) != len(self.sources):
                raise errors.UserError(
                    f"{len(given)} {what} for {len(self.sources)} sources; "
                    "give one each"
                )
        if self.weights is not None:
            weights = [float(weight) for weight in self.weights]
            for name, weight in zip(self.names, weights, strict=True):
                if not (math.isfinite(weight) and weight > 0):
                    raise errors.UserError(
                        f"weight {weight} of {name} is not a positive number; leave "
                        "the source out to drop it"
                    )
            object.__setattr__(self, "weights", tuple(weights))

    @functools.cached_property
    def quotas(self) -> tuple[int, ...] | None:
        """Draws of each source in one cycle, or None without weights.

        The share of a source is exactly its quota over their sum: the weights rounded
        by largest remainders to a cycle of 100,000, at least 1 each, then reduced.
        """
        if self.weights is None:
            return None
        weights = np.asarray(self.weights)
        exact = weights / weights.sum() * _CYCLE
        floors = np.floor(exact + 1e-6).astype(int)  # 0.3 / 1.0 must not floor to 29999
        rest = np.argsort(-(exact - floors), kind="stable")[: _CYCLE - floors.sum()]
        floors[rest] += 1
        quotas = [max(1, int(quota)) for quota in floors]
        divisor = math.gcd(*quotas)
        return tuple(quota // divisor for quota in quotas)

    @functools.cached_property
    def _cycle(self) -> tuple[np.ndarray, np.ndarray]:
        """Source of each draw of the cycle, and its number among the source's draws."""
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)
        numbers = np.concatenate([np.arange(quota) for quota in self.quotas])
        positions = (numbers + 0.5) / np.repeat(self.quotas, self.quotas)
        order = np.argsort(positions, kind="stable")
        return sources[order], numbers[order]

    @functools.cached_property
    def _orders(self) -> list[dict[tuple, np.ndarray]]:
        """The last orders of each source: large, and needed step after step."""
        return [{} for _ in self.sources]

    def draws(self, start: int, stop: int, *, rows: Sequence[int], seed: int) -> Draws:
        """What the draws numbered start..stop-1 read.

        Args:
            start: first draw, counted from the start of training.
            stop: one after the last.
            rows: how many rows each source has.
            seed: of the order.
        """
        number = np.arange(start, stop, dtype=np.int64)
        if self.weights is None:
            ends = np.cumsum(np.asarray(rows, np.int64))
            index, epoch = endless(number, int(ends[-1]), seed, self._orders[0])
            source = np.searchsorted(ends, index, side="right")
            return Draws(source, index - (ends - rows)[source], epoch)
        cycle_source, cycle_number = self._cycle
        cycle, position = np.divmod(number, len(cycle_source))
        source = cycle_source[position]
        quota = np.asarray(self.quotas)[source]
        of_source = cycle * quota + cycle_number[position]
        row, epoch = np.empty_like(number), np.empty_like(number)
        for s in np.unique(source):
            mine = source == s
            row[mine], epoch[mine] = endless(
                of_source[mine], int(rows[s]), seed, self._orders[s]
            )
        return Draws(source, row, epoch)

    def counts(self, draws: int, *, rows: Sequence[int], seed: int) -> np.ndarray:
        """i64[sources]: how often each source is drawn in the first `draws` draws."""
        if self.weights is None:
            epochs, rest = divmod(draws, int(sum(rows)))
            tail = self.draws(draws - rest, draws, rows=rows, seed=seed).source
            whole = epochs * np.asarray(rows, np.int64)
        else:
            cycle = self._cycle[0]
            cycles, rest = divmod(draws, len(cycle))
            tail = cycle[:rest]
            whole = cycles * np.asarray(self.quotas, np.int64)
        return whole + np.bincount(tail, minlength=len(self.sources))

    def order_sha256(self, epoch: int, *, rows: Sequence[int], seed: int) -> str:
        """Fixes one epoch's order in 64 letters.

        Without weights it is the sha256 of OLMo's `global_indices.npy` for a world size
        that divides the number of rows; with weights, of the cycle of sources and of
        every source's permutation.
        """
        digest = hashlib.sha256()
        if self.weights is None:
            digest.update(permutation(int(sum(rows)), seed, epoch).astype("<u4"))
        else:
            digest.update(self._cycle[0].astype("<u4"))
            for count in rows:
                digest.update(permutation(int(count), seed, epoch).astype("<u4"))
        return digest.hexdigest()


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """u32[rows]: OLMo's order of an epoch.

    Seed and epoch are added, as there: epoch 1 of seed 0 is epoch 0 of seed 1.

    >>> permutation(5, seed=6198, epoch=0).tolist()
    [3, 0, 2, 1, 4]
    """
    if not 0 < rows < 2**32:
        raise errors.UserError(f"{rows} rows cannot be ordered; use 1 to 2^32 - 1")
    order = np.arange(rows, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(order)
    return order


def endless(
    numbers: np.ndarray, rows: int, seed: int, orders: dict[tuple, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and epoch of each draw of an endless run through epochs of `rows`.

    Args:
        numbers: i64[...] of the draws, from 0.
        rows: of an epoch.
        seed: of the order.
        orders: those of two epochs, which are kept here from call to call.
    """
    epochs, positions = np.divmod(numbers, rows)
    index = np.empty_like(numbers)
    for epoch in np.unique(epochs).tolist():
        order = orders.get((rows, seed, epoch))
        if order is None:
            order = permutation(rows, seed, epoch)
            while len(orders) >= 2:  # a batch may straddle two epochs
                orders.pop(next(iter(orders)), None)
            orders[rows, seed, epoch] = order
        mine = epochs == epoch
        index[mine] = order[positions[mine]]
    return index, epochs
