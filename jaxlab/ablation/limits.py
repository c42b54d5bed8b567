"""What a mixture may be: required and forbidden members, size, and cost.

Two kinds of search read the same `Limits`. Over *subsets*, a cap bounds the sum of the
members' costs: what it takes to have them. Over *weights*, it bounds the mean cost
under the weights, `sum_k w_k cost_k`: what a token of the mixture takes. Required
members then weigh at least `least`, since "at least 0" would require nothing.

Weights are w = floor + free * v with v on a simplex; a cap on w is a cap on v. Two
projections onto {v >= 0, sum v = 1, v . costs <= cap} are exact, each a tilt with one
number lam >= 0 found by bisection, lam = 0 where the cap does not bind:

    nearest in KL(v | u)          v_k ~ u_k exp(-lam costs_k)                 (gradient)
    largest sum_k u_k log v_k     v_k ~ u_k / (1 + lam (costs_k - cap))             (EM)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.ablation import pool as pools
from jaxlab.core import errors


@dataclasses.dataclass(frozen=True)
class Limits:
    """Constraints on a mixture, for every search.

    Attributes:
        must: names that take part.
        forbid: names that do not.
        max_size: members at most; None for all.
        costs: name -> cost of every expert, e.g. tokens to be collected; with `cap`.
        cap: on the sum of the members' costs (subsets) or on the mean cost under the
            weights (continuous searches).
        least: weight of a required member at least, in continuous searches.
    """

    must: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    max_size: int | None = None
    costs: Mapping[str, float] | None = None
    cap: float | None = None
    least: float = 0.05

    def affords(self, names: Sequence[str]) -> bool:
        """Whether a subset fits the size and the cap."""
        fits = self.max_size is None or len(names) <= self.max_size
        return fits and (self.cap is None or self.total(names) <= self.cap)

    def total(self, names: Sequence[str]) -> float:
        """What the members cost together; 0 without costs."""
        return math.fsum(self.costs[name] for name in names) if self.costs else 0.0

    def subsets(
        self, pool: pools.ModelPool, weighting: pools.Weighting = "macro"
    ) -> list[dict[str, float]]:
        """Every mixture of the pool that is allowed, as `pool.mixtures` orders them.

        Raises:
            UserError: there is none, or as `pool.mixtures`.
        """
        self.check(pool.names)
        mixtures = pool.mixtures(
            self.max_size, self.must, self.forbid, weighting=weighting
        )
        allowed = [mixture for mixture in mixtures if self.affords(tuple(mixture))]
        if not allowed:
            cheapest = min(self.total(tuple(mixture)) for mixture in mixtures)
            raise errors.UserError(
                f"no mixture costs at most {self.cap:g}; the cheapest allowed one "
                f"costs {cheapest:g}"
            )
        return allowed

    def free(self, names: Sequence[str]) -> list[str]:
        """The members that may be chosen: neither required nor forbidden."""
        self.check(names)
        return [name for name in names if name not in (*self.must, *self.forbid)]

    def region(self, names: Sequence[str]) -> "Region":
        """The allowed weights of all experts, for a continuous search.

        Raises:
            UserError: no weights are allowed.
        """
        self.check(names)
        floor = np.array([self.least if name in self.must else 0.0 for name in names])
        free = 1 - floor.sum()
        if not (0 <= self.least < 1 and free > 0):
            raise errors.UserError(
                f"{len(self.must)} required members of weight {self.least:g} leave no "
                "weight free; use a smaller least"
            )
        costs = np.array([self.costs[n] if self.costs else 0.0 for n in names], float)
        cap = np.inf if self.cap is None else (self.cap - floor @ costs) / free
        allowed = np.array([name not in self.forbid for name in names])
        return Region(floor, free, costs, cap, allowed).drop_excluded()

    def check(self, names: Sequence[str]) -> None:
        """Raises a UserError for limits that no mixture of these experts can keep."""
        wanted = {*self.must, *self.forbid}
        if unknown := sorted(wanted - set(names)):
            raise errors.UserError(
                f"no expert {', '.join(unknown)}; the pool has {', '.join(names)}"
            )
        if both := sorted({*self.must} & {*self.forbid}):
            raise errors.UserError(f"{', '.join(both)}: both required and forbidden")
        if len({*self.forbid}) == len(names):
            raise errors.UserError("every expert is forbidden; allow one")
        if self.max_size is not None and self.max_size < max(1, len(self.must)):
            raise errors.UserError(
                f"max_size {self.max_size} is too small for {len(self.must)} required "
                "members; raise it"
            )
        if (self.cap is None) != (self.costs is None):
            raise errors.UserError("costs and cap are given together or not at all")
        if missing := [n for n in names if self.costs and n not in self.costs]:
            raise errors.UserError(f"no cost is given for {', '.join(missing)}")


class Region(NamedTuple):
    """Allowed weights `floor + free * v`, v on the simplex over `allowed`, capped.

    Attributes:
        floor: f64[M], the least weights.
        free: what is left to distribute.
        costs: f64[M].
        cap: on v . costs; infinity for none.
        allowed: bool[M], where v may be positive.
    """

    floor: np.ndarray
    free: float
    costs: np.ndarray
    cap: float
    allowed: np.ndarray

    def drop_excluded(self) -> "Region":
        """Itself, experts that a cap excludes left out; UserError if none are left."""
        cheapest = self.costs[self.allowed].min()
        if cheapest > self.cap:
            raise errors.UserError(
                "no weights keep the cap: even the cheapest allowed member costs "
                f"{cheapest:g} of {self.cap:g}; raise the cap"
            )
        if cheapest == self.cap:  # then only members of exactly that cost
            return self._replace(allowed=self.allowed & (self.costs <= self.cap))
        return self

    def weights(self, share: np.ndarray) -> np.ndarray:
        """v -> w, f64[M]."""
        return self.floor + self.free * share

    def nearest(self, share: np.ndarray) -> np.ndarray:
        """The allowed v with the least KL(v | share)."""
        lowest = self.costs[self.allowed].min()
        scale = max(np.ptp(self.costs), 1e-300)

        def tilt(share, position):  # lam from 0 to infinity
            lam = position / max(1 - position, 1e-16)
            with np.errstate(under="ignore"):
                return share * np.exp(-lam * (self.costs - lowest) / scale)

        return self._tilt(share, tilt)

    def likeliest(self, share: np.ndarray) -> np.ndarray:
        """The allowed v with the largest `sum_k share_k log v_k`."""
        gap = self.cap - self.costs[self.allowed].min()

        def tilt(share, position):  # lam to 1 / gap, where the cheapest has everything
            return share / np.maximum(
                1 + position * (self.costs - self.cap) / gap, 1e-16
            )

        return self._tilt(share, tilt)

    def largest(self, slopes: np.ndarray) -> float:
        """The maximum of `w . slopes` over the allowed weights.

        A linear function is largest at a corner: one member, or two at the cap.
        """
        slopes = np.asarray(slopes, np.float64)
        cheap = np.flatnonzero(self.allowed & (self.costs <= self.cap))
        best = slopes[cheap].max()
        for i in cheap:
            for j in np.flatnonzero(self.allowed & (self.costs > self.cap)):
                part = (self.cap - self.costs[i]) / (self.costs[j] - self.costs[i])
                best = max(best, (1 - part) * slopes[i] + part * slopes[j])
        return float(self.floor @ slopes + self.free * best)

    def smaller(self, weights: np.ndarray, size: int | None) -> "Region":
        """The region over at most `size` members: those of the largest weights.

        Raises:
            UserError: none of so few members can keep the cap.
        """
        if size is None or np.count_nonzero(weights) <= size:
            return self
        order = np.argsort(-weights, kind="stable")
        chosen = [k for k in order if self.floor[k] > 0]
        chosen += [k for k in order if self.floor[k] == 0 and self.allowed[k]]
        chosen, left = chosen[:size], chosen[size:]
        affordable = self.costs <= self.cap
        if not affordable[chosen].any():
            # Then the likeliest member that is cheap enough is the last one.
            if self.floor[chosen[-1]] > 0:
                raise errors.UserError(
                    f"no weights of {size} members keep the cap; raise it or max_size"
                )
            chosen[-1] = next(k for k in left if affordable[k])
        allowed = np.zeros_like(self.allowed)
        allowed[chosen] = True
        return self._replace(allowed=self.allowed & allowed).drop_excluded()

    def settle(self, share: np.ndarray, negligible: float) -> np.ndarray:
        """The weights f64[M] of `share`, negligible ones left out if the cap allows."""
        members = self.allowed & (self.weights(share) >= negligible)
        if not members.any() or self.costs[members].min() >= self.cap:
            return self.weights(self.nearest(share))
        return self.weights(self._replace(allowed=members).nearest(share))

    def _tilt(
        self, share: np.ndarray, tilt: Callable[[np.ndarray, float], np.ndarray]
    ) -> np.ndarray:
        share = np.where(self.allowed, share, 0.0)
        if share @ self.costs <= self.cap * share.sum():
            return share / share.sum()

        def at(position):
            tilted = np.where(self.allowed, tilt(share, position), 0.0)
            return tilted / tilted.sum()

        share = np.where(self.allowed, np.maximum(share, 1e-12), 0.0)  # none is lost
        low, high = 0.0, 1.0  # cost falls with the position; `high` keeps the cap
        for _ in range(100):
            middle = (low + high) / 2
            if at(middle) @ self.costs <= self.cap:
                high = middle
            else:
                low = middle
        return at(high)
