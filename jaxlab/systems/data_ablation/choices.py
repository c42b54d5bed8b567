"""What each search would train on for some targets, and the front of all mixtures."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import ablation
from jaxlab.ablation import method_names, methods
from jaxlab.core import errors, types
from jaxlab.core import progress as progress_lib
from jaxlab.systems.data_ablation import predictions


@dataclasses.dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        weights: target, as the user calls it -> how much it counts.
        methods: of `method_names.METHODS`.
        must, forbid, max_size: as for `ablation.Limits`.
        cap: on the tokens of the members' partitions together; None for no cap.
        pareto: whether the front of all allowed mixtures is wanted too.
    """

    weights: Mapping[str, float]
    methods: tuple[str, ...]
    must: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    max_size: int | None = None
    cap: float | None = None
    pareto: bool = False

    def limits(self, pool: ablation.ModelPool) -> ablation.Limits:
        """What a mixture of the pool may be."""
        costs = None
        if self.cap is not None:
            costs = dict(zip(pool.names, pool.tokens, strict=True))
        return ablation.Limits(
            must=self.must,
            forbid=self.forbid,
            max_size=self.max_size,
            costs=costs,
            cap=self.cap,
        )


class Choices(NamedTuple):
    """What was found.

    Attributes:
        weights: target -> how much it counts.
        by_method: method -> its choice.
        front: the mixtures that none beats on every target, best on the first target
            first; None where it is not wanted.
    """

    weights: dict[str, float]
    by_method: dict[str, ablation.Found]
    front: list[dict[str, Any]] | None


def search(
    query: Query,
    subject: predictions.Subject,
    evaluation: Mapping[str, Sequence[types.Batch]],
    meter: Callable[[str], progress_lib.Progress],
) -> Choices:
    """Searches by every method of the query.

    Args:
        query: what is searched for.
        subject: the experts.
        evaluation: target -> batches.
        meter: what is counted -> a callback of (batches done, all).

    Raises:
        UserError: targets that are several, limits that no mixture meets.
    """
    weights = _name_targets(query.weights, list(evaluation))
    within = query.limits(subject.pool)

    # ---- the losses that several methods read
    by_ensemble = "ensemble" in [method_names.METHODS[m] for m in query.methods]
    by_enumeration = query.pareto or "enumerate" in query.methods
    mixtures = within.subsets(subject.pool) if by_enumeration else []
    logps, merged = {}, {}
    for target, batches in evaluation.items():
        if by_ensemble:
            logps[target] = predictions.expert_logps(
                subject, batches, meter(f"{target}: batches of experts")
            )
        if by_enumeration:
            merged[target] = predictions.merged_losses(
                subject, mixtures, batches, meter(f"{target}: batches of merges")
            ).loss

    # ---- the searches
    by_method = {
        method: methods.search_by(
            method,
            subject.pool,
            evaluation,
            logps,
            subject.losses_fn,
            within,
            target_weights=weights,
            known=(mixtures, merged) if by_enumeration else None,
        )
        for method in query.methods
    }
    front = _pareto_front(mixtures, merged) if query.pareto else None
    return Choices(weights, by_method, front)


def _name_targets(weights: Mapping[str, float], targets: list[str]) -> dict[str, float]:
    """The weights by the names that the targets got: a text is called by its domain."""
    if unknown := [name for name in weights if name not in targets]:
        if len(weights) != len(targets):
            raise errors.UserError(
                f"{', '.join(unknown)} holds several targets; give one file or domain"
            )
        return dict(zip(targets, weights.values(), strict=True))
    return dict(weights)


def _pareto_front(
    mixtures: Sequence[ablation.Mixture], losses: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    table = np.stack(list(losses.values()), axis=1)
    unbeaten = np.flatnonzero(ablation.pareto_front(table))
    return [
        {
            "mixture": mixtures[k],
            "predicted_perplexity": {t: math.exp(x[k]) for t, x in losses.items()},
        }
        for k in sorted(unbeaten, key=lambda k: table[k, 0])
    ]
