"""One training step: loss, gradients, update; the same for every system.

    grads = d/dparams sum(total) / sum(weight)      over all microbatches
    updates = tx.update(grads, ..., value=loss, grad_fn=..., **update_args)

A step whose loss or gradient is not finite changes nothing but the counter.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import types


def make_step(experiment: types.Experiment):
    """The jitted step: (state, batch, frozen) -> (state, metrics); state is donated.

    The loss and its metrics are sums divided once by the summed weight, so that
    neither microbatches nor devices change what a token weighs.
    """
    tx = optax.with_extra_args_support(experiment.tx)
    grads_of = functools.partial(_value_and_grad, experiment)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: types.TrainState, batch: types.Batch, frozen: Any):
        key = jax.random.fold_in(state.key, state.step)
        loss, metrics, grads = grads_of(state.params, batch, key, frozen)
        extra = experiment.update_args or (lambda *_: {})
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            # optax.contrib.sam's contract; it costs nothing unless it is called.
            grad_fn=lambda params, _=None: grads_of(params, batch, key, frozen)[2],
            **extra(state.params, batch, key, frozen),
        )
        norm = optax.tree.norm(grads)
        is_good = jnp.isfinite(loss) & jnp.isfinite(norm)
        keep = functools.partial(jnp.where, is_good)
        params = optax.apply_updates(state.params, updates)
        new = state.replace(
            step=state.step + 1,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        )
        skipped = 1 - is_good.astype(jnp.int32)
        return new, {"loss": loss, **metrics, "grad_norm": norm, "skipped": skipped}

    return step


def _value_and_grad(experiment, params, batch, key, frozen):
    """(loss, metrics, grads) of the whole batch, one microbatch after the other."""

    def total(params, batch, key):
        loss = experiment.objective(params, batch, key=key, frozen=frozen)
        return loss.total, loss

    grad = jax.grad(total, has_aux=True)
    count = experiment.micro_batches
    if count == 1:
        grads, loss = grad(params, batch, key)
    else:
        rows = min(x.shape[0] for x in batch.values())
        if count < 1 or rows % count:
            raise types.UserError(
                f"micro_batches {count} does not divide a batch of {rows} rows"
            )
        # Row i goes to microbatch i mod count: every device keeps its own rows.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch
        )

        def one(carry, part):
            index, part = part
            new = grad(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, new), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad, params, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, loss), _ = jax.lax.scan(one, zeros, (jnp.arange(count), parts))
    scale = 1.0 / jnp.maximum(loss.weight, 1e-9)
    metrics = {name: value * scale for name, value in loss.metrics.items()}
    metrics["weight"] = loss.weight
    return loss.total * scale, metrics, jax.tree.map(lambda g: g * scale, grads)
