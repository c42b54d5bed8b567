"""Soups and low-rank adapters: written-out values, exactness, bounds, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merge


def at(value):
    return {"w": jnp.array([value])}


def near(goal):
    return lambda tree: -abs(float(tree["w"][0]) - goal)


def test_a_greedy_soup_keeps_what_helps_and_leaves_the_rest():
    trees = [at(9.0), at(1.0), at(4.0), at(2.0)]
    # alone: 2 (off by .6), 4, 1, 9; with 4: 3 (.4); with 1: 2.33 (.27); with 9: 4 (1.4)
    assert merge.greedy_ingredients(trees, near(2.6)) == [3, 2, 1]
    np.testing.assert_allclose(merge.greedy_soup(trees, near(2.6))["w"], 7 / 3)
    np.testing.assert_allclose(merge.uniform_soup(trees)["w"], 4.0)


def test_a_greedy_soup_is_never_worse_than_its_best_model():
    trees = [at(float(x)) for x in np.random.default_rng(0).normal(size=8)]
    for goal in (-1.0, 0.1, 2.0):
        score = near(goal)
        assert score(merge.greedy_soup(trees, score)) >= max(map(score, trees))


def test_a_greedy_soup_follows_a_given_order():
    assert merge.greedy_ingredients([at(3.0), at(2.0)], near(2.0), order=[0, 1]) == [
        0,
        1,
    ]
    with pytest.raises(ValueError, match=r"order \[0, 0\] is not one of 2 trees"):
        merge.greedy_ingredients([at(3.0), at(2.0)], near(2.0), order=[0, 0])
    with pytest.raises(ValueError, match="score of a soup is NaN"):
        merge.greedy_soup([at(1.0)], lambda tree: float("nan"))


def rank_two(key, shape=(2, 6, 5)):
    a = jax.random.normal(key, (*shape[:-1], 2))
    b = jax.random.normal(jax.random.fold_in(key, 1), (*shape[:-2], 2, shape[-1]))
    return {"w": a @ b, "bias": jnp.arange(4.0)}


def test_a_low_rank_task_vector_is_extracted_exactly():
    vector = rank_two(jax.random.key(0))
    adapter = merge.extract_low_rank(vector, energy=0.999999)
    assert adapter["w"].a.shape == (2, 6, 2)
    found = merge.low_rank_product(adapter)
    np.testing.assert_allclose(found["w"], vector["w"], atol=1e-5)
    assert found["bias"] is vector["bias"]


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_energy_kept_bounds_the_error(energy):
    matrix = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    matrix *= 0.8 ** np.arange(30)
    adapter = merge.extract_low_rank({"w": matrix}, energy=energy)
    error = np.linalg.norm(matrix - merge.low_rank_product(adapter)["w"]) ** 2
    total = np.linalg.norm(matrix) ** 2
    assert error <= (1 - energy) * total * (1 + 1e-4)
    smaller = merge.extract_low_rank({"w": matrix}, rank=adapter["w"].a.shape[-1] - 1)
    error = np.linalg.norm(matrix - merge.low_rank_product(smaller)["w"]) ** 2
    assert error > (1 - energy) * total


def test_adapters_are_merged_as_products_and_not_as_factors():
    vectors = [rank_two(jax.random.key(k)) for k in (0, 5)]
    adapters = [merge.extract_low_rank(vector, rank=2) for vector in vectors]
    merged = merge.merge_adapters(adapters, [0.7, -0.4])
    assert merged["w"].a.shape == (2, 6, 4)
    found = merge.low_rank_product(merged)
    expected = 0.7 * vectors[0]["w"] - 0.4 * vectors[1]["w"]
    np.testing.assert_allclose(found["w"], expected, atol=1e-5)
    np.testing.assert_allclose(found["bias"], 0.3 * vectors[0]["bias"], rtol=1e-6)
    a = sum(w * x["w"].a for w, x in zip([0.7, -0.4], adapters, strict=True))
    b = sum(w * x["w"].b for w, x in zip([0.7, -0.4], adapters, strict=True))
    assert np.abs(a @ b - expected).max() > 0.1


def test_factors_are_used_only_where_they_are_smaller_and_asked_for():
    vector = {"small": jnp.eye(3), "mlp": jnp.ones((9, 9)), "attn": jnp.ones((9, 9))}
    adapter = merge.extract_low_rank(vector, rank=2, patterns=["mlp", "small"])
    assert isinstance(adapter["mlp"], merge.LowRank)
    assert adapter["small"] is vector["small"]  # 2 x 6 numbers instead of 9
    assert adapter["attn"] is vector["attn"]


def test_bf16_adapters_keep_their_dtype():
    x = {"w": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    adapter = merge.extract_low_rank(x, rank=1)
    merged = merge.merge_adapters([adapter, adapter], [0.5, 0.25])
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(
        merge.low_rank_product(merged, dtype=jnp.float32)["w"], 0.75, rtol=1e-2
    )


def test_an_extraction_that_cannot_be_meant_is_refused():
    vector = {"w": jnp.ones((8, 8))}
    for options, message in (
        ({}, "either a rank or an energy"),
        ({"rank": 1, "energy": 0.5}, "either a rank or an energy"),
        ({"rank": 0}, "rank 0; use at least 1"),
        ({"energy": 1.5}, r"energy 1.5 is not in \(0, 1\]"),
        ({"rank": 1, "patterns": ["v"]}, "'v' matches no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            merge.extract_low_rank(vector, **options)
    with pytest.raises(ValueError, match="not finite: w"):
        merge.extract_low_rank({"w": jnp.full((8, 8), jnp.inf)}, rank=1)
    one = merge.extract_low_rank(vector, rank=1)
    other = merge.extract_low_rank({"w": jnp.ones((9, 9))}, rank=1)
    with pytest.raises(ValueError, match=r"8,8.*9,9"):
        merge.merge_adapters([one, other], [1, 1])
