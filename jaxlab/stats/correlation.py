"""Correlations of paired values: Pearson's r, Spearman's rho, Kendall's tau-b.

    r     = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2)
    rho   = r of the ranks, ties sharing the mean of their ranks
    tau_b = (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)

Kendall 1945, *The treatment of ties in ranking problems*. All three compile, `vmap` (so
a bootstrap is one call) and give NaN, never an arbitrary number, where there is no
correlation: fewer than two values, a constant side, a NaN among the values.
"""

import jax
import jax.numpy as jnp


@jax.jit
def pearson(x: jax.Array, y: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Pearson's linear correlation.

    Args:
        x: f32[n], or any numbers.
        y: f32[n].
        where: bool[n], the values that take part; None for all.

    Returns:
        f32[] in [-1, 1]; NaN for n < 2, a constant side, NaNs or infinities.

    Raises:
        ValueError: the two are not vectors of one length.

    >>> float(pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]))
    1.0
    """
    x, y = _pair(x, y)
    if x.size < 2:
        return jnp.array(jnp.nan)
    x, y = _centre(x, where), _centre(y, where)
    scale = jnp.sqrt(jnp.sum(jnp.square(x)) * jnp.sum(jnp.square(y)))
    return jnp.clip(jnp.sum(x * y) / scale, -1.0, 1.0)


@jax.jit
def spearman(x: jax.Array, y: jax.Array) -> jax.Array:
    """Spearman's rank correlation; ties share the mean of their ranks.

    Args:
        x: numbers [n]; infinities are the first or last rank.
        y: numbers [n].

    Returns:
        f32[] in [-1, 1]; NaN for n < 2, a constant side or NaNs.

    Raises:
        ValueError: the two are not vectors of one length.

    >>> float(spearman([1.0, 2.0, 3.0], [1.0, 10.0, 100.0]))
    1.0
    """
    x, y = _pair(x, y)
    return jnp.where(_any_nan(x, y), jnp.nan, pearson(ranks(x), ranks(y)))


@jax.jit
def kendall(x: jax.Array, y: jax.Array) -> jax.Array:
    """Kendall's tau-b, the rank correlation over pairs, corrected for ties.

    Compares all pairs: O(n^2), for the tens to thousands of items of a ranking.

    Args:
        x: numbers [n], n below 46 000 (pairs are counted in int32).
        y: numbers [n].

    Returns:
        f32[] in [-1, 1]; NaN for n < 2, a constant side or NaNs.

    Raises:
        ValueError: the two are not vectors of one length, or too long.

    >>> round(float(kendall([1, 2, 3, 4], [1, 2, 4, 3])), 4)
    0.6667
    """
    x, y = _pair(x, y)
    if x.size > 46_000:
        raise ValueError(f"kendall compares all pairs; {x.size} values are too many")
    return jnp.where(_any_nan(x, y), jnp.nan, _tau(_order(x), _order(y)))


@jax.jit
def all_three(x: jax.Array, y: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Pearson's, Spearman's and Kendall's correlation of some of the values.

    For statistics of many small masked vectors: ranks come from comparing all pairs,
    which compiles far faster than a sort.

    Args:
        x: numbers [n], n below 46 000.
        y: numbers [n].
        where: bool[n], the values that take part; None for all.

    Returns:
        f32[3], each as the function of its name gives it for the values in `where`.

    Raises:
        ValueError: the two are not vectors of one length.

    >>> all_three([1, 2, 3, 9], [2, 4, 6, 1], jnp.arange(4) < 3).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    x, y = _pair(x, y)
    where = jnp.ones(x.shape, bool) if where is None else where
    x, y = jnp.where(where, x, 0), jnp.where(where, y, 0)
    pairs = where[:, None] & where[None, :]
    orders = [_order(each) * pairs for each in (x, y)]
    # The row sums are 2 rank - n - 1: values below less values above.
    rho = pearson(*(jnp.sum(order, axis=1) for order in orders), where)
    three = jnp.stack([pearson(x, y, where), rho, _tau(*orders)])
    return jnp.where(_any_nan(x, y), jnp.nan, three)


@jax.jit
def less_group_mean(
    x: jax.Array, groups: jax.Array, where: jax.Array | None = None
) -> jax.Array:
    """The values less the mean of their group: what is left of them within groups.

    Compares all pairs, like `kendall`.

    Args:
        x: f32[n].
        groups: numbers [n]; equal ones are one group.
        where: bool[n], the values that take part; the others become 0.

    >>> less_group_mean(jnp.array([1.0, 3.0, 10.0]), jnp.array([2, 2, 3])).tolist()
    [-1.0, 1.0, 0.0]
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    x = jnp.where(where, x, 0.0)
    same = (groups[:, None] == groups[None, :]) & where[None, :]
    mean = jnp.sum(jnp.where(same, x[None, :], 0.0), axis=1) / jnp.sum(same, axis=1)
    return jnp.where(where, x - mean, 0.0)


@jax.jit
def ranks(x: jax.Array) -> jax.Array:
    """Ranks from 1, smallest first; ties share the mean of their ranks.

    >>> ranks(jnp.array([10.0, 30.0, 10.0, 20.0])).tolist()
    [1.5, 4.0, 1.5, 3.0]
    """
    x = jnp.asarray(x)
    ordered = jnp.sort(x)
    below = jnp.searchsorted(ordered, x, side="left")
    up_to = jnp.searchsorted(ordered, x, side="right")
    return (below + up_to + 1) / 2


def _pair(x, y):
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"a correlation needs two vectors of one length, not shapes {x.shape} "
            f"and {y.shape}; use jax.vmap for several"
        )
    return x, y


def _centre(x, where=None):
    """Less its mean, and scaled into [-1, 1]; NaN for a constant. 0 outside `where`."""
    where = jnp.ones(x.shape, bool) if where is None else where
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # A constant becomes exactly 0, whatever the mean is rounded to.
    x = jnp.where(where, x - x[jnp.argmax(where)], 0.0)
    x = jnp.where(where, x - jnp.mean(x, where=where), 0.0)
    return x / jnp.max(jnp.abs(x))  # squares neither overflow nor vanish; 0 / 0 is NaN


def _order(x):
    """i32[n, n]: 1 where the row's value is the larger, -1 the smaller, 0 tied."""
    rows, columns = x[:, None], x[None, :]
    return (rows > columns).astype(jnp.int32) - (rows < columns).astype(jnp.int32)


def _tau(x_order, y_order):
    agreement = jnp.sum(x_order * y_order)
    untied = jnp.sum(jnp.abs(x_order)), jnp.sum(jnp.abs(y_order))
    # Two roots: the product of two counts would overflow.
    scale = jnp.sqrt(untied[0].astype(float)) * jnp.sqrt(untied[1].astype(float))
    tau = jnp.where(scale > 0, agreement / jnp.where(scale > 0, scale, 1), jnp.nan)
    return jnp.clip(tau, -1.0, 1.0)


def _any_nan(x, y):
    return jnp.any(jnp.isnan(x)) | jnp.any(jnp.isnan(y))
