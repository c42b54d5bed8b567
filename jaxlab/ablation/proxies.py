"""Losses of merged models as predictions of losses of trained ones, and a ranking.

Na et al. 2024, arXiv:2410.15661: on any evaluation set, in the training domains or out
of them, perplexity of the average of experts correlates with perplexity of the model
that is trained on the union of their data. The proxy of a mixture is

    l(S) = sum over tokens of -log p(token | theta_S) / tokens,   perplexity = exp l(S)

All K mixtures of a batch are merged and evaluated by one compiled call: over the rows
of the weight matrix f32[K, M], each row makes one merged model, on the device, and
forgets it. Batches are looped over outside, so that an evaluation set streams and a
progress bar moves; merging again for each batch costs M multiply-adds a parameter,
against two a parameter *and token* for the forward pass.

The honest baselines stand beside every ranking: the mean of the members' own losses
(which needs no merging), the seed model, and the best single expert. A proxy that does
not beat the first has shown nothing.

Deviations: the paper merges uniformly; rows may hold any weights. Sums over batches are
kept in float64 on the host.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxlab import merge
from jaxlab.ablation import pool as pools
from jaxlab.core import types

# (params, batch) -> (total nats, tokens): each f32[], or f32[B] by document (row).
TokenLosses = Callable[[types.Params, types.Batch], tuple[jax.Array, jax.Array]]
# (evaluations done, evaluations in all or None): after each batch.
Progress = Callable[[int, int | None], None]


class RankedMixture(NamedTuple):
    """A mixture and what its merged model says about training on it."""

    mixture: dict[str, float]
    predicted_loss: float  # nats a token
    predicted_perplexity: float


class Baselines(NamedTuple):
    """What a proxy has to beat. Losses are in nats a token."""

    mean_of_individual: np.ndarray  # f32[K], by mixture
    individual: dict[str, float]  # expert -> its own loss
    best_single: str  # the expert of the lowest loss
    seed: float | None  # None when the pool has no seed


def proxy_losses(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    losses_fn: TokenLosses,
    batches: Iterable[types.Batch],
    *,
    mode: Literal["map", "vmap"] = "map",
    by_document: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """The loss of each mixture's merged model, in nats a token.

    Args:
        pool: the experts.
        mixtures: K of them, e.g. `pool.mixtures()`.
        losses_fn: `(params, batch) -> (total, weight)`, each f32[] or, by document,
            f32[B]: summed nats and counted tokens. It keys the compilation cache: pass
            one function object, not a new lambda a call.
        batches: of one shape (each new shape compiles); pad with tokens of weight 0.
        mode: "map" merges one mixture after the other, in memory of M + 1 models;
            "vmap" all at once, in memory of M + K: faster for small models.
        by_document: keep the documents apart; needs a `losses_fn` that does.
        progress: called with (batches done, batches in all or None).

    Returns:
        f32[K]; or f32[K, documents], in the order of the batches and without rows of
        weight 0 (padding): rows of a paired bootstrap.

    Raises:
        UserError: no batches, no counted token, an unknown mode, or bad mixtures.
    """
    totals, weights = [], []
    rows = pool.weights(mixtures)
    if mode not in ("map", "vmap"):
        raise types.UserError(f"mode {mode!r}; use 'map' or 'vmap'")
    count = len(batches) if isinstance(batches, Sized) else None
    for done, batch in enumerate(batches, start=1):
        sums = _evaluate(losses_fn, mode, pool.stacked, rows, batch)
        total, weight = (_by_row(value, by_document) for value in sums)
        totals.append(total)
        weights.append(weight)
        if progress is not None:
            progress(done, count)
    if not totals:
        raise types.UserError("no batches to evaluate on")
    total, weight = _joined(totals, by_document), _joined(weights, by_document)
    counted = weight.any(axis=0)
    if not counted.any():
        raise types.UserError("the batches hold no token that counts (all weights 0)")
    if by_document:
        total, weight = total[:, counted], weight[:, counted]
    return (total / weight).astype(np.float32)


def individual_losses(
    pool: pools.ModelPool,
    losses_fn: TokenLosses,
    batches: Iterable[types.Batch],
    *,
    mode: Literal["map", "vmap"] = "map",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Each expert's own loss in nats a token, by name."""
    alone = [{name: 1.0} for name in pool.names]
    losses = proxy_losses(pool, alone, losses_fn, batches, mode=mode, progress=progress)
    return dict(zip(pool.names, losses.tolist(), strict=True))


