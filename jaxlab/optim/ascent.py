"""The core of SAM, ASAM, Fisher-SAM and TRAM: one climb before each step.

    g  = grad L(theta)                            given
    e  = r T^2 g / |T g|                          up, within |T^-1 e| <= r
    g' = grad L(theta + e)                        one more forward and backward pass
    theta <- theta - optimizer(g') at theta       weight decay and moments see theta

T = 1 is SAM (Foret et al. 2021, arXiv:2010.01412), T = |theta| + eta is ASAM (Kwon et
al. 2021, arXiv:2102.11600), T^2 = 1 / (1 + eta F) with the Fisher information F is
FSAM (Kim et al. 2022, arXiv:2206.04920). They differ in T and in the radius r.

What a climb must get right, and others do not:

- a gradient of zero climbs nowhere: no NaN;
- |T g| is one norm over all perturbed leaves, of all shards, in float32 or wider;
- inside `shard_map` it is a `psum` over the axis that splits parameters, and g is the
  mean over the axis that splits the batch. Leaving that mean out perturbs every device
  its own way ("m-sharpness", SAM section 4.1): to be asked for, never an accident;
- `optax.MultiSteps` would climb on every microbatch and use the gradient of the last
  alone: refused;
- a perturbation is far below the resolution of bfloat16: |e| / |theta| is about
  r / sqrt(N). Parameters in bf16 warn; a forward pass that casts float32 parameters to
  bf16 sees almost none of it. Ways out: compute the second pass in float32
  (`second_pass_dtype`, or a `grad_fn` that does), or round theta + e at random, so that
  bf16 sees e on average (`stochastic_rounding`).
"""

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import types

Scalar = float | jax.Array | Callable[[jax.Array], jax.Array]
PerLeaf = Any  # a pytree of bools like the parameters, or a function that makes one


class Climb(NamedTuple):
    """How to climb; the arguments that all optimizers of this family share.

    Attributes:
        mask: leaves that are perturbed (and counted in the norm); None: all floats.
        adaptive: leaves with T = |theta| + eta; True or False for all.
        eta: see above; without it a parameter of 0 never moves.
        eps: added to the norm.
        norm_dtype: the norm is at least as wide.
        batch_axis_name: of `shard_map`, splits the batch; g and g' are its means.
        param_axis_name: of `shard_map`, splits the parameters; norms are sums over it.
        m_sharpness: every device of `batch_axis_name` climbs its own gradient.
        second_pass_dtype: `grad_fn` gets parameters of this dtype.
        stochastic_rounding: theta + e is rounded at random to bfloat16 values.
    """

    mask: PerLeaf | None = None
    adaptive: PerLeaf = False
    eta: Any = 0.0
    eps: Any = 1e-12
    norm_dtype: Any = "float32"  # a type would be a schedule to inject_hyperparams
    batch_axis_name: str | None = None
    param_axis_name: Any = None
    m_sharpness: bool = False
    second_pass_dtype: Any = None
    stochastic_rounding: bool = False


def spell_out_options(make: Callable) -> Callable:
    """`make` with the options that it hands to `Climb` in its signature.

    There `optax.inject_hyperparams` looks for the arguments of a factory.
    """
    signature = inspect.signature(make)
    *named, rest = signature.parameters.values()
    if rest.kind is not inspect.Parameter.VAR_KEYWORD:
        raise TypeError(f"{make.__name__} takes no **options")
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in Climb._field_defaults.items()
        if name not in ("mask", "adaptive", "eta")
    ]
    make.__signature__ = signature.replace(parameters=[*named, *options])
    return make


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


def climbing_optimizer(
    optimizer: optax.GradientTransformation,
    find: Callable[..., tuple[Any, jax.Array]],
    names: tuple[str, ...],
    climb: Climb,
    keep: tuple[Callable, Callable] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that climbs before it steps, as an optax transform.

    `tram`, `asam` and their relatives are this with different `find`. `grad_fn` is as
    for `optax.contrib.sam` in its opaque mode: `grad_fn(params, i)` gives the gradients
    of the same batch elsewhere.

    Args:
        optimizer: makes the step.
        find: (grads, state, params, **arguments of `names`) -> (T^2, radius).
        names: arguments of `update` that are for `find`; others go to the optimizer.
        climb: how to climb.
        keep: (params -> anchor, (anchor, params) -> next anchor), or None.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        params = _as_arrays(params)
        check_init(params, climb)
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
        updates, params = _as_arrays(updates), _as_arrays(params)
        for_find = {name: extra.pop(name) for name in names if name in extra}
        climb_by = updates
        if not climb.m_sharpness:
            climb_by = batch_mean(updates, climb)
        squares, radius = find(climb_by, state, params, **for_find)
        change, norm = perturbation(climb_by, squares, radius, climb)
        high = grad_fn(move(params, change, climb, state.count), 0)
        high = jax.tree.map(lambda g, p: g.astype(p.dtype), high, updates)
        high = batch_mean(high, climb)
        updates, opt_state = optimizer.update(high, state.opt_state, params, **extra)
        if climb.m_sharpness:  # reported is the mean over devices
            radius, norm = batch_mean((radius, norm), climb)
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


def check_init(params: types.Params, climb: Climb) -> None:
    """Refuses wrappers under which no climb is right; warns of coarse parameters."""
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), optax.MultiSteps):
            raise ValueError(
                "optax.MultiSteps would climb on every microbatch and step with the "
                "gradient of the last one; give tx.update a grad_fn over all of them "
                "(jaxlab.optim.accumulated, or micro_batches of the Experiment)"
            )
        if frame.f_globals.get("__name__") == optax.flatten.__module__:
            raise ValueError(
                "optax.flatten makes one vector of the parameters that grad_fn needs; "
                "put it inside, e.g. sam(optax.flatten(optimizer))"
            )
        frame = frame.f_back
    is_hole = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    if any(map(is_hole, jax.tree.leaves(params, is_leaf=is_hole))):
        raise ValueError(
            "optax.masked, optax.multi_transform and optax.partition hide parameters "
            "that grad_fn needs; put them inside and give the climb a mask, e.g. "
            "sam(optax.masked(optimizer, mask), mask=mask)"
        )
    coarse = [
        leaf.dtype.name
        for leaf in jax.tree.leaves(params)
        if _is_float(leaf) and jnp.finfo(leaf.dtype).bits < 32
    ]
    if coarse and climb.second_pass_dtype is None and not climb.stochastic_rounding:
        warnings.warn(
            f"{len(coarse)} parameters are {coarse[0]}, too coarse for perturbations; "
            "keep float32 parameters, or set second_pass_dtype or stochastic_rounding",
            stacklevel=3,
        )


