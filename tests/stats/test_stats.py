"""Correlations against scipy, bootstrap intervals against known ones."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.stats import bootstrap, correlation

FEW = hypothesis.settings(max_examples=25, deadline=None)
pairs = hnp.arrays(np.float32, (2, 7), elements=st.integers(-4, 4))
ORACLES = [
    (correlation.pearson, scipy.stats.pearsonr),
    (correlation.spearman, scipy.stats.spearmanr),
    (correlation.kendall, scipy.stats.kendalltau),
]
ALL = [ours for ours, _ in ORACLES]


@pytest.mark.parametrize(("ours", "scipys"), ORACLES)
@pytest.mark.filterwarnings("ignore:An input array is constant")
@FEW
@hypothesis.given(xy=pairs)
def test_correlations_with_ties_equal_those_of_scipy(ours, scipys, xy):
    np.testing.assert_allclose(ours(*xy), scipys(*xy).statistic, atol=2e-6)


def test_correlations_have_their_written_out_values():
    x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0])
    for function, expected in zip(ALL, (0.5, 0.5, 1 / 3), strict=True):
        chex.assert_trees_all_close(function(x, y), expected, atol=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_there_is_no_correlation_with_a_constant_a_nan_or_too_few(function):
    y = jnp.array([1.0, 2.0, 4.0])
    assert jnp.isnan(function(jnp.full(3, 0.1), y))
    assert jnp.isnan(function(y, jnp.full(3, 1e7)))
    assert jnp.isnan(function(jnp.array([1.0, jnp.nan, 2.0]), y))
    assert jnp.isnan(function(jnp.ones(1), jnp.ones(1)))
    assert jnp.isnan(function(jnp.ones(0), jnp.ones(0)))


@pytest.mark.parametrize("function", ALL)
def test_correlations_survive_large_offsets_and_scales(function):
    x = jnp.array([0.0, 1.0, 2.0, 4.0])
    for moved in (x + 1e6, x * 1e30, x * 1e-30, -(1e20 - 1e19 * x)):
        chex.assert_trees_all_close(function(moved, x), 1.0, atol=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_correlations_compile_and_map_over_rows(function):
    x = jax.random.normal(jax.random.key(0), (3, 8))
    y = jax.random.normal(jax.random.key(1), (3, 8))
    each = jnp.stack([function(a, b) for a, b in zip(x, y, strict=True)])
    chex.assert_trees_all_close(jax.jit(jax.vmap(function))(x, y), each, atol=1e-6)
    with pytest.raises(ValueError, match="two vectors of one length"):
        function(x, y)
    with pytest.raises(ValueError, match="two vectors of one length"):
        function(x[0], y[0, :5])


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    x = jax.random.normal(jax.random.key(2), (400,))
    low, value, high = bootstrap.bootstrap(
        jnp.mean, x, key=jax.random.key(0), resamples=4000
    )
    half = 1.96 * x.std() / 20
    chex.assert_trees_all_close(value, x.mean())
    chex.assert_trees_all_close(low, x.mean() - half, atol=0.15 * half)
    chex.assert_trees_all_close(high, x.mean() + half, atol=0.15 * half)
    narrow = bootstrap.bootstrap(jnp.mean, x, key=jax.random.key(0), confidence=0.5)
    assert low < narrow.low < value < narrow.high < high


def test_the_bootstrap_equals_that_of_scipy():
    x = np.random.default_rng(0).exponential(size=60).astype(np.float32)
    theirs = scipy.stats.bootstrap(
        (x,), np.median, method="percentile", n_resamples=3000, rng=0
    ).confidence_interval
    ours = bootstrap.bootstrap(jnp.median, x, key=jax.random.key(0), resamples=3000)
    np.testing.assert_allclose([ours.low, ours.high], theirs, rtol=0.1)


def test_samples_are_resampled_together():
    x = jnp.arange(20.0)
    interval = bootstrap.bootstrap(
        correlation.spearman, (x, x**2), key=jax.random.key(0), resamples=100
    )
    chex.assert_trees_all_close(interval, bootstrap.Interval(1.0, 1.0, 1.0), atol=1e-6)
    noisy = x + 10 * jax.random.normal(jax.random.key(1), (20,))
    one = bootstrap.paired_difference(noisy + 0.5, noisy, key=jax.random.key(0))
    chex.assert_trees_all_close(one, bootstrap.Interval(0.5, 0.5, 0.5), atol=1e-5)


def test_intervals_are_reproducible_and_of_the_statistics_shape():
    x = jax.random.normal(jax.random.key(0), (30, 2))

    def means(x):
        return x.mean(0)

    a, b = (bootstrap.bootstrap(means, x, key=jax.random.key(5)) for _ in range(2))
    chex.assert_trees_all_equal(a, b)
    chex.assert_shape(a, (2,))
    assert (a.low < a.value).all()


def test_degenerate_resamples_are_left_out():
    interval = bootstrap.bootstrap(
        correlation.pearson,
        (jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])),
        key=jax.random.key(0),
    )
    chex.assert_trees_all_close(interval, bootstrap.Interval(1.0, 1.0, 1.0))
    broken = bootstrap.bootstrap(
        jnp.mean, jnp.array([1.0, jnp.nan]), key=jax.random.key(0)
    )
    assert jnp.isnan(jnp.stack(broken)).all()


def test_bad_bootstraps_are_refused():
    key, x = jax.random.key(0), jnp.ones(3)
    for samples in ((x, jnp.ones(2)), jnp.ones(0), jnp.ones(()), ()):
        with pytest.raises(ValueError, match="common number of rows"):
            bootstrap.bootstrap(jnp.mean, samples, key=key)
    with pytest.raises(ValueError, match="confidence 95"):
        bootstrap.bootstrap(jnp.mean, x, key=key, confidence=95)
    with pytest.raises(ValueError, match="resamples 0"):
        bootstrap.bootstrap(jnp.mean, x, key=key, resamples=0)
