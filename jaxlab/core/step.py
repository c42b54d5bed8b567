"""The training step: loss, gradients, microbatches, update; for every system.

    grads = d/dparams sum(total) / sum(weight)      over all microbatches
    updates = tx.update(grads, ..., value=loss, grad_fn=..., **update_args)

A step whose loss, gradient or updated parameters are not finite changes nothing but the
counter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import errors, tree, types


def make_step(experiment: types.Experiment, target: types.TrainState | None = None):
    """The jitted step: (state, batch, frozen[, numbers]) -> (state, metrics).

    The state is donated. `numbers` are values for the names of `experiment.traced`;
    without them they are compiled in.

    The loss and its metrics are sums divided once by the summed weight, so that
    neither microbatches nor devices change what a token weighs.

    Args:
        experiment: what to train.
        target: of `state.abstract`: every new state is placed like it. None leaves
            that to the compiler, which may place the second state otherwise than the
            first, and compile the step again for it.
    """
    shardings = {}
    if target is not None:
        shardings["out_shardings"] = jax.tree.map(lambda x: x.sharding, target), None
    # Not the experiment itself: its step may outlive its data.
    parts, micro_batches = experiment.parts, experiment.micro_batches
    remake = experiment.numbers.remake if experiment.traced else None

    @functools.partial(jax.jit, donate_argnums=0, **shardings)
    def step(state: types.TrainState, batch: types.Batch, frozen: Any, numbers=None):
        now = remake(numbers).parts if numbers else parts
        objective, tx, update_args, reads, opt_metrics = now
        tx = optax.with_extra_args_support(tx)
        value_and_grad = mean_and_grad(objective, micro_batches)

        # ---- loss and gradient
        key = jax.random.fold_in(state.key, state.step)
        if reads is not None:
            frozen = reads(state.opt_state)
        loss, grads = value_and_grad(state.params, batch, key, frozen)

        # ---- update
        def grad_fn(params, _=None):
            return value_and_grad(params, batch, key, frozen)[1]

        outputs = {} if loss.outputs is None else {"outputs": loss.outputs}
        extra = update_args or (lambda *_, **__: {})
        arguments = {
            "value": loss.total,
            # optax.contrib.sam's contract; it costs nothing unless it is called.
            "grad_fn": grad_fn,
            **extra(state.params, batch, key, frozen, **outputs),
        }
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, **arguments
        )

        # ---- nothing changes where a number is not finite
        norm = optax.tree.norm(grads)
        params = optax.apply_updates(state.params, updates)
        # A finite gradient is not enough: 0/0 in the optimizer, another point it saw.
        is_good = jnp.isfinite(loss.total) & jnp.isfinite(norm) & _all_finite(params)
        keep = functools.partial(jnp.where, is_good)
        new = state.replace(
            step=state.step + 1,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        )

        # ---- metrics
        metrics = {
            "loss": loss.total,
            **loss.metrics,
            "weight": loss.weight,
            "grad_norm": norm,
            "skipped": 1 - is_good.astype(jnp.int32),
        }
        if opt_metrics is not None:
            metrics |= opt_metrics(opt_state)
        if (count := _count_updates(new.opt_state)) is not None:
            metrics["updates"] = count
        return new, metrics

    return step


def _count_updates(opt_state: Any) -> jax.Array | None:
    """i32[]: the updates that the optimizer has counted; None where it counts none.

    Skipped steps are not among them, so that its schedule is behind the step then.
    """
    counts = [
        leaf
        for name, leaf in tree.flatten(opt_state).items()
        if name.rpartition("/")[2] == "count" and jnp.shape(leaf) == ()
    ]
    return functools.reduce(jnp.maximum, counts) if counts else None


def _all_finite(params: types.Params) -> jax.Array:
    """bool[]: whether no floating leaf holds a NaN or an infinity."""
    leaves = jax.tree.leaves(params)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(
        jnp.logical_and, (jnp.isfinite(x).all() for x in floats), jnp.array(True)
    )


def mean_and_grad(
    objective: types.Objective, micro_batches: int = 1
) -> Callable[..., tuple[types.Loss, types.Params]]:
    """The mean loss of a whole batch and its gradient, one microbatch after the other.

    Returns:
        (params, batch, key, frozen) -> (Loss, grads). In the Loss `total` and the
        metrics are divided by `weight`, and `outputs` are in the batch's order.
    """

    def total(params, batch, key, frozen):
        loss = objective(params, batch, key=key, frozen=frozen)
        return loss.total, loss

    grad = jax.grad(total, has_aux=True)

    def whole(params, batch, key, frozen):
        if micro_batches == 1:
            grads, loss = grad(params, batch, key, frozen)
        else:
            grads, loss = accumulate(params, batch, key, frozen)
        scale = 1.0 / jnp.maximum(loss.weight, 1e-9)
        mean = loss._replace(
            total=loss.total * scale,
            metrics={name: value * scale for name, value in loss.metrics.items()},
        )
        return mean, jax.tree.map(lambda g: g * scale, grads)

    def accumulate(params, batch, key, frozen):
        parts = split(batch, micro_batches)

        def add_part(carry, part):
            index, part = part
            new = grad(params, part, jax.random.fold_in(key, index), frozen)
            outputs = new[1].outputs
            new = new[0], new[1]._replace(outputs=None)
            return jax.tree.map(jnp.add, carry, new), outputs

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad, params, first, key, frozen)
        shapes = shapes[0], shapes[1]._replace(outputs=None)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        xs = (jnp.arange(micro_batches), parts)
        (grads, loss), outputs = jax.lax.scan(add_part, zeros, xs)
        return grads, loss._replace(outputs=join(outputs))

    return whole


def split(batch: Any, count: int) -> Any:
    """Arrays [B, ...] as [count, B / count, ...].

    Row i goes to part i mod count, so that every device keeps its own rows.

    Raises:
        UserError: `count` does not divide B.
    """
    rows = min(x.shape[0] for x in jax.tree.leaves(batch))
    if count < 1 or rows % count:
        raise errors.UserError(
            f"micro_batches {count} does not divide a batch of {rows} rows"
        )
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch
    )


def join(parts: Any) -> Any:
    """The arrays [B, ...] that `split` cut."""
    return jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts
    )


def map_parts(function: Callable[[Any], Any], batch: Any, count: int) -> Any:
    """`function` of a batch, one microbatch after the other; rows in their order."""
    if count == 1:
        return function(batch)
    return join(jax.lax.map(function, split(batch, count)))