def mean_of_individual_losses(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    individual: Mapping[str, float],
) -> np.ndarray:
    """The mean of the members' own losses under each mixture's weights, f32[K].

    The trivial proxy: it merges nothing.

    Args:
        pool: the experts.
        mixtures: K mixtures.
        individual: expert -> loss, from `individual_losses`.

    Raises:
        UserError: bad mixtures.
    """
    losses = np.array([individual[name] for name in pool.names])
    return (pool.weights(mixtures) @ losses).astype(np.float32)


def baselines(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    losses_fn: TokenLosses,
    batches: Sequence[types.Batch],
    *,
    mode: Literal["map", "vmap"] = "map",
) -> Baselines:
    """The seed model, the best single expert and the mean of the members' losses.

    Args:
        pool: the experts, and the seed if it is known.
        mixtures: K mixtures.
        losses_fn: as for `proxy_losses`.
        batches: gone through twice, so no iterator.
        mode: as for `proxy_losses`.

    Raises:
        UserError: as `proxy_losses`.
    """
    individual = individual_losses(pool, losses_fn, batches, mode=mode)
    seed = None
    if pool.seed is not None:
        alone = pools.ModelPool.create({"seed": pool.seed})
        seed = individual_losses(alone, losses_fn, batches, mode=mode)["seed"]
    return Baselines(
        mean_of_individual=mean_of_individual_losses(pool, mixtures, individual),
        individual=individual,
        best_single=min(individual, key=individual.__getitem__),
        seed=seed,
    )


def rank_mixtures(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    evaluation: Mapping[str, Iterable[types.Batch]],
    losses_fn: TokenLosses,
    *,
    mode: Literal["map", "vmap"] = "map",
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, list[RankedMixture]]:
    """The mixtures by predicted loss, best first, for each target.

    Args:
        pool: the experts.
        mixtures: the candidates.
        evaluation: target -> batches; batches of one shape share one compiled program.
        losses_fn: as for `proxy_losses`.
        mode: as for `proxy_losses`.
        progress: called with (target, batches done, batches in all or None).

    Returns:
        target -> ranking. Equal losses keep the order of `mixtures`; NaN comes last.

    Raises:
        UserError: no targets, or as `proxy_losses`.
    """
    if not evaluation:
        raise types.UserError("no evaluation targets are given")
    ranking = {}
    for target, batches in evaluation.items():
        report = None if progress is None else functools.partial(progress, target)
        losses = proxy_losses(
            pool, mixtures, losses_fn, batches, mode=mode, progress=report
        ).tolist()
        ranked = [
            RankedMixture(dict(mixture), loss, _perplexity(loss))
            for mixture, loss in zip(mixtures, losses, strict=True)
        ]
        ranking[target] = sorted(
            ranked, key=lambda row: (math.isnan(row.predicted_loss), row.predicted_loss)
        )
    return ranking


@functools.partial(jax.jit, static_argnames=("losses_fn", "mode"))
def _evaluate(losses_fn, mode: str, stacked: Any, rows: jax.Array, batch: types.Batch):
    def of_row(weights):
        return losses_fn(merge.average_stacked(stacked, weights), batch)

    return jax.vmap(of_row)(rows) if mode == "vmap" else jax.lax.map(of_row, rows)


def _by_row(values: jax.Array, by_document: bool) -> np.ndarray:
    """[K] or [K, B] on the device -> f64[K, 1], or f64[K, B] by document."""
    values = np.asarray(values, np.float64)
    if not by_document:
        return values.reshape(len(values), -1).sum(axis=1, keepdims=True)
    if values.ndim != 2:
        raise types.UserError(
            "by_document needs a losses_fn that returns one total and weight a row; "
            f"it returns shape {values.shape[1:]}"
        )
    return values


def _joined(values: Sequence[np.ndarray], by_document: bool) -> np.ndarray:
    if by_document:
        return np.concatenate(values, axis=1)
    return np.sum(values, axis=0)[:, 0]


def _perplexity(loss: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(loss))
