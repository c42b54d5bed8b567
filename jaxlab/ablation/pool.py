"""A pool of experts branched from one seed model, and the mixtures they stand for.

Na et al. 2024, *Scalable Data Ablation Approximations for Language Models through
Modular Training and Merging*, arXiv:2410.15661. Cut the data into n partitions of
equal token budget ("base units"); continue training one seed model on each, giving
experts theta_1 ... theta_n; then the loss of the model that would have been trained on
a mixture S is predicted by the loss of the average of its experts

    theta_S = sum_{k in S} w_k theta_k,     w_k = 1 / |S|            (macro)
                                            w_k = u_k / sum_S u_j    (micro)
                                            w_k = t_k / sum_S t_j    (tokens)

where `u_k` is how many base units expert k was trained on and `t_k` how many different
tokens its partition has. Macro weighs *sources* alike: where several experts are of one
source they share its weight by their units. Training costs O(n) units in all and one
more for each new partition; training every mixture outright costs
sum_k k C(n, k) = n 2^(n-1). Neither counts the evaluations, one per mixture and target.

Deviations: the released code averages uniformly and gets the micro merge by averaging
base-unit models, which is the micro weighting above when every expert is such an
average; for an expert trained in one run over several units, weighting by `u_k` is our
reading. Size weighting (tokens) is not in the paper, whose small partitions are
repeated until all units are equal. Any other weights are accepted everywhere.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxlab import merge
from jaxlab.core import errors, tree, types

Mixture = Mapping[str, float]  # expert -> weight, of the experts that take part
Weighting = Literal["macro", "micro", "tokens"]

_MANY = 100_000  # mixtures; beyond this an enumeration is a mistake, not a plan


class Cost(NamedTuple):
    """Base units of training: the pool, against a training run for each mixture."""

    pool_units: int
    separate_units: int


@dataclasses.dataclass(frozen=True, eq=False)
class ModelPool:
    """Experts branched from one seed, stacked. Made by `ModelPool.create`.

    Attributes:
        names: of the M experts, in the order of the stacked axis.
        stacked: the experts as one tree of leaves [M, ...].
        units: how many base units of equal token budget each was trained on.
        seed: the parameters they branched from, or None.
        tokens: in each expert's partition, repeats not counted; or None.
        sources: of each expert, for the macro weighting; () for one of its own each.
    """

    names: tuple[str, ...]
    stacked: types.Params
    units: tuple[int, ...]
    seed: types.Params | None = None
    tokens: tuple[int, ...] | None = None
    sources: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        experts: Mapping[str, types.Params],
        *,
        seed: types.Params | None = None,
        units: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> "ModelPool":
        """Stacks the experts; the originals can be dropped afterwards.

        Args:
            experts: name -> parameters, alike in structure, shapes and dtypes.
            seed: the parameters that all were branched from, for the baseline.
            units: name -> base units it was trained on; None for one each.
            tokens: name -> different tokens of its partition, if known.
            sources: name -> source; names without one are a source of their own.

        Raises:
            UserError: no experts, one whose parameters are not finite, units or tokens
                that are not one positive integer an expert, or a source of no expert.
            ValueError: parameters that differ; every difference is listed.

        >>> math, code = {"w": np.zeros(2)}, {"w": np.ones(2)}
        >>> pool = ModelPool.create({"math": math, "code": code})
        >>> pool.average({"math": 1, "code": 3})["w"].tolist()
        [0.75, 0.75]
        """
        if not experts:
            raise errors.UserError("a pool needs at least one expert")
        units = dict.fromkeys(experts, 1) if units is None else units
        sources = {name: name for name in experts} | dict(sources or {})
        if unknown := sorted(set(sources) - set(experts)):
            raise errors.UserError(f"sources of no expert: {', '.join(unknown)}")
        if diverged := [n for n, params in experts.items() if tree.non_finite(params)]:
            # 0 times NaN is NaN: it would spoil every average, its own or not.
            raise errors.UserError(
                f"{', '.join(diverged)}: parameters that are not finite; leave such an "
                "expert out, or train it again"
            )
        members = list(experts.values())
        if seed is not None:
            tree.same_structure([members[0], seed], what="an expert and the seed")
        return cls(
            names=tuple(experts),
            stacked=merge.stack(members),
            units=_counts(experts, "units", units),
            seed=seed,
            tokens=None if tokens is None else _counts(experts, "tokens", tokens),
            sources=tuple(sources[name] for name in experts),
        )

    def mixtures(
        self,
        max_size: int | None = None,
        must: Iterable[str] = (),
        forbid: Iterable[str] = (),
        *,
        weighting: Weighting = "macro",
    ) -> list[dict[str, float]]:
        """Every non-empty subset of the experts, as weights that sum to 1.

        Small ones first; of one size in the lexicographic order of the pool's names.

        Args:
            max_size: experts in a mixture at most; None for all.
            must: names that every mixture has.
            forbid: names that none has.
            weighting: "macro" weighs sources alike (members, where each is a source of
                its own), "micro" by units, "tokens" by the partitions' sizes.

        Raises:
            UserError: an unknown name, one that is both, no or too many mixtures, or
                partitions of unknown size.

        >>> pool = ModelPool.create({"a": {"w": np.ones(1)}, "b": {"w": np.ones(1)}})
        >>> pool.mixtures()
        [{'a': 1.0}, {'b': 1.0}, {'a': 0.5, 'b': 0.5}]
        """
        must, forbid = set(must), set(forbid)
        self._check_names(must | forbid)
        if both := sorted(must & forbid):
            raise errors.UserError(f"{', '.join(both)}: both required and forbidden")
        free = [name for name in self.names if name not in must | forbid]
        largest = len(self.names) if max_size is None else max_size
        extras = range(0 if must else 1, min(len(free), largest - len(must)) + 1)
        count = sum(math.comb(len(free), extra) for extra in extras)
        if not 0 < count <= _MANY:
            raise errors.UserError(
                f"{count} mixtures fit; use other max_size, must or forbid"
            )
        place = {name: index for index, name in enumerate(self.names)}
        subsets = [
            sorted(must.union(chosen), key=place.__getitem__)
            for extra in extras
            for chosen in itertools.combinations(free, extra)
        ]
        subsets.sort(key=lambda names: (len(names), [place[name] for name in names]))
        return [self.mixture(names, weighting) for names in subsets]

    def mixture(
        self, names: Sequence[str], weighting: Weighting = "macro"
    ) -> dict[str, float]:
        """The mixture of some experts, weighted by a rule; the weights sum to 1.

        Raises:
            UserError: no or unknown names, another rule, partitions of unknown size.
        """
        self._check_names(names)
        sizes = dict(zip(self.names, self.units, strict=True))
        if weighting == "tokens":
            if self.tokens is None:
                raise errors.UserError("the pool does not know its partitions' tokens")
            sizes = dict(zip(self.names, self.tokens, strict=True))
        elif weighting not in ("macro", "micro"):
            raise errors.UserError(
                f"weighting {weighting!r}; use 'macro', 'micro' or 'tokens'"
            )
        shares = {name: float(sizes[name]) for name in names}
        if weighting == "macro":
            source = dict(zip(self.names, self.sources or self.names, strict=True))
            total: dict[str, float] = collections.defaultdict(float)
            for name in names:
                total[source[name]] += shares[name]
            shares = {name: shares[name] / total[source[name]] for name in names}
        if not shares:
            raise errors.UserError("a mixture needs at least one expert")
        return {name: share / sum(shares.values()) for name, share in shares.items()}

    def weights(self, mixtures: Sequence[Mixture]) -> np.ndarray:
        """The rows f32[K, M] of weights over all experts; every row sums to 1.

        Raises:
            UserError: no mixture, an unknown name, or weights that are negative, not
                finite or all 0.
        """
        if not mixtures:
            raise errors.UserError("no mixtures are given")
        rows = np.zeros((len(mixtures), len(self.names)))
        for row, mixture in zip(rows, mixtures, strict=True):
            self._check_names(mixture)
            for name, weight in mixture.items():
                row[self.names.index(name)] = weight
            if not (np.isfinite(row).all() and (row >= 0).all() and row.sum() > 0):
                raise errors.UserError(
                    f"mixture {dict(mixture)}: weights must be finite, not negative "
                    "and not all 0"
                )
        return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)

    def average(self, mixture: Mixture) -> types.Params:
        """The average of the mixture's experts.

        Raises:
            UserError: as `weights`.
        """
        return merge.average_stacked(self.stacked, self.weights([mixture])[0])

    def expert(self, name: str) -> types.Params:
        """One expert's parameters.

        Raises:
            UserError: an unknown name.
        """
        self._check_names([name])
        return jax.tree.map(lambda leaf: leaf[self.names.index(name)], self.stacked)

    def cost(self, mixtures: Sequence[Mixture]) -> Cost:
        """Units this pool took to train, and units that training each mixture takes.

        >>> pool = ModelPool.create({name: {"w": np.ones(1)} for name in "abcd"})
        >>> pool.cost(pool.mixtures())  # n and n 2^(n-1)
        Cost(pool_units=4, separate_units=32)
        """
        units = dict(zip(self.names, self.units, strict=True))
        return Cost(
            sum(self.units),
            sum(units[name] for mixture in mixtures for name in mixture),
        )

    def _check_names(self, names: Iterable[str]) -> None:
        if unknown := sorted(set(names) - set(self.names)):
            raise errors.UserError(
                f"no expert {', '.join(unknown)}; the pool has {', '.join(self.names)}"
            )


def _counts(
    experts: Mapping[str, Any], what: str, counts: Mapping[str, int]
) -> tuple[int, ...]:
    """One positive integer an expert, in their order."""
    if set(counts) != set(experts):
        raise errors.UserError(
            f"{what} are given for {', '.join(sorted(counts))} but the experts are "
            f"{', '.join(sorted(experts))}"
        )
    for name, count in counts.items():
        if int(count) != count or count < 1:
            raise errors.UserError(
                f"expert {name} has {count} {what}; use a positive integer"
            )
    return tuple(int(counts[name]) for name in experts)
