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
        dtype: the anchor is kept in; None is the parameters' own. An average is kept
            in float32 at least: in bfloat16 its small steps would all be rounded away.
    """
    check(anchor)

    def init(params):
        return AnchorState(first_anchor(anchor, params, dtype))

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


def first_anchor(anchor: str, params: types.Params, dtype: Any = None) -> types.Params:
    """The parameters in other buffers, floats in the dtype of `keep_anchor`."""

    def copy_leaf(leaf):
        leaf = jnp.copy(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        kept = leaf.dtype if dtype is None else jnp.dtype(dtype)
        return leaf.astype(_average_dtype(kept) if anchor == "ema" else kept)

    return jax.tree.map(copy_leaf, params)


def next_average(value: jax.Array, now: jax.Array, decay: Any) -> jax.Array:
    """decay * value + (1 - decay) * now, of one leaf; no average is taken of integers.

    Args:
        value: the average so far, float32 or wider.
        now: what it moves to, in any dtype.
        decay: a number, or an array [].
    """
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.copy(now)
    wide = _average_dtype(value.dtype)
    mixed = decay * value.astype(wide) + (1 - decay) * now.astype(wide)
    return mixed.astype(value.dtype)


def _average_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def next_anchor(
    anchor: str, value: types.Params, params: types.Params, decay: Any
) -> types.Params:
    """The anchor of the next step, in its own dtype."""
    if anchor == "initial":
        return value
    if anchor == "previous":
        return jax.tree.map(lambda a, p: jnp.copy(p).astype(a.dtype), value, params)
    return jax.tree.map(
        lambda a, p: next_average(a, jnp.asarray(p), decay), value, params
    )


def check(anchor: str) -> None:
    """Refuses an anchor that does not exist."""
    if anchor not in ANCHORS:
        raise errors.ArgumentError(
            f"anchor {anchor!r}; use one of {', '.join(ANCHORS)}"
        )
