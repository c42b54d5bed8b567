"""How sharp the loss surface is at given parameters: curvature and epsilon-sharpness.

    L(theta) = sum_b total_b / sum_b weight_b             over the batches b
    top eigenvalue         max_v v' H v / v' v,           H = d^2 L / d theta^2
    epsilon-sharpness      max_eps L(theta + eps) - L(theta),    |eps / T|_2 <= radius

with T = 1, or T = |theta| + eta for the adaptive form, which does not change when a
layer is scaled and the next one scaled back.

The eigenvalue is found by Lanczos' method (Golub and Van Loan, *Matrix Computations*,
section 10.1): the top eigenvalue of H restricted to the span of v, Hv, H^2 v, ... An Hv
is the derivative along v of the gradient (Pearlmutter 1994), forward over reverse, and
costs about two gradients. Every new vector is made orthogonal to all the earlier ones,
twice, without which rounding brings found eigenvalues back as ghosts. Epsilon-sharpness
is that of SAM, Foret et al. 2020 (arXiv:2010.01412), and, adaptive, of ASAM, Kwon et
al. 2021 (arXiv:2102.11600, equation 4): one step goes to where the linearised loss is
highest in the ball, eps = radius T^2 g / |T g|; further steps climb on from there.

Deviations: the two papers measure a single step. `weight` counts and is not
differentiated, as in `core/step.py`.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import errors, tree, types

LossFn = Callable[[types.Params, Any], types.Loss]


class TopEigenvalue(NamedTuple):
    """An eigenvalue of the Hessian of the mean loss, in nats.

    Attributes:
        value: a Rayleigh quotient v'Hv / v'v: never above the top eigenvalue.
        residual: |Hv - value v| for the unit v: some eigenvalue is this close to
            `value`. It is the top one unless the random start was all but orthogonal to
            that one's vector; it is then closer still, residual^2 / gap to the second.
            A model that computes in bfloat16 has an H rounded to about 1e-3 itself.
        iterations: how many products Hv were taken.
    """

    value: float
    residual: float
    iterations: int


def top_eigenvalue(
    loss_fn: LossFn,
    params: types.Params,
    batches: Iterable[Any],
    *,
    key: jax.Array,
    iterations: int = 30,
    tol: float = 1e-3,
) -> TopEigenvalue:
    """The largest eigenvalue of the Hessian, by sign and not by size.

    It is negative only where the surface curves down in every direction. Where the loss
    or its curvature is not finite, value and residual are NaN.

    Args:
        loss_fn: (params, batch) -> `Loss`, pure: dropout is off or its key fixed. It
            keys the compilation cache: pass one function object, not a new lambda a
            call.
        params: any tree of float32 or float64, sharded or not.
        batches: passed to `loss_fn` one by one; all are read in every iteration.
        key: of the random start.
        iterations: at most; each keeps one more vector of the size of `params`.
        tol: stops when the residual, and the last change of the value, are below
            `tol * |value|`, or when the residual is below what rounding leaves.

    Raises:
        UserError: no batches, nothing that weighs, parameters of another dtype, no
            iterations.

    >>> def loss_fn(x, batch):
    ...     return types.Loss(jnp.sum(batch * x**2 / 2), jnp.ones(()), {})
    >>> batches = [jnp.array([1.0, -9.0, 4.0])]
    >>> found = top_eigenvalue(loss_fn, jnp.ones(3), batches, key=jax.random.key(0))
    >>> round(found.value, 4), found.iterations
    (4.0, 3)
    """
    params, batches = _check(params, batches)
    if iterations < 1:
        raise errors.UserError(f"iterations {iterations}; at least 1 is needed")
    vector = _random_unit(params, key)
    rounding = 8 * max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(vector))
    basis, diagonal, off_diagonal = [], [], []
    value = math.nan
    for _ in range(min(iterations, tree.count(params))):
        basis.append(vector)
        product, weight = _sum_over_batches(
            functools.partial(_hessian_product, loss_fn, params, vector), batches
        )
        product = _divide(product, _positive(weight))
        diagonal.append(float(_dot(vector, product)))
        for earlier in 2 * basis:
            product = _without(product, earlier)
        norm = float(_norm(product))
        if not math.isfinite(diagonal[-1] + norm):
            return TopEigenvalue(math.nan, math.nan, len(basis))
        # On the host, in float64: H in the basis is tridiagonal and tiny.
        small = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        values, vectors = np.linalg.eigh(small)
        before, value = value, float(values[-1])
        residual = norm * abs(float(vectors[-1, -1]))
        # The residual alone is small at once where most eigenvalues are alike and a
        # random start has next to nothing of the few that are not.
        close = tol * abs(value)
        settled = residual <= close and abs(value - before) <= close
        if settled or residual <= rounding * np.abs(values).max():
            break
        off_diagonal.append(norm)
        vector = _divide(product, norm)
    return TopEigenvalue(value, residual, len(basis))


def epsilon_sharpness(
    loss_fn: LossFn,
    params: types.Params,
    batches: Iterable[Any],
    *,
    radius: float,
    adaptive: bool = False,
    eta: float = 0.0,
    steps: int = 1,
) -> float:
    """The most that the loss was seen to rise within a ball around the parameters.

    Projected ascent in eps / T: step k goes radius / sqrt(k) along the normalised
    gradient, and back into the ball. What the steps came across is a lower bound of the
    maximum, and more steps never give less.

    Args:
        loss_fn: as for `top_eigenvalue`.
        params: any tree of float32 or float64, sharded or not.
        batches: passed to `loss_fn` one by one; all are read in every step.
        radius: of the ball. SAM trains with 0.05, ASAM (adaptive) with 0.5.
        adaptive: the ball is |eps / (|theta| + eta)|_2 <= radius. With eta = 0 what is
            0 stays 0.
        eta: of the adaptive form; ASAM trains with 0.01.
        steps: 1 is SAM's own form: one gradient, one more loss. It can be negative,
            where the loss turns within the radius.

    Returns:
        Nats a unit of weight; exactly 0 where the gradient is 0; NaN where a loss is
        not finite. In float32 it is right to about 1e-6 of the loss itself.

    Raises:
        UserError: as for `top_eigenvalue`; no steps; a radius or eta that is negative
            or not finite.

    >>> def loss_fn(x, batch):
    ...     return types.Loss(jnp.sum(batch * x**2 / 2), jnp.ones(()), {})
    >>> x, batches = jnp.array([3.0, 0.0]), [jnp.array([2.0, 5.0])]
    >>> epsilon_sharpness(loss_fn, x, batches, radius=1.0)  # 4^2 - 3^2
    7.0
    """
    params, batches = _check(params, batches)
    if not (0 <= radius < math.inf and 0 <= eta < math.inf):
        raise errors.UserError(
            f"radius {radius}, eta {eta}; both must be finite and not negative"
        )
    if steps < 1:
        raise errors.UserError(f"steps {steps}; at least 1 is needed")
    scale = jax.tree.map(
        lambda x: jnp.abs(x) + eta if adaptive else jnp.ones_like(x), params
    )
    inside = jax.tree.map(jnp.zeros_like, params)
    losses, moved = [], params
    for step in range(1, steps + 1):
        gradient, loss = _sum_over_batches(
            functools.partial(_gradient, loss_fn, moved), batches
        )
        losses.append(_mean(loss))
        inside, moved = _ascend(
            params, scale, inside, gradient, radius, radius / math.sqrt(step)
        )
    losses.append(
        _mean(_sum_over_batches(functools.partial(_sums, loss_fn, moved), batches))
    )
    rise = float(np.max(losses[1:])) - losses[0]
    return rise if math.isfinite(rise) else math.nan


def _check(params, batches):
    params, batches = jax.tree.map(jnp.asarray, params), list(batches)
    narrow = [
        f"{name} is {tree.describe(leaf)}"
        for name, leaf in tree.flatten(params).items()
        if leaf.dtype not in (jnp.float32, jnp.float64)
    ]
    if narrow or not tree.count(params):
        raise errors.UserError(
            "a loss surface needs float32 or float64 parameters; cast them first: "
            + (", ".join(narrow[:4]) or "there are none")
        )
    if not batches:
        raise errors.UserError("a loss surface needs at least one batch")
    return params, batches


def _sum_over_batches(function, batches):
    """The sum over batches of a function's tree of arrays."""
    total = function(batches[0])
    for batch in batches[1:]:
        total = jax.tree.map(jnp.add, total, function(batch))
    return total


