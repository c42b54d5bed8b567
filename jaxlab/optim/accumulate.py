"""Gradient accumulation for optimizers that look twice, such as `tram` and `asam`.

    loss = mean_m L(theta; part m),   grads = mean_m grad L,   logits of all parts

An optimizer that looks at the loss from another place (`tram`, `asam`) has to see the
whole batch there too: `optax.MultiSteps`, which hands on one microbatch at a time, will
not do. Inside `train.fit` the step does this by itself: `accumulated` is public API for
training loops of one's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Accumulated(NamedTuple):
    """Functions of the parameters, each one `lax.scan` over the parts.

    Attributes:
        value_and_grad: params -> ((loss, logits), grads).
        grad: (params, i) -> grads, as `grad_fn` of `tx.update`.
        logits: params -> logits alone, as `logits_fn`.
    """

    value_and_grad: Callable[[Any], tuple[tuple[jax.Array, Any], Any]]
    grad: Callable[..., Any]
    logits: Callable[[Any], Any]


def accumulated(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], micro_batches: Any
) -> Accumulated:
    """Loss, gradients and logits over parts of equal weight.

    Args:
        loss_fn: (params, part) -> (mean loss, logits).
        micro_batches: a pytree of arrays [M, ...]: M parts.

    Returns:
        Functions of the parameters; logits are [M, ...].

    >>> parts = jnp.arange(4.0).reshape(2, 2)
    >>> batch = accumulated(lambda w, x: (jnp.mean(w * x), w * x), parts)
    >>> (loss, logits), grad = batch.value_and_grad(jnp.array(2.0))
    >>> float(loss), logits.shape, float(grad)
    (3.0, (2, 2), 1.5)
    """
    count = len(jax.tree.leaves(micro_batches)[0])

    def over_parts(params):
        def add_part(carry, part):
            (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, part
            )
            return jax.tree.map(jnp.add, carry, (loss, grads)), logits

        first = jax.tree.map(lambda x: x[0], micro_batches)
        shapes = jax.eval_shape(lambda: loss_fn(params, first)[0])
        zeros = (
            jnp.zeros(shapes.shape, shapes.dtype),
            jax.tree.map(jnp.zeros_like, params),
        )
        (loss, grads), logits = jax.lax.scan(add_part, zeros, micro_batches)
        mean = jax.tree.map(lambda x: x / count, (loss, grads))
        return (mean[0], logits), mean[1]

    def logits(params):
        return jax.lax.map(lambda part: loss_fn(params, part)[1], micro_batches)

    return Accumulated(over_parts, lambda params, _=None: over_parts(params)[1], logits)
