"""CKA: the kernels written out, what it does not see, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.stats import cka as cka_lib

KEY = jax.random.key(0)

SHAPES = [(12, 3, 5), (12, 3, 30), (6, 40, 25)]  # in features, mixed, in grams


def representations(n, d1, d2):
    rng = np.random.default_rng(n * d1)
    x = rng.normal(size=(n, d1)) * rng.uniform(0.5, 3, size=d1) + 2
    y = x @ rng.normal(size=(d1, d2)) + 5 * rng.normal(size=(n, d2)) - 1
    return np.float32(x), np.float32(y)


def biased_hsic(k, l):  # noqa: E741
    n = len(k)
    centre = np.eye(n) - 1 / n
    return np.trace(k @ centre @ l @ centre) / (n - 1) ** 2


def unbiased_hsic(k, l):  # noqa: E741
    n, one = len(k), np.ones(len(k))
    k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
    own = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + own - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_that_of_the_kernels_written_out(shape, debiased):
    x, y = representations(*shape)
    k, l = (np.float64(z) @ np.float64(z).T for z in (x, y))  # noqa: E741
    hsic = unbiased_hsic if debiased else biased_hsic
    expected = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    found = cka_lib.linear_cka(x, y, debiased=debiased)
    assert float(found) == pytest.approx(expected, abs=2e-6)
    assert 0.1 < expected < 0.98
    with jax.enable_x64():
        found = cka_lib.linear_cka(np.float64(x), np.float64(y), debiased=debiased)
        assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_knows_no_rotation_no_scale_no_offset_and_no_side(shape, debiased):
    x, y = representations(*shape)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(shape[1],) * 2))[0]
    moved = np.float32(x @ rotation * 1e-12 + 3e-12)
    cka = cka_lib.linear_cka(x, y, debiased=debiased)
    for other in (
        cka_lib.linear_cka(moved, y, debiased=debiased),
        cka_lib.linear_cka(y, x, debiased=debiased),
        cka_lib.linear_cka(x * 1e15, y[:, ::-1] * 1e15, debiased=debiased),
        cka_lib.linear_cka(x + 7, y, debiased=debiased),
    ):
        assert float(other) == pytest.approx(float(cka), abs=1e-5)
    itself = cka_lib.linear_cka(x, moved, debiased=debiased)
    assert float(itself) == pytest.approx(1.0, abs=1e-5)


def test_only_the_debiased_cka_of_unrelated_wide_features_is_about_zero():
    one, other = jax.random.normal(KEY, (2, 64, 512))
    assert cka_lib.linear_cka(one, other) > 0.8
    assert abs(cka_lib.linear_cka(one, other, debiased=True)) < 0.05


@pytest.mark.parametrize("debiased", [False, True])
def test_constant_features_have_no_similarity(debiased):
    x, y = representations(12, 3, 5)
    for other in (np.full((12, 5), 0.1), np.full((12, 30), 1e7), y * np.nan):
        assert jnp.isnan(cka_lib.linear_cka(x, other, debiased=debiased))
        assert jnp.isnan(cka_lib.linear_cka(other, x, debiased=debiased))


@pytest.mark.parametrize("n", [50, 300])
def test_examples_that_are_all_equally_alike_have_no_debiased_similarity(n):
    x, _ = representations(n, 3, 5)
    assert jnp.isnan(cka_lib.linear_cka(jnp.eye(n), x, debiased=True))
    assert jnp.isfinite(cka_lib.linear_cka(jnp.eye(n), x))


def test_cka_refuses_what_is_not_two_views_of_the_same_examples():
    x = jnp.ones((5, 2))
    for other in (jnp.ones((4, 2)), jnp.ones(5), jnp.ones((5, 0))):
        with pytest.raises(ValueError, match="same n examples"):
            cka_lib.linear_cka(x, other)
    with pytest.raises(ValueError, match="at least 2"):
        cka_lib.linear_cka(x[:1], x[:1])
    with pytest.raises(ValueError, match="at least 4"):
        cka_lib.linear_cka(x[:3], x[:3], debiased=True)
