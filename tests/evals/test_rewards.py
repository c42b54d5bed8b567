"""RewardBench 1 and 2, best of n and accuracies against published values."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab import objectives
from jaxlab.core import errors
from jaxlab.evals import rewards
from jaxlab.stats import proportions


@pytest.fixture(scope="module")
def values(test_data):
    folder = test_data.parent / "vectors" / "preference_routing"
    if not folder.is_dir():
        pytest.skip("no reference values beside the test data")
    return lambda name: json.loads((folder / f"{name}.json").read_text("utf-8"))


def test_rewardbench_is_that_of_the_published_tables(values):
    bench = values("rewardbench")
    for name, fine in bench["fine"].items():
        table = dict(zip(bench["subsets"], fine, strict=True))
        wanted = bench["result"][name]
        for weights, key in (("v1", "correct"), ("hyper2024", "published")):
            found = rewards.rewardbench(table, weights)
            expected = dict(zip(bench["order"], wanted[f"{key}_weights"], strict=True))
            assert found.pop("overall") == pytest.approx(
                expected.pop("Overall"), abs=1e-4
            )
            assert found == pytest.approx(expected, abs=1e-4)


def test_rewardbench_refuses_subsets_that_are_missing_or_unknown():
    table = {name: 1.0 for part in rewards.SECTIONS.values() for name in part}
    assert rewards.rewardbench({**table, "overall": 0.0})["overall"] == 1
    with pytest.raises(errors.UserError, match="no subset anthropic-harmless"):
        rewards.rewardbench({**table, "anthropic-harmless": 1.0})
    del table["hep-go"]
    with pytest.raises(errors.UserError, match="more subsets: hep-go"):
        rewards.rewardbench(table)
    with pytest.raises(errors.UserError, match="weights 'v2'; use v1 or hyper2024"):
        rewards.rewardbench(table, "v2")


def test_rewardbench_2_is_that_of_its_own_program(values):
    bench = values("rewardbench2")
    for problem in bench["ties"]:
        found = rewards.ties(problem["rows"])._asdict()
        assert found == pytest.approx(problem["expected"], abs=1e-9)
    rows = bench["best_of_four"]["rows"]
    found = rewards.best_of_four([row["scores"] for row in rows])
    np.testing.assert_allclose(found, [row["credit"] for row in rows], atol=1e-9)
    assert found.mean() == pytest.approx(bench["best_of_four"]["mean"], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "tied:7"}, r"pairs tied:N and ref:N; alone: \['0', '7'\]"),
        ({"id": "other:0"}, "'other:0' is not one tied:N or ref:N"),
        ({"id": "ref:0"}, "'ref:0' is not one"),
        ({"num_correct": 3}, "3 right of 3 answers; it needs right and wrong"),
    ],
)
def test_ties_are_refused_where_they_are_no_pairs(change, message):
    one = {"id": "ref:0", "num_correct": 1, "scores": [2.0, 1.0, 0.0]}
    tied = {"id": "tied:0", "num_correct": 2, "scores": [2.0, 1.0, 0.0], **change}
    with pytest.raises(errors.UserError, match=message):
        rewards.ties([one, tied])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=6),
    st.data(),
)
def test_best_of_n_is_the_mean_over_all_choices_of_n(samples, data):
    scores, worth = zip(*samples, strict=True)
    n = data.draw(st.integers(1, len(samples)))

    def draw(chosen):
        best = max(scores[i] for i in chosen)
        return np.mean([worth[i] for i in chosen if scores[i] == best])

    expected = np.mean([*map(draw, itertools.combinations(range(len(samples)), n))])
    assert rewards.best_of_n(scores, worth, n) == pytest.approx(expected)


def test_the_greatest_reward_is_chosen_and_a_nan_only_alone():
    found = rewards.choose([[1.0, 3.0, 3.0], [math.nan, -9.0, -math.inf]])
    assert found.tolist() == [1, 1]
    with pytest.raises(ValueError, match="n 4 of 3 samples; use 1 to 3"):
        rewards.best_of_n([1, 2, 3], [1, 2, 3], 4)


def test_accuracies_are_of_strict_wins_by_subset():
    found = rewards.accuracy(
        [2.0, 1.0, math.nan, 5.0], [1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]
    )
    assert {name: (x.value, x.count) for name, x in found.items()} == {
        "a": (0.5, 2), "b": (0.5, 2), "overall": (0.5, 4),
    }  # fmt: skip
    assert {*rewards.accuracy([1.0], [0.0])} == {"overall"}


@given(st.integers(0, 30), st.integers(0, 30))
def test_an_interval_of_a_share_holds_it_and_stays_in_0_to_1(right, wrong):
    low, value, high, count = proportions.share(right, right + wrong)
    assert count == right + wrong
    if count:
        assert -1e-12 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1 + 1e-12
        assert high - low > proportions.share(2 * right, 2 * count).high - (
            proportions.share(2 * right, 2 * count).low
        )
    with pytest.raises(ValueError, match="right of"):
        proportions.share(count + 1, count)


def test_bradley_terry_is_that_of_the_reference_values(values):
    case = values("bt")
    with jax.enable_x64(True):
        chosen, rejected, margin = (
            np.array(case[x], np.float64) for x in ("chosen", "rejected", "margin")
        )
        each = objectives.bradley_terry(chosen, rejected)
        np.testing.assert_allclose(each, case["loss"], rtol=1e-9)
        assert float(each.mean()) == pytest.approx(case["loss_mean"], rel=1e-9)
        with_margin = objectives.bradley_terry(chosen, rejected, margin).mean()
        assert float(with_margin) == pytest.approx(case["loss_margin_mean"], rel=1e-9)
        slope = jax.grad(lambda x: objectives.bradley_terry(x, rejected).sum())(chosen)
        np.testing.assert_allclose(slope, case["dloss_dchosen"], rtol=1e-9)
    right = rewards.accuracy(case["chosen"], case["rejected"])["overall"].value
    assert right == pytest.approx(case["accuracy"])