def scales(params: types.Params, climb: Climb) -> Any:
    """T^2 of every element, as trees of arrays or of 1.0; None where not perturbed."""
    mask = _per_leaf(True if climb.mask is None else climb.mask, params)
    adaptive = _per_leaf(climb.adaptive, params)

    def square(leaf, is_perturbed, is_adaptive):
        if not is_perturbed or not _is_float(leaf):
            return None
        if not is_adaptive:
            return 1.0
        return jnp.square(jnp.abs(leaf.astype(_wide(leaf, climb))) + climb.eta)

    return jax.tree.map(square, params, mask, adaptive)


def batch_mean(tree: Any, climb: Climb) -> Any:
    """The mean over the devices that split the batch; the tree itself without any."""
    if climb.batch_axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, climb.batch_axis_name), tree)


def perturbation(
    grads: Any, squares: Any, radius: Any, climb: Climb
) -> tuple[Any, jax.Array]:
    """e = r T^2 g / sqrt(sum T^2 g^2).

    Args:
        grads: g, like the parameters.
        squares: T^2, of `scales` or an inverse Fisher; None leaves are not perturbed.
        radius: r.
        climb: how.

    Returns:
        (e, None where nothing moves; |T g|).
    """
    is_none = lambda x: x is None  # noqa: E731

    def square(scale, grad):
        if scale is None:
            return jnp.zeros((), climb.norm_dtype)
        grad = grad.astype(_wide(grad, climb))
        return jnp.sum(scale * jnp.square(grad))

    parts = jax.tree.map(square, squares, grads, is_leaf=is_none)
    total = sum(jax.tree.leaves(parts), jnp.zeros((), climb.norm_dtype))
    if climb.param_axis_name is not None:
        total = jax.lax.psum(total, climb.param_axis_name)
    norm = jnp.sqrt(total)
    factor = radius / (norm + climb.eps)

    def climb_by(scale, grad):
        if scale is None:
            return None
        return factor * scale * grad.astype(_wide(grad, climb))

    return jax.tree.map(climb_by, squares, grads, is_leaf=is_none), norm


def move(params: types.Params, change: Any, climb: Climb, count: jax.Array) -> Any:
    """theta + e as `grad_fn` gets it.

    Args:
        params: theta.
        change: e, None where nothing moves.
        climb: how it is rounded.
        count: of updates; seeds the stochastic rounding.
    """
    leaves, treedef = jax.tree.flatten(params)
    changes = treedef.flatten_up_to(change)
    key = jax.random.fold_in(jax.random.key(0), count)
    result = []
    for i, (leaf, e) in enumerate(zip(leaves, changes, strict=True)):
        dtype = leaf.dtype
        if climb.second_pass_dtype is not None and _is_float(leaf):
            dtype = climb.second_pass_dtype
        if e is None:
            result.append(leaf.astype(dtype))
            continue
        value = leaf.astype(e.dtype) + e
        if climb.stochastic_rounding:
            value = _round_at_random(value, jax.random.fold_in(key, i))
        result.append(value.astype(dtype))
    return treedef.unflatten(result)


def at(value: Scalar, count: jax.Array) -> Any:
    """A number, or the value of a schedule for this update."""
    return value(count) if callable(value) else value


def _round_at_random(value, key):
    """A neighbour in bfloat16, the nearer the likelier: the expectation is `value`."""
    bits = jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32)
    bits = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(value), rounded, value)


def _per_leaf(value, params):
    """Bools like the parameters, of a tree of bools or of parts of it."""
    is_bool = lambda x: isinstance(x, bool) or getattr(x, "dtype", None) == jnp.bool_  # noqa: E731
    leaves = jax.tree.leaves(value)
    # A module may be a tree and have __call__: then its leaves tell.
    if callable(value) and not (leaves and all(map(is_bool, leaves))):
        value = value(params)
    try:
        return jax.tree.map(
            lambda one, part: jax.tree.map(lambda _: one, part), value, params
        )
    except ValueError:
        raise ValueError(
            "mask and adaptive are True, False, a tree of bools like the parameters, "
            "or a function of the parameters that makes one"
        ) from None


def _as_arrays(tree):
    """Numbers of Python as arrays; arrays as they are."""
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), tree)


def _wide(leaf, climb):
    return jnp.promote_types(leaf.dtype, climb.norm_dtype)


def _is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)
