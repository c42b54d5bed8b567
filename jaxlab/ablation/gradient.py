"""Searching weights by gradients through the merge.

The loss of a merged model is a differentiable function of the weights. With
theta = sum_k w_k theta_k and g the gradient of the loss at theta,

    d loss / d w_k = <g, theta_k>

so that one backward pass gives the slope for every member, however many there are.
Weights are w = floor + free * softmax(z); Adam moves z with a rate that falls to 0 by a
cosine, on one batch of each target a step. A cap on the cost is kept by an exact
projection after each step (`ablation/limits.py`).

Peers call gradients unavailable (they merge with a tool that has none) and search the
weights by evolution or Bayesian optimisation, with hundreds of evaluations.

Deviations: where peers search each layer's weight too, one weight per member is
searched here: that is what a data mixture means. A bound on the number of members is
kept by leaving out the smallest weights half-way, which is a heuristic.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import merge
from jaxlab.ablation import documents, limits, proxies, search
from jaxlab.ablation import pool as pools
from jaxlab.core import errors, mesh, types
from jaxlab.core import progress as progress_lib

_BACKWARD = 3  # a forward and a backward pass cost about three forward passes


def loss_and_slopes(
    pool: pools.ModelPool,
    weights: Sequence[float] | np.ndarray,
    losses_fn: proxies.TokenLosses,
    batch: types.Batch,
) -> tuple[float, np.ndarray]:
    """The loss of `sum_k w_k theta_k` on a batch, and its slope for every expert.

    Args:
        pool: M experts.
        weights: f32[M]; they need not sum to 1, nor be positive.
        losses_fn: as for `proxies.document_losses`.
        batch: of one target.

    Returns:
        (nats per token, f64[M]: d loss / d w_k = <gradient, theta_k>).
    """
    weights = jnp.asarray(weights, jnp.float32)
    inputs = documents.for_model(batch)
    loss, slopes = _loss_and_slopes(losses_fn, pool.stacked, weights, inputs)
    return float(loss), np.asarray(slopes, np.float64)


def gradient_search(
    pool: pools.ModelPool,
    evaluation: Mapping[str, Sequence[types.Batch]],
    losses_fn: proxies.TokenLosses,
    *,
    within: limits.Limits | None = None,
    target_weights: Mapping[str, float] | None = None,
    start: pools.Mixture | None = None,
    steps: int = 40,
    learning_rate: float = 0.5,
    entropy: float = 0.0,
    progress: progress_lib.Progress | None = None,
) -> search.Found:
    """Weights on the allowed simplex that minimise the merged model's loss.

    Args:
        pool: the experts.
        evaluation: target -> batches; step s uses batch s modulo their number.
        losses_fn: as for `proxies.document_losses`.
        within: constraints; None for none.
        target_weights: target -> importance; None for equal ones.
        start: the mixture to start from; None for equal weights.
        steps: of Adam; a step costs about three forward passes over its batches.
        learning_rate: the first one, of the logits z.
        entropy: added is `-entropy * H(w)` nats, which keeps weights from vanishing.
        progress: called with (steps done, steps).

    Returns:
        `predicted_loss` is that of the returned mixture on all batches; `trace` has the
        objective of every step on its batches.

    Raises:
        UserError: no targets or batches, no allowed weights, or no finite loss.
    """
    weighted = search.normalize(list(evaluation), target_weights)
    if steps < 1 or not all(map(len, evaluation.values())):
        raise errors.UserError(
            "a gradient search needs a step, and batches of a target"
        )
    # ---- where Adam starts
    within = within or limits.Limits()
    region = within.region(pool.names)
    share = np.ones(len(pool.names))
    if start is not None:  # no logit of -infinity: what starts at 0 would stay there
        share = pool.weights([start])[0] + search.NEGLIGIBLE
    share = region.nearest(share)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    state, trace = optimizer.init(jnp.zeros(len(share))), []

    # ---- its steps, each projected to the allowed weights
    for step in range(steps):
        if step == steps // 2:
            region = region.smaller(region.weights(share), within.max_size)
            share = region.nearest(share)
        batches = {t: evaluation[t][step % len(evaluation[t])] for t in evaluation}
        loss, slopes = _objective(
            pool, losses_fn, weighted, batches, region.weights(share), entropy
        )
        trace.append(loss)
        slopes = region.free * share * (slopes - share @ slopes)  # of the logits
        change, state = optimizer.update(jnp.asarray(slopes, jnp.float32), state)
        share = region.nearest(share * np.exp(np.float64(change)))
        if progress is not None:
            progress(step + 1, steps)

    # ---- the mixture, and its loss on all batches
    weights = region.settle(share, search.NEGLIGIBLE)
    mixture = search.as_mixture(pool.names, weights)
    by_target = _losses(pool, mixture, losses_fn, evaluation)
    used = [len(evaluation[t]) for t, weight in weighted.items() if weight]
    passes = _BACKWARD * steps * sum(1 / count for count in used) / len(evaluation)
    return search.Found(
        mixture=mixture,
        predicted_loss=sum(weighted[t] * loss for t, loss in by_target.items()),
        by_target=by_target,
        evaluations=passes + 1,
        trace=tuple(trace),
    )


def _losses(pool, mixture, losses_fn, evaluation) -> dict[str, float]:
    return {
        target: float(
            proxies.document_losses(pool, [mixture], losses_fn, batches).loss[0]
        )
        for target, batches in evaluation.items()
    }


def _objective(pool, losses_fn, weighted, batches, weights, entropy):
    """The mean over targets, less the entropy term, and its slopes by weight."""
    with np.errstate(divide="ignore"):
        logs = np.where(weights > 0, np.log(weights), 0.0)
    loss, slopes = entropy * (weights @ logs), entropy * (logs + 1)
    for target, batch in batches.items():
        if weighted[target]:
            of_target = loss_and_slopes(pool, weights, losses_fn, batch)
            loss += weighted[target] * of_target[0]
            slopes = slopes + weighted[target] * of_target[1]
    if not (np.isfinite(loss) and np.isfinite(slopes).all()):
        raise errors.UserError(
            "the merged model's loss or its gradient is not finite; forbid the expert "
            "that diverged"
        )
    return float(loss), slopes


@functools.partial(jax.jit, static_argnames="losses_fn")
def _loss_and_slopes(losses_fn, stacked, weights, batch):
    def loss(weights):
        params = merge.average_stacked(stacked, weights, normalize=False)
        nats, tokens = jax.tree.map(jnp.sum, losses_fn(params, batch))
        return nats / jnp.maximum(tokens, 1e-9)  # a batch of padding only has loss 0

    return jax.tree.map(mesh.replicate, jax.value_and_grad(loss)(weights))
