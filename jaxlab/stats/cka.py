"""Similarity of representations: linear centred kernel alignment (CKA).

    K = X X', L = Y Y'         of features whose columns have mean 0
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    HSIC(K, L) ~ <K, L> = sum_ij K_ij L_ij = |X'Y|_F^2

It compares which pairs of examples are alike in each, and does not change when
features are rotated or all scaled by one number: 1 for the same geometry, 0 for none in
common. Kornblith et al. 2019, *Similarity of neural network representations revisited*
(arXiv:1905.00414), equations 4 to 6.

With fewer examples than features that estimate is biased towards 1: it is high even for
random features. `debiased` takes the unbiased estimate of HSIC, Song et al. 2012, as
Nguyen et al. 2021 (arXiv:2010.15327, equation 3) do. With K~, L~ of zero diagonal,

    n (n - 3) HSIC_1 = tr K~L~ + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~L~1

which for centred features, with row norms k_i = |x_i|^2 and l_i = |y_i|^2, since then
K1 = 0, is

    n (n - 3) HSIC_1 = <K, L> - n / (n - 2) k'l + (1'k)(1'l) / ((n - 1)(n - 2))

Deviations: all features of all examples at once, where Nguyen et al. average HSIC over
minibatches.
"""

import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames="debiased")
def linear_cka(x: jax.Array, y: jax.Array, *, debiased: bool = False) -> jax.Array:
    """Linear CKA of two representations of the same examples.

    <K, L> is taken from matrices [d1, d2] or [n, n], whichever are cheaper.

    Args:
        x: f32[n, d1], one row per example; need not be centred.
        y: f32[n, d2], of the same examples in the same order.
        debiased: the unbiased estimate of HSIC; needed when n is not much above d.

    Returns:
        f32[] in [0, 1]; debiased in [-1, 1], about 0 for unrelated features. Constant
        features count for nothing; NaN where all are constant (debiased: where all
        pairs of examples are equally alike) or one is not finite.

    Raises:
        ValueError: not two matrices with one number of rows, fewer than 2 rows
            (debiased: 4), no features.

    >>> x = jax.random.normal(jax.random.key(0), (20, 3))
    >>> round(float(linear_cka(x, 1 - 2 * x[:, ::-1])), 4)
    1.0
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    least = 4 if debiased else 2
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in x.shape + y.shape:
        raise ValueError(
            "CKA needs features [n, d1] and [n, d2] of the same n examples, not shapes "
            f"{x.shape} and {y.shape}"
        )
    if len(x) < least:
        raise ValueError(f"CKA of {len(x)} examples; at least {least} are needed")
    x, y = _centre(x), _centre(y)
    hsic = functools.partial(_hsic, grams=_grams_are_cheaper(x, y))

    def norm(z):
        own, biased = hsic(z, z, debiased=debiased), hsic(z, z, debiased=False)
        # What rounding leaves of a 0 grows with n: 4e-6 was seen at n = 50 in float32,
        # 1e-5 at 1000. Divided by, it makes any number.
        rounding = 16 * math.sqrt(len(z)) * jnp.finfo(z.dtype).eps
        return jnp.sqrt(jnp.where(own > rounding * biased, own, jnp.nan))

    cka = hsic(x, y, debiased=debiased) / (norm(x) * norm(y))
    return jnp.clip(cka, -1.0 if debiased else 0.0, 1.0)


def _centre(x):
    """Columns less their mean, all scaled into [-1, 1]; NaN where all are constant."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # A constant becomes exactly 0, whatever its mean is rounded to.
    x = x - x[:1]
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return x / jnp.max(jnp.abs(x))  # products neither overflow nor vanish; 0 / 0 is NaN


def _grams_are_cheaper(x, y):
    n, d1, d2 = len(x), x.shape[1], y.shape[1]
    return n * (d1 + d2) < d1 * d1 + d2 * d2 + d1 * d2


def _hsic(x, y, *, debiased, grams):
    """HSIC of centred features, times a number that depends on n alone."""
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    if grams:
        inner = jnp.sum(dot(x, x.T) * dot(y, y.T))
    else:
        inner = jnp.sum(jnp.square(dot(x.T, y)))
    if not debiased:
        return inner
    n = len(x)
    k, l = (jnp.sum(jnp.square(z), axis=1) for z in (x, y))  # noqa: E741
    own = jnp.sum(k * l) * n / (n - 2)
    return inner - own + jnp.sum(k) * jnp.sum(l) / ((n - 1) * (n - 2))
