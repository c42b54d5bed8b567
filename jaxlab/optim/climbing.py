"""An optimizer that climbs before it steps, as an optax transform.

    climbing(optimizer, find)    find: (grads, state, params, ...) -> (T^2, radius)

`tram`, `asam` and their relatives are this with different `find`; the climb itself is
in `jaxlab.optim.ascent`. `grad_fn` is as for `optax.contrib.sam` in its opaque mode:
`grad_fn(params, i)` gives the gradients of the same batch elsewhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import types
from jaxlab.optim import ascent


class TRAMState(NamedTuple):
    """The state of every optimizer that climbs before it steps.

    Attributes:
        opt_state: of the optimizer that steps.
        anchor: a copy of parameters, in `anchor_dtype`; None where there is no anchor.
        radius: f32[], of the last climb: d after scale and bound (rho, for ASAM).
        ascent_norm: f32[], |T g| of the last climb.
        count: i32[], updates so far.
    """

    opt_state: optax.OptState
    anchor: types.Params | None
    radius: jax.Array
    ascent_norm: jax.Array
    count: jax.Array


def climbing(
    optimizer: optax.GradientTransformation,
    find: Callable[..., tuple[Any, jax.Array]],
    names: tuple[str, ...],
    climb: ascent.Climb,
    keep: tuple[Callable, Callable] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that climbs before it steps.

    Args:
        optimizer: makes the step.
        find: (grads, state, params, **arguments of `names`) -> (T^2, radius).
        names: arguments of `update` that are for `find`; others go to the optimizer.
        climb: how to climb.
        keep: (params -> anchor, (anchor, params) -> next anchor), or None.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        ascent.check_init(params, climb)
        return TRAMState(
            opt_state=optimizer.init(params),
            anchor=None if keep is None else keep[0](params),
            radius=jnp.zeros((), jnp.float32),
            ascent_norm=jnp.zeros((), jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, *, grad_fn=None, **extra):
        if params is None or grad_fn is None:
            raise ValueError(
                "tx.update needs params and grad_fn=, which returns the gradients of "
                "this batch at other parameters"
            )
        given = {name: extra.pop(name) for name in names if name in extra}
        climb_by = updates
        if not climb.m_sharpness:
            climb_by = ascent.batch_mean(updates, climb)
        squares, radius = find(climb_by, state, params, **given)
        change, norm = ascent.perturbation(climb_by, squares, radius, climb)
        high = grad_fn(ascent.shifted(params, change, climb, state.count), 0)
        high = jax.tree.map(lambda g, p: g.astype(p.dtype), high, updates)
        high = ascent.batch_mean(high, climb)
        updates, opt_state = optimizer.update(high, state.opt_state, params, **extra)
        if climb.m_sharpness:  # reported is the mean over devices
            radius, norm = ascent.batch_mean((radius, norm), climb)
        return updates, TRAMState(
            opt_state=opt_state,
            anchor=None if keep is None else keep[1](state.anchor, params),
            radius=jnp.asarray(radius, jnp.float32),
            ascent_norm=norm.astype(jnp.float32),
            count=optax.safe_increment(state.count),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def climb_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """`radius` and `ascent_norm` of the last climb; {} without a `TRAMState`."""
    is_ours = lambda node: isinstance(node, TRAMState)  # noqa: E731
    for node in jax.tree.leaves(opt_state, is_leaf=is_ours):
        if is_ours(node):
            return {"radius": node.radius, "ascent_norm": node.ascent_norm}
    return {}
