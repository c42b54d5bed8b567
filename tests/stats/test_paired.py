"""Paired differences: scipy's values, ties, and few pairs."""

import itertools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxlab.stats import paired

FEW = hypothesis.settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 20, 21, 40])
def test_paired_differences_are_those_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n)) + np.array([[0.5], [0.0]])
    found = paired.paired_difference(a, b)
    test = scipy.stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert found.n == n
    assert found.mean == pytest.approx(np.mean(a - b), rel=1e-12)
    assert found.low == pytest.approx(interval.low, rel=1e-10)
    assert found.high == pytest.approx(interval.high, rel=1e-10)
    if n > 20:
        assert found.p_value == pytest.approx(test.pvalue, abs=1e-14)
    elif n <= 8:
        flips = scipy.stats.permutation_test(
            (a, b), lambda a, b: np.mean(a - b), permutation_type="samples"
        )
        assert found.p_value == pytest.approx(flips.pvalue, rel=1e-12)
    else:
        assert found.p_value == pytest.approx(test.pvalue, rel=0.1)


differences = hnp.arrays(
    np.float64, st.integers(2, 7), elements=st.integers(-3, 3).map(lambda i: i / 10)
)


@FEW
@hypothesis.given(d=differences)
def test_ties_among_signs_count_whatever_they_are_rounded_to(d):
    tenths = np.round(d * 10).astype(int)
    signs = itertools.product((1, -1), repeat=len(d))
    extreme = [abs(tenths @ sign) >= abs(tenths.sum()) for sign in signs]
    assert paired.paired_difference(d + 0.7, np.full_like(d, 0.7)).p_value == (
        np.mean(extreme)
    )


def test_the_sign_flips_of_seeds_that_agree_have_the_least_p_there_is():
    for n in (1, 5, 6, 20):
        assert paired.paired_difference(np.ones(n), np.zeros(n)).p_value == 2 / 2**n
    same = paired.paired_difference(np.arange(30.0), np.arange(30.0))
    assert same == (0.0, 0.0, 0.0, 1.0, 30)
    assert paired.paired_difference(np.ones(30), np.zeros(30)).p_value == 0


@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.95, 0.999])
def test_the_quantiles_of_t_are_those_of_scipy(confidence):
    for degrees in (1, 2, 3, 4, 5, 9, 30, 1001):
        expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
        found = paired.t_quantile(confidence, degrees)
        assert found == pytest.approx(expected, rel=1e-9)


def test_one_seed_has_no_interval_and_a_diverged_one_no_mean():
    one = paired.paired_difference([3.0], [1.0])
    assert (one.mean, one.p_value, one.n) == (2.0, 1.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    for bad in (math.nan, math.inf):
        found = paired.paired_difference([1.0, bad, 2.0], [1.0, bad, 0.0])
        assert all(map(math.isnan, found[:4]))
        assert found.n == 3


def test_pairs_that_do_not_match_are_refused():
    for a, b in (([1.0, 2.0], [1.0]), ([], []), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match="two vectors of one length"):
            paired.paired_difference(a, b)
    with pytest.raises(ValueError, match="confidence 95"):
        paired.paired_difference([1.0, 2.0], [0.0, 0.0], confidence=95)
