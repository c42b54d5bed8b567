"""Optimizers and schedules from a plain config.

    tx = clip by global norm -> AdamW with decay mask -> -learning_rate(step) [-> EMA]

or SGD with momentum in AdamW's place. Loshchilov and Hutter 2019 (arXiv:1711.05101).
Schedules: OLMo's (linear warm-up from a fraction of the peak, then cosine or linear to
a fraction), warm-up-stable-decay (Hu et al. 2024, arXiv:2404.06395), and restarts
(Loshchilov and Hutter 2017, arXiv:1608.03983). As OLMo does, the step counter is raised
before the rate is read: the first update uses rate(1).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.core import errors, ranges, tree, types
from jaxlab.optim import anchors

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
_BOUND = ranges.Range("0 or more, where 0 is no bound")
_RANGES = {
    **dict.fromkeys(("learning_rate", "epsilon", "weight_decay"), ranges.AT_LEAST_0),
    **dict.fromkeys(("warmup_steps", "decay_steps"), ranges.AT_LEAST_0),
    **dict.fromkeys(("schedule_steps", "clip_start_steps"), ranges.AT_LEAST_0),
    **dict.fromkeys(("warmup_start", "final"), ranges.SHARE),
    **dict.fromkeys(("beta1", "beta2", "ema", "momentum"), ranges.BELOW_1),
    **dict.fromkeys(("clip_norm", "clip_norm_start"), _BOUND),
    "cycles": ranges.AT_LEAST_1,
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimizer as data.

    Attributes:
        learning_rate: the peak.
        schedule: one of SCHEDULES.
        warmup_steps: of the linear rise to the peak.
        warmup_start: where it starts, as a fraction of the peak (OLMo 1: 0.1).
        final: where it ends, as a fraction of the peak.
        decay_steps: wsd: length of the final linear decay.
        schedule_steps: length of the schedule; 0 is that of the run.
        cycles: the schedule after warm-up is repeated this often (restarts).
        beta1, beta2, epsilon, weight_decay: AdamW's; SGD has weight_decay alone.
        no_decay: regular expressions of parameter paths that are not decayed.
        clip_norm: bound on the global gradient norm, or None or 0 for no bound.
        clip_norm_start, clip_start_steps: another bound for the first steps
            (OLMo-7B: 10.0 for 1000 steps).
        ema: decay of an exponential moving average of the parameters; 0 keeps none.
        optimizer: one of OPTIMIZERS.
        momentum: SGD's.
    """

    learning_rate: float
    schedule: str = "cosine"
    warmup_steps: int = 0
    warmup_start: float = 0.0
    final: float = 0.1
    decay_steps: int = 0
    schedule_steps: int = 0
    cycles: int = 1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = 1.0
    clip_norm_start: float | None = None
    clip_start_steps: int = 0
    ema: float = 0.0
    optimizer: str = "adamw"
    momentum: float = 0.0

    def __post_init__(self):
        """Refuses numbers that are out of range."""
        ranges.check("optim.", vars(self), _RANGES)