def _positive(weight):
    if not float(weight) > 0:
        raise errors.UserError(
            "the batches have nothing that counts: their weight is 0"
        )
    return weight


def _mean(loss):
    total, weight = loss
    return float(total) / float(_positive(weight))


@functools.partial(jax.jit, static_argnums=0)
def _sums(loss_fn, params, batch):
    loss = loss_fn(params, batch)
    return loss.total, loss.weight


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss_fn, params, batch):
    """The gradient of the total, and (total, weight)."""

    def total(params):
        sums = _sums(loss_fn, params, batch)
        return sums[0], sums

    return jax.grad(total, has_aux=True)(params)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_product(loss_fn, params, vector, batch):
    """The product of the total's Hessian with a vector, and the weight."""

    def gradient(params):
        grads, (_, weight) = _gradient(loss_fn, params, batch)
        return grads, weight

    _, product, weight = jax.jvp(gradient, (params,), (vector,), has_aux=True)
    return product, weight


@jax.jit
def _ascend(params, scale, inside, gradient, radius, length):
    """One step in eps / T, and the parameters there."""
    slopes = jax.tree.map(jnp.multiply, scale, gradient)
    norm = _norm(slopes)
    slopes = _divide(slopes, jnp.where(norm == 0, 1, norm) / length)
    inside = jax.tree.map(jnp.add, inside, slopes)
    norm = _norm(inside)
    inside = _divide(inside, jnp.where(norm > radius, norm / radius, 1))
    moved = jax.tree.map(lambda x, t, u: x + t * u, params, scale, inside)
    return inside, moved


def _random_unit(params, key):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        # Where the parameter lives: the whole basis then has its sharding.
        jax.device_put(jax.random.normal(k, x.shape, x.dtype), x.sharding)
        for k, x in zip(keys, leaves, strict=True)
    ]
    vector = jax.tree.unflatten(structure, drawn)
    return _divide(vector, _norm(vector))


@jax.jit
def _dot(a, b):
    # Not vdot, whose factors some devices round to bfloat16.
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))


@jax.jit
def _norm(vector):
    leaves = jax.tree.leaves(vector)
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in leaves]
    )
    # On flat surfaces 1e-20 is much, and its square is 0 in float32.
    unit = jnp.where(largest == 0, 1, largest)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(x / unit)) for x in leaves))


@jax.jit
def _divide(vector, number):
    return jax.tree.map(lambda x: (x / number).astype(x.dtype), vector)


@jax.jit
def _without(vector, direction):
    """The vector less its part along a unit direction."""
    along = _dot(vector, direction)
    return jax.tree.map(lambda x, d: (x - along * d).astype(x.dtype), vector, direction)
