"""Losses of merged models as predictions of the losses of trained ones.

Na et al. 2024, arXiv:2410.15661: on any evaluation set, in the training domains or out
of them, perplexity of the average of experts correlates with perplexity of the model
that is trained on the union of their data. The proxy of a mixture is

    l(S) = sum over tokens of -log p(token | theta_S) / tokens,   perplexity = exp l(S)

All K mixtures of a batch are merged and evaluated by one compiled call: over the rows
of the weight matrix f32[K, M], each row makes one merged model, on the device, and
forgets it. Batches are looped over outside, so that an evaluation set streams and a
progress bar moves; merging again for each batch costs M multiply-adds per parameter,
against two a parameter *and token* for the forward pass.

`predictions` puts beside it the ensemble of the members' predictions
(`ablation/ensemble.py`) and the honest baselines: the mean of the members' own losses
(which needs no merging), the best single member, the seed model. A proxy that does not
beat the first has shown nothing.

Deviations: the paper merges uniformly; rows may hold any weights. Sums over batches are
kept in float64 on the host.
"""

import functools
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxlab import merge
from jaxlab.ablation import documents, ensemble
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, mesh, types
from jaxlab.core import progress as progress_lib

# (params, batch) -> (total nats, tokens): each f32[], or f32[B] by row.
TokenLosses = Callable[[types.Params, types.Batch], tuple[jax.Array, jax.Array]]
# (evaluations done, evaluations in all or None): after each batch.
Mode = Literal["map", "vmap"]


def document_losses(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    losses_fn: TokenLosses,
    batches: Iterable[types.Batch],
    *,
    mode: Mode = "map",
    progress: progress_lib.Progress | None = None,
) -> documents.DocumentLosses:
    """The losses of each mixture's merged model, by window of a document.

    Args:
        pool: the experts.
        mixtures: K of them, e.g. `pool.mixtures()`.
        losses_fn: `(params, batch) -> (total, weight)`, summed nats and counted tokens
            by row, f32[B] each; f32[] each makes the whole set one document. It keys
            the compilation cache: pass one function object, not a new lambda a call.
        batches: of one shape (each new shape compiles); pad with tokens of weight 0.
            `document` i32[B] tells which rows are of one document.
        mode: "map" merges one mixture after the other, in memory of M + 1 models;
            "vmap" all at once, in memory of M + K: faster for small models.
        progress: called with (batches done, batches in all or None).

    Raises:
        UserError: no batches, no counted token, an unknown mode, or bad mixtures.
    """
    if mode not in ("map", "vmap"):
        raise errors.UserError(f"mode {mode!r}; use 'map' or 'vmap'")
    rows = pool.weights(mixtures)
    count = len(batches) if isinstance(batches, Sized) else None
    collector = documents.Collector()
    for done, batch in enumerate(batches, start=1):
        inputs = documents.for_model(batch)
        nats, tokens = _evaluate(losses_fn, mode, pool.stacked, rows, inputs)
        collector.add(batch, nats, tokens)
        if progress is not None:
            progress(done, count)
    return collector.result()


def proxy_losses(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    losses_fn: TokenLosses,
    batches: Iterable[types.Batch],
    *,
    mode: Mode = "map",
    by_document: bool = False,
    progress: progress_lib.Progress | None = None,
) -> np.ndarray:
    """The loss of each mixture's merged model, in nats per token.

    Args:
        pool: the experts.
        mixtures: K mixtures.
        losses_fn: as for `document_losses`.
        batches: as for `document_losses`.
        mode: as for `document_losses`.
        by_document: keep the documents apart; needs a `losses_fn` that does.
        progress: as for `document_losses`.

    Returns:
        f32[K]; or f32[K, documents], each document's own loss.

    Raises:
        UserError: as `document_losses`.
    """
    if by_document:
        losses_fn = _ByRow(losses_fn)
    losses = document_losses(
        pool, mixtures, losses_fn, batches, mode=mode, progress=progress
    )
    if by_document:
        losses = losses.by_document()
        return (losses.nats / losses.tokens[None]).astype(np.float32)
    return losses.loss.astype(np.float32)