def build(
    config: OptimConfig, steps: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The transform and its schedule.

    Args:
        config: the optimizer as data.
        steps: length of the run, in updates.

    Returns:
        (transform, rate of the n-th update for n = 1 .. steps).
    """
    rate = schedule(config, steps)
    if config.optimizer not in OPTIMIZERS:
        raise errors.UserError(
            f"optim.optimizer {config.optimizer!r}; use one of {', '.join(OPTIMIZERS)}"
        )
    direction = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.optimizer == "sgd":
        direction = optax.identity()
        if not ranges.is_zero(config.momentum):
            direction = optax.trace(config.momentum)
    parts = [
        direction,
        optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(config)),
        optax.scale_by_learning_rate(lambda count: rate(count + 1)),
    ]
    if not (config.clip_norm is None or ranges.is_zero(config.clip_norm)):
        bound = config.clip_norm
        if config.clip_start_steps:
            if config.clip_norm_start is None:
                raise errors.UserError(
                    "optim.clip_start_steps: set optim.clip_norm_start"
                )
            bound = _clip_schedule(config)
        parts.insert(0, clip_by_global_norm(bound))
    if not ranges.is_zero(config.ema):
        parts.append(parameter_ema(config.ema))
    return optax.chain(*parts), rate


def schedule(config: OptimConfig, steps: int) -> Callable[[Any], Any]:
    """Learning rate of the n-th update, n = 1 .. steps.

    Raises:
        UserError: an unknown schedule, or parts that do not fit into `steps`.

    >>> rate = schedule(OptimConfig(1.0, "linear", warmup_steps=2, final=0.0), 6)
    >>> [round(float(rate(n)), 2) for n in range(1, 7)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    steps = config.schedule_steps or steps
    after = steps - warmup
    if config.schedule not in SCHEDULES:
        raise errors.UserError(
            f"optim.schedule {config.schedule!r}; use one of {', '.join(SCHEDULES)}"
        )
    length = max(math.ceil(after / config.cycles), 1)
    if warmup > steps or (config.schedule == "wsd" and config.decay_steps > length):
        raise errors.UserError(
            f"optim.warmup_steps {warmup} and decay_steps {config.decay_steps} do not "
            f"fit into {steps} steps, with a decay in each of {config.cycles} cycles; "
            "lower --config.optim.warmup_steps or optim.decay_steps, or train for more "
            "--config.steps"
        )

    def rate(count):
        # On the host for a report: a device would answer after the step it runs.
        xp = jnp if isinstance(count, jax.Array) else np
        count = xp.asarray(count, xp.float32)
        start, rise = config.warmup_start, 1 - config.warmup_start
        rising = start + rise * count / max(warmup, 1)
        done = xp.maximum(count - warmup, 0.0)
        cycle = xp.clip(xp.ceil(done / length) - 1, 0, config.cycles - 1)
        into = xp.clip(done - cycle * length, 0, length)
        return peak * xp.where(count < warmup, rising, _shape(xp, config, into, length))

    return rate


def _shape(xp, config, done, length):
    """The schedule after warm-up as a fraction of the peak, done in [0, length]."""
    span = 1 - config.final
    if config.schedule == "constant":
        return xp.ones_like(done)
    if config.schedule == "linear":
        return 1 - span * done / length
    if config.schedule == "cosine":
        return config.final + span * (1 + xp.cos(math.pi * done / length)) / 2
    into = xp.maximum(done - (length - config.decay_steps), 0)
    return 1 - span * into / max(config.decay_steps, 1)


class ClipState(NamedTuple):
    """Updates so far, for a bound that is a schedule."""

    count: jax.Array


def clip_by_global_norm(
    max_norm: float | Callable[[Any], Any],
) -> optax.GradientTransformation:
    """g * min(1, max_norm / (|g| + 1e-6)), norm in f32: OLMo's and torch's form.

    optax's own has no 1e-6 and takes no schedule; with it a norm at the bound is not
    bit-equal to the published runs.

    >>> clip = clip_by_global_norm(1.0)
    >>> clip.update({"a": jnp.array([3.0, 4.0])}, clip.init({}))[0]["a"].round(3)
    Array([0.6, 0.8], dtype=float32)
    """

    def init(params):
        del params
        return ClipState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        bound = max_norm(state.count + 1) if callable(max_norm) else max_norm
        squares = [
            jnp.sum(jnp.square(leaf.astype(jnp.float32)))
            for leaf in jax.tree.leaves(updates)
        ]
        norm = jnp.sqrt(sum(squares))
        scale = jnp.minimum(1.0, bound / (norm + 1e-6))
        updates = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates)
        return updates, ClipState(state.count + 1)

    return optax.GradientTransformation(init, update)


class EmaState(NamedTuple):
    """The averaged parameters."""

    average: types.Params


def parameter_ema(decay: float) -> optax.GradientTransformation:
    """Keeps average = decay * average + (1 - decay) * params after each update.

    Last in a chain: it needs the final updates and changes none. `ema_of` reads it: in
    float32 at least, since in bfloat16 its small steps would all be rounded away.
    """

    def init(params):
        return EmaState(anchors.first_anchor("ema", params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("parameter_ema needs params in tx.update")
        average = jax.tree.map(
            lambda a, p, u: anchors.next_average(a, jnp.asarray(p + u), decay),
            state.average,
            params,
            updates,
        )
        return updates, EmaState(average)

    return optax.GradientTransformation(init, update)


def ema_of(opt_state: Any) -> types.Params:
    """The averaged parameters inside an optimizer state.

    Raises:
        ValueError: there is none.
    """
    is_ema = lambda node: isinstance(node, EmaState)  # noqa: E731
    for node in jax.tree.leaves(opt_state, is_leaf=is_ema):
        if is_ema(node):
            return node.average
    raise ValueError("the optimizer keeps no parameter average; set optim.ema")


def _decay_mask(config):
    if not config.no_decay:
        return None

    def mask(params):
        try:
            hits = tree.mask(params, config.no_decay)
        except ValueError as error:
            raise errors.UserError(f"optim.no_decay: {error}") from None
        return jax.tree.map(lambda hit: not hit, hits)

    return mask


def _clip_schedule(config):
    def norm_limit(count):
        early = count <= config.clip_start_steps
        return jnp.where(early, config.clip_norm_start, config.clip_norm)

    return norm_limit
