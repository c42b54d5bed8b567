"""Coefficients of spherical merges from inner products: sum_k c_k theta_k, c = f(G).

No spherical merge leaves the span of its inputs: each result is sum_k c_k theta_k, and
the coefficients need only the inner products G_jk = <theta_j, theta_k>. So each method
is a function from G to c, an iteration on the sphere runs over M numbers and not over
the parameters, and a leaf is read twice: for G, and for the combination. On a sharded
leaf an inner product is one all-reduce of a number; a stream adds it up by chunks.

Formulas and sources are at the top of `merge.spheres.merges`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_LINEAR = 0.9995  # slerp's |cos| beyond which the arc is taken for its chord
_TINY = 1e-8  # norms below count as zero


def gram(vectors: Sequence[jax.Array], along: str = "leaf") -> jax.Array:
    """Inner products of M leaves, of the whole leaves or of slices along one axis.

    Args:
        vectors: M arrays [...], wide.
        along: "leaf"; or "row", "column": slices along the last, the first axis.

    Returns:
        [M, M]; or [M, M, ...], the leaf's axes with size 1 at the one summed over.
    """
    axis = {"leaf": None, "row": -1, "column": 0}[along]
    if not vectors[0].ndim:
        axis = None
    half = {
        (j, k): _inner(vectors[j], vectors[k], axis)
        for j in range(len(vectors))
        for k in range(j, len(vectors))
    }
    return jnp.stack(
        [
            jnp.stack([half[min(j, k), max(j, k)] for k in range(len(vectors))])
            for j in range(len(vectors))
        ]
    )


def slerp_coefficients(G: jax.Array, t: jax.Array) -> jax.Array:
    """Inner products of (a, b), and t -> the two coefficients [2, ...]."""
    cosine = _cosine(G, 0, 1, _TINY**2)
    return _arc(cosine, t, jnp.abs(cosine) > _LINEAR)


def nuslerp_coefficients(G: jax.Array, weights: jax.Array) -> jax.Array:
    """Inner products of (a, b), and their weights [2, ...] -> coefficients [2, ...]."""
    G, weights = _align(G, weights)
    total = weights[0] + weights[1]
    balanced = jnp.abs(total) < 1e-6
    t = jnp.where(balanced, 0.5, weights[1] / jnp.where(balanced, 1, total))
    cosine = _cosine(G, 0, 1, 1e-14)
    return _arc(cosine, t, 1 - jnp.square(cosine) <= _TINY**2)


def multislerp_coefficients(G: jax.Array, weights: jax.Array) -> jax.Array:
    """Inner products of M trees, and the weights as they are used -> [M, ...]."""
    G, weights = _align(G, weights)
    norms, unit = _units(G, lambda norm: norm + _TINY)
    length = _length(weights, unit)
    cancelled = length < _TINY
    m = weights / jnp.where(cancelled, 1, length)  # in units u_k, as all below
    drift = jnp.sum(weights * jnp.einsum("jk...,k...->j...", unit, m), axis=0)
    tangent = weights - drift * m
    step = _length(tangent, unit) + _TINY
    direction = m * jnp.cos(step) + tangent * (jnp.sin(step) / step)
    coefficients = jnp.sum(weights * norms, axis=0) * direction / (norms + _TINY)
    # No direction: two opposite vectors have their chord, and zeros stay zeros.
    chord = (len(G) == 2) | jnp.all(norms == 0, axis=0)
    return jnp.where(cancelled, jnp.where(chord, weights, jnp.nan), coefficients)


def karcher_coefficients(
    G: jax.Array, weights: jax.Array, *, max_iter: int = 10, tol: float = 1e-5
) -> jax.Array:
    """Inner products of M trees, and weights that sum to 1 -> coefficients [M, ...]."""
    G, weights = _align(G, weights)
    norms, unit = _units(G, lambda norm: jnp.where(norm > tol, norm, 1))
    valid = norms > tol
    shares = jnp.where(valid, weights, 0)
    total = jnp.sum(shares, axis=0)
    shares = shares / jnp.where(total == 0, 1, total)

    def to_unit(m, otherwise):
        length = _length(m, unit)
        return jnp.where(
            length > tol, m / jnp.where(length > tol, length, 1), otherwise
        )

    def step(_, carry):
        m, done = carry
        cosines = jnp.einsum("jk...,k...->j...", unit, m)
        inside = jnp.abs(cosines) < 1  # at the ends arccos has no derivative
        angles = jnp.arccos(jnp.where(inside, cosines, 0))
        pulls = shares * jnp.where(
            inside & (angles >= tol), angles / jnp.sin(angles), 0
        )
        tangent = pulls - jnp.sum(pulls * cosines, axis=0) * m
        length = _length(tangent, unit)
        done = done | (length < tol)
        moved = jnp.cos(length) * m + jnp.sinc(length / jnp.pi) * tangent
        return jnp.where(done, m, to_unit(moved, moved)), done

    first = jnp.cumsum(jnp.cumsum(valid, axis=0), axis=0) == 1  # of those with a norm
    start = to_unit(shares, first.astype(shares.dtype))
    done = jnp.zeros(total.shape, bool)
    m, _ = jax.lax.fori_loop(0, max_iter, step, (start, done))
    scale = jnp.sum(weights * norms, axis=0)
    coefficients = jnp.where(valid, scale * m / jnp.where(valid, norms, 1), 0)
    return jnp.where(
        jnp.any(valid, axis=0), coefficients, weights
    )  # or else the plain mean


def stock_coefficients(G: jax.Array) -> jax.Array:
    """Inner products of N differences from the base -> t / N for each, [N, ...]."""
    size = len(G)
    pairs = [(j, k) for j in range(size) for k in range(j + 1, size)]
    cosine = sum(_cosine(G, j, k, 1e-6) for j, k in pairs) / len(pairs)
    below = 1 + (size - 1) * cosine
    singular = jnp.abs(below) < 1e-6  # no finite answer: stay at the base
    t = jnp.where(singular, 0, size * cosine / jnp.where(singular, 1, below))
    return jnp.stack([t / size] * size)


def _arc(cosine, t, straight) -> jax.Array:
    """Coefficients of a and b at t of the arc between them, or of the chord."""
    angle = jnp.arccos(jnp.where(straight, 0, cosine))  # 0: finite, and not used
    first = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    second = jnp.where(straight, t, jnp.sin(t * angle) / jnp.sin(angle))
    return jnp.stack([first, second])


def _cosine(G, j, k, floor):
    # The root of the product: exactly 1 for equal and -1 for opposite vectors.
    product = jnp.sqrt(G[j, j] * G[k, k])
    return jnp.clip(G[j, k] / jnp.maximum(product, floor), -1, 1)


def _align(G, weights):
    """Both with the same number of axes behind [M, M] and [M]."""
    rank = max(G.ndim - 2, weights.ndim - 1)
    return (
        G.reshape(*G.shape, *(1,) * (rank - G.ndim + 2)),
        weights.reshape(*weights.shape, *(1,) * (rank - weights.ndim + 1)),
    )


def _units(G, divisor):
    """Norms [M, ...], and inner products of the vectors over their divisors."""
    norms = jnp.sqrt(jnp.stack([G[k, k] for k in range(len(G))]))
    by = divisor(norms)
    return norms, G / (by[:, None] * by[None, :])


def _length(m, unit):
    """|sum_k m_k u_k|, with a derivative at 0."""
    square = jnp.einsum("j...,jk...,k...->...", m, unit, m)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _inner(a, b, axis):
    if axis is not None:
        return jnp.sum(a * b, axis=axis, keepdims=True)
    axes = tuple(range(a.ndim))
    return jax.lax.dot_general(
        a, b, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