def predictions(
    pool: pools.ModelPool,
    mixtures: Sequence[pools.Mixture],
    losses_fn: TokenLosses,
    batches: Sequence[types.Batch],
    *,
    logps: ensemble.TokenLogps | None = None,
    mode: Mode = "map",
    progress: progress_lib.Progress | None = None,
) -> dict[str, documents.DocumentLosses]:
    """What every proxy and baseline says of the mixtures on one evaluation set.

    Args:
        pool: the experts, and the seed if it is known.
        mixtures: K mixtures.
        losses_fn: as for `document_losses`.
        batches: gone through twice where the pool has a seed, so no iterator.
        logps: of the experts on the same batches (`expert_logps`), for the ensemble.
        mode: as for `document_losses`.
        progress: as for `document_losses`, of the merged models.

    Returns:
        Proxy -> losses of K mixtures on the same windows: "merged"; "ensemble" with
        `logps`; "mean_of_individual", the members' own losses under the mixture's
        weights; "best_single", the mixture's best member; "seed" where the pool has
        one, the same number for all.

    Raises:
        UserError: as `document_losses`, or `logps` are of other text.
    """
    alone = [{name: 1.0} for name in pool.names]
    every = [*mixtures, *(single for single in alone if single not in mixtures)]
    merged = document_losses(
        pool, every, losses_fn, batches, mode=mode, progress=progress
    )
    count, rows = len(mixtures), pool.weights(mixtures)
    members = [every.index(single) for single in alone]
    individual = merged.models(members)
    result = {"merged": merged.models(slice(count))}
    if logps is not None:
        result["ensemble"] = ensemble.document_losses(logps, rows)
        if not np.array_equal(result["ensemble"].tokens, merged.tokens):
            raise errors.UserError("the cached log-probabilities are of other text")
    result["mean_of_individual"] = _mean_of_members(individual, rows)
    best = np.argmin(np.where(rows > 0, individual.loss[None], np.inf), axis=1)
    result["best_single"] = individual.models(best)
    if pool.seed is not None:
        seed = model_losses([pool.seed], losses_fn, batches)
        result["seed"] = seed._replace(nats=np.repeat(seed.nats, count, axis=0))
    return result


def model_losses(
    models: Iterable[types.Params],
    losses_fn: TokenLosses,
    batches: Sequence[types.Batch],
) -> documents.DocumentLosses:
    """The losses of models as they are, by document: of mixtures trained for real.

    Args:
        models: K parameter trees, taken one after the other: a generator that loads
            them needs memory for one.
        losses_fn: as for `document_losses`.
        batches: gone through once for each model.

    Raises:
        UserError: no models, or as `document_losses`.
    """
    by_model = []
    for params in models:
        collector = documents.Collector()
        for batch in batches:
            nats, tokens = _losses(losses_fn, params, documents.for_model(batch))
            collector.add(batch, np.asarray(nats)[None], tokens)
        by_model.append(collector.result())
    if not by_model:
        raise errors.UserError("no models to evaluate")
    return by_model[0]._replace(
        nats=np.concatenate([losses.nats for losses in by_model])
    )


def _mean_of_members(individual, rows) -> documents.DocumentLosses:
    """The members' own losses under weights; one that takes no part is not asked."""
    # 0 * inf is NaN: an expert that diverged must not spoil mixtures without it.
    finite = np.nan_to_num(individual.nats, nan=0.0, posinf=0.0, neginf=0.0)
    broken = (rows > 0).astype(float) @ ~np.isfinite(individual.nats)
    nats = np.where(broken > 0, np.nan, rows.astype(np.float64) @ finite)
    return individual._replace(nats=nats)


class _ByRow(NamedTuple):  # equal functions make equal instances: one compiled program
    losses_fn: TokenLosses

    def __call__(self, params, batch):
        total, weight = self.losses_fn(params, batch)
        if total.ndim != 1:
            raise errors.UserError(
                "by_document needs a losses_fn that returns one total and weight per "
                f"row; it returns shape {total.shape}"
            )
        return total, weight


@functools.partial(jax.jit, static_argnames="losses_fn")
def _losses(losses_fn, params: types.Params, batch: types.Batch):
    return jax.tree.map(mesh.replicate, losses_fn(params, batch))


@functools.partial(jax.jit, static_argnames=("losses_fn", "mode"))
def _evaluate(losses_fn, mode: str, stacked: Any, rows: jax.Array, batch: types.Batch):
    """(nats [K, ...], tokens [...]): the tokens are the same for every mixture."""

    def of_row(weights):
        return losses_fn(merge.average_stacked(stacked, weights), batch)

    sums = jax.vmap(of_row)(rows) if mode == "vmap" else jax.lax.map(of_row, rows)
    nats, tokens = jax.tree.map(mesh.replicate, sums)
    return nats, tokens[0]
