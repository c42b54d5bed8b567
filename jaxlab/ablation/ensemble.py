"""Mixing predictions instead of weights: the loss of an ensemble, for any mixture.

Belenki et al. 2025, *Optimizing Pre-Training Data Mixtures with Mixtures of Data Expert
Models* (MDE), arXiv:2502.15950: each expert reads the evaluation set once; then the
mixture w is scored, without another model run, as

    l(w) = - sum_t c_t log sum_k w_k p_k(x_t | x_<t) / sum_t c_t

with c_t the weight of token t. It is convex in w, so its best w can be found and
certified (`ablation/convex.py`). Cost: M passes, and M T numbers kept.

For all K rows of weights one product of matrices `w @ exp(log p - max_k log p)`
replaces K log-sum-exps. Where a row gives no weight to any expert near the maximum, the
product underflows; a block of tokens in which that happens is computed again, exactly.

Deviations: the paper fits a regression from such losses to those of trained models;
here they are the prediction.
"""

import functools
from collections.abc import Callable, Iterable, Sized
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ablation import documents
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, mesh, types
from jaxlab.core import progress as progress_lib

# (params, batch) -> (log p of every label, weight of every label), f32[B, L] each.
TokenLogpsFn = Callable[[types.Params, types.Batch], tuple[jax.Array, jax.Array]]

_BLOCK_NUMBERS = 1 << 22  # numbers of the [K, tokens] array that are alive at a time
_LEAST = 1e-30  # below it a float32 sum has lost terms, or is about to


class TokenLogps(NamedTuple):
    """What M experts say of the T counted tokens of an evaluation set.

    Attributes:
        logps: f32[M, T], log p of each token, in nats.
        weights: f32[T], all positive.
        document: i32[T], 0 .. D-1 in order: tokens of one document stand together.
        window: i32[T], 0 .. W-1 in order: those of one row of a batch. None where a
            document is one row.
    """

    logps: np.ndarray
    weights: np.ndarray
    document: np.ndarray
    window: np.ndarray | None = None


def expert_logps(
    pool: pools.ModelPool,
    logps_fn: TokenLogpsFn,
    batches: Iterable[types.Batch],
    *,
    progress: progress_lib.Progress | None = None,
) -> TokenLogps:
    """One pass of every expert over the evaluation set.

    Args:
        pool: M experts, evaluated one after the other inside one compiled call.
        logps_fn: `(params, batch) -> (logps f32[B, L], weights f32[B, L])`; weight 0 is
            padding. It keys the compilation cache: pass one function object.
        batches: as for `proxies.document_losses`.
        progress: called with (batches done, batches in all or None).

    Raises:
        UserError: no batches, or no token that counts.
    """
    count = len(batches) if isinstance(batches, Sized) else None
    parts, rows = [], 0
    for done, batch in enumerate(batches, start=1):
        logps, weights = map(
            np.asarray,
            _expert_logps(logps_fn, pool.stacked, documents.for_model(batch)),
        )
        row, counted = np.nonzero(weights > 0)[0], weights > 0
        document = documents.numbers(batch, len(weights), rows)[row]
        parts.append((logps[:, counted], weights[counted], document, rows + row))
        rows += len(weights)
        if progress is not None:
            progress(done, count)
    if not parts:
        raise errors.UserError("no batches to evaluate on")
    columns = zip(*parts, strict=True)
    logps, weights, document, row = (np.concatenate(c, axis=-1) for c in columns)
    if not weights.size:
        raise errors.UserError("the batches hold no token that counts (all weights 0)")
    order = np.argsort(document, kind="stable")
    _, document = np.unique(document[order], return_inverse=True)
    window = np.cumsum(np.diff(row[order], prepend=row[order][0]) != 0)
    return TokenLogps(
        logps[:, order],
        weights[order],
        document.astype(np.int32),
        window.astype(np.int32),
    )


def document_losses(logps: TokenLogps, rows: np.ndarray) -> documents.DocumentLosses:
    """The loss of K ensembles, by window.

    Args:
        logps: of M experts.
        rows: f32[K, M], weights that sum to 1: `pool.weights(mixtures)`.

    Raises:
        UserError: rows for another number of experts.

    >>> log = np.log(np.float32([[0.5, 0.25]]))
    >>> one = TokenLogps(log, np.ones(2), np.zeros(2, int))
    >>> document_losses(one, np.ones((1, 1))).nats.round(4).tolist()  # ln 2 + ln 4
    [[2.0794]]
    """
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(logps.logps):
        raise errors.UserError(
            f"weights of shape {rows.shape} for {len(logps.logps)} experts; log-"
            "probabilities and pool must be of the same experts"
        )
    size = logps.weights.size
    block = min(size, max(_BLOCK_NUMBERS // len(rows), 256))
    window = logps.document if logps.window is None else logps.window
    nats = np.zeros((len(rows), int(window[-1]) + 1))
    for start in range(0, size, block):
        part = logps.logps[:, start : start + block]
        short = block - part.shape[1]
        losses = _ensemble_nats(rows, np.pad(part, ((0, 0), (0, short))))
        losses = np.asarray(losses, np.float64)[:, : block - short]
        losses *= logps.weights[start : start + block]
        found, starts = np.unique(window[start : start + block], return_index=True)
        nats[:, found] += np.add.reduceat(losses, starts, axis=1)
    tokens = np.bincount(window, weights=np.float64(logps.weights))
    firsts = np.unique(window, return_index=True)[1]
    return documents.DocumentLosses(nats, tokens, logps.document[firsts])


@functools.partial(jax.jit, static_argnames="logps_fn")
def _expert_logps(logps_fn, stacked, batch):
    found = jax.lax.map(lambda params: logps_fn(params, batch), stacked)
    logps, weights = jax.tree.map(mesh.replicate, found)
    return logps, weights[0]


@jax.jit
def _ensemble_nats(rows: jax.Array, logps: jax.Array) -> jax.Array:
    """[K, M], [M, T] -> -log sum_k w_k p_k(t), f32[K, T]."""
    top = jnp.max(logps, axis=0)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    mixed = jnp.dot(
        rows, jnp.exp(logps - top[None]), precision=jax.lax.Precision.HIGHEST
    )

    def exactly():
        def of_row(weights):
            weights = weights[:, None]
            terms = jnp.where(weights > 0, jnp.log(weights) + logps, -jnp.inf)
            return -jax.nn.logsumexp(terms, axis=0)

        return jax.lax.map(of_row, rows)

    return jax.lax.cond(
        jnp.all(mixed >= _LEAST),  # not so for NaN either: of an expert that diverged
        lambda: -(jnp.log(mixed) + top[None]),
        exactly,
    )
