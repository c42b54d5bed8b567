"""Anchors of trust regions: earlier parameters that an optimizer keeps.

    previous    a_t = theta_{t-1}                        TRPO, TRAM-theta_{t-1}
    initial     a_t = theta_0                            TRAM-theta_0
    ema         a_t = d a_{t-1} + (1 - d) theta_{t-1}    MESA (d = 0.999)

At step t the anchor is read first and moved to theta_t after: one that already holds
theta_t is at distance 0. An anchor is a copy: the training step donates both.

Schulman et al. 2015 (TRPO, arXiv:1502.05477); Du et al. 2022 (MESA, arXiv:2205.14083);
Sherborne et al. 2023 (TRAM, arXiv:2310.03646), equation 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import errors, types

ANCHORS = ("previous", "initial", "ema")


class AnchorState(NamedTuple):
    """The anchor that `keep_anchor` keeps."""

    anchor: types.Params


def keep_anchor(
    anchor: str = "previous", *, decay: float = 0.999, dtype: Any = None
) -> optax.GradientTransformation:
    """Changes no update and keeps an anchor, which an objective may read.

    Last or first in a chain; `anchor_of` finds the anchor in the chain's state, and
    `Experiment.reads` hands it to the objective.

    Args:
        anchor: one of ANCHORS.
        decay: of "ema".
        dtype: the anchor is kept in; None is the parameters' own.
    """
    check(anchor)

    def init(params):
        return AnchorState(copy(params, dtype))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("keep_anchor needs params in tx.update")
        return updates, AnchorState(next_anchor(anchor, state.anchor, params, decay))

    return optax.GradientTransformation(init, update)


def anchor_of(opt_state: Any) -> types.Params:
    """The anchor inside an optimizer's state.

    Raises:
        ValueError: there is none.
    """
    is_anchored = lambda node: getattr(node, "anchor", None) is not None  # noqa: E731
    for node in jax.tree.leaves(opt_state, is_leaf=is_anchored):
        if is_anchored(node):
            return node.anchor
    raise ValueError("the optimizer keeps no anchor; use keep_anchor or tram")


def copy(params: types.Params, dtype: Any = None) -> types.Params:
    """The parameters in other buffers; floats in `dtype` where it is given."""

    def copy_leaf(leaf):
        leaf = jnp.copy(leaf)
        narrow = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if narrow else leaf

    return jax.tree.map(copy_leaf, params)


def next_anchor(
    anchor: str, value: types.Params, params: types.Params, decay: Any
) -> types.Params:
    """The anchor of the next step, in its own dtype."""
    if anchor == "initial":
        return value
    if anchor == "previous":
        return jax.tree.map(lambda a, p: jnp.copy(p).astype(a.dtype), value, params)

    def average(a, p):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.copy(p)
        wide = jnp.promote_types(p.dtype, jnp.float32)
        mixed = decay * a.astype(wide) + (1 - decay) * p.astype(wide)
        return mixed.astype(a.dtype)

    return jax.tree.map(average, value, params)


def check(anchor: str) -> None:
    """Refuses an anchor that does not exist."""
    if anchor not in ANCHORS:
        raise errors.ArgumentError(
            f"anchor {anchor!r}; use one of {', '.join(ANCHORS)}"
        )
