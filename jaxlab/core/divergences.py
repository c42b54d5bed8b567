"""Divergences between the logits of two models: KL, MMD, L2.

    forward    KL(p || q) = sum_v p_v log(p_v / q_v)       p: target, q: current
    reverse    KL(q || p)
    symmetric  the sum of both
    MMD        mean_ij k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)
    L2         mean_i |x_i - y_i|

KL is summed as p (expm1(D) - D) with D = log q - log p, which is the same number, since
p and q sum to 1, and has no negative terms. Between neighbouring iterates KL is about
1e-9, and sum p (log p - log q) in float32 is then rounding noise of either sign: a
radius of the wrong sign climbs down. Near D = 0 the bracket is its own series.

Sherborne et al. 2023 (arXiv:2310.03646), equations 4 and 5, table 14; MMD: Gretton et
al. 2012, JMLR 13; its inverse multiquadric kernel: Tolstikhin et al. 2018
(arXiv:1711.01558).

Deviation: the released KL is a mean over classes, divided by the batch size once more;
here it is the mean over rows of the sum over classes, as in the paper.
"""

import jax
import jax.numpy as jnp

from jaxlab.core import errors

DIRECTIONS = ("forward", "reverse", "symmetric")
BANDWIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the released code
_SERIES = 1e-2  # |D| below which six terms of the series are exact to 1e-13


def kl_divergence(
    target_logits: jax.Array,
    logits: jax.Array,
    *,
    direction: str = "forward",
    where: jax.Array | None = None,
) -> jax.Array:
    """Mean over rows of the Kullback-Leibler divergence, in nats; never negative.

    Args:
        target_logits: [..., V]; a logit of -inf has no probability.
        logits: [..., V].
        direction: "forward" is KL(target || current), "reverse" the other way round,
            "symmetric" the sum of both.
        where: [...], bool or weights of the rows that count; None for all. Without any
            the divergence is 0.

    Returns:
        A scalar, f32 or wider.

    >>> float(kl_divergence(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.25, 0.75]))))
    0.14384...
    """
    return mean_of_rows(kl_rows(target_logits, logits, direction=direction), where)


def kl_rows(
    target_logits: jax.Array, logits: jax.Array, *, direction: str = "forward"
) -> jax.Array:
    """The divergence of every row, [...]; arguments as for `kl_divergence`."""
    if direction not in DIRECTIONS:
        raise errors.ArgumentError(
            f"direction {direction!r}; use one of {', '.join(DIRECTIONS)}"
        )
    target, current = (
        jax.nn.log_softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        for x in (target_logits, logits)
    )
    if direction == "forward":
        return _kl(target, current)
    if direction == "reverse":
        return _kl(current, target)
    return _kl(target, current) + _kl(current, target)


def mmd(
    target_logits: jax.Array,
    logits: jax.Array,
    *,
    kernel: str = "imq2",
    where: jax.Array | None = None,
) -> jax.Array:
    """Squared maximum mean discrepancy between two sets of rows; never negative.

    Public API: a `divergence_fn` of `tram`; no config chooses it.

    Args:
        target_logits, logits: [..., V]; every row is a point, so that all pairs of
            rows are compared: time grows with the square of their number.
        kernel: of the squared distance s, summed over BANDWIDTHS b: "imq2", the
            inverse multiquadric (b^2 + s)^-1/2; "imq", b / (b + s); "imq3",
            b^2 / (b^2 + s); "rbf", exp(-s / 2b). The released names.
        where: [...], bool or weights of the rows; None for all.

    >>> x = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    >>> float(mmd(x, x[::-1])), float(mmd(x, x + 1)) > 0.1
    (0.0, True)
    """
    kernels = {
        "imq": lambda b, s: b / (b + s),
        "imq2": lambda b, s: jax.lax.rsqrt(b * b + s),
        "imq3": lambda b, s: b * b / (b * b + s),
        "rbf": lambda b, s: jnp.exp(-0.5 * s / b),
    }
    if kernel not in kernels:
        raise errors.ArgumentError(
            f"kernel {kernel!r}; use one of {', '.join(kernels)}"
        )
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    x, y = (z.reshape(-1, z.shape[-1]).astype(wide) for z in (target_logits, logits))
    weight = jnp.ones(len(x), wide)
    if where is not None:
        weight = jnp.broadcast_to(where, logits.shape[:-1]).reshape(-1).astype(wide)
    weight = weight / jnp.maximum(jnp.sum(weight), 1e-9)

    def mean(a, b):
        def mean_to_row(row):
            # Not |a|^2 + |b|^2 - 2ab, which cancels for rows that are close.
            squares = jnp.sum(jnp.square(row[None] - b), axis=-1)
            return sum(kernels[kernel](width, squares) for width in BANDWIDTHS) @ weight

        return weight @ jax.lax.map(mean_to_row, a)

    return jnp.maximum(mean(x, x) + mean(y, y) - 2 * mean(x, y), 0.0)


def l2(
    target_logits: jax.Array, logits: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Mean over rows of the Euclidean distance of logits.

    Public API: a `divergence_fn` of `tram`; no config chooses it.

    Args:
        target_logits, logits: [..., V].
        where: [...], bool or weights of the rows; None for all.

    >>> float(l2(jnp.zeros((2, 2)), jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    2.5
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    squares = jnp.sum(jnp.square(logits.astype(wide) - target_logits), axis=-1)
    # The gradient of a root at 0 is infinite; that of a distance may be 0 there.
    rows = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return mean_of_rows(rows, where)


def mean_of_rows(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """The mean of numbers [...] where `where` is not 0; 0 where nothing counts."""
    if where is None:
        return jnp.mean(rows)
    weight = jnp.broadcast_to(where, rows.shape).astype(rows.dtype)
    return jnp.sum(rows * weight) / jnp.maximum(jnp.sum(weight), 1e-9)


def _kl(log_p, log_q):
    p = jnp.exp(log_p)
    has = p > 0  # elsewhere D is inf - inf, or of no weight
    gap = jnp.where(has, log_q - jnp.where(has, log_p, 0.0), 0.0)
    near = jnp.abs(gap) < _SERIES
    small = jnp.where(near, gap, 0.0)
    series = 1 + small / 6 * (1 + small / 7 * (1 + small / 8))
    for term in (5, 4, 3):
        series = 1 + small / term * series
    far = jnp.where(near, 1.0, gap)
    bracket = jnp.where(near, 0.5 * small**2 * series, jnp.expm1(far) - far)
    return jnp.sum(jnp.where(has, p * bracket, jnp.exp(log_q)), axis=-1)
