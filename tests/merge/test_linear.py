"""Linear merges: their algebra, exactness, tracing, and mergekit's values."""

import json
import logging

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import merge
from jaxlab.merge import linear
from tests.support.trees import bits, random_trees

FEW = hypothesis.settings(max_examples=15, deadline=None)
floats = hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e6, 1e6, width=32))
vectors = hnp.arrays(np.float32, (3, 3), elements=st.floats(0.125, 8, width=32))


def test_the_average_has_its_written_out_value():
    a, b = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([4.0, 7.0])}
    chex.assert_trees_all_equal(merge.average([a, b])["w"], jnp.array([2.5, 2.5]))
    chex.assert_trees_all_equal(
        merge.average([a, b], [2, 1])["w"], jnp.array([2.0, 1.0])
    )
    chex.assert_trees_all_equal(
        merge.average([a, b], [2, -1], normalize=False)["w"], jnp.array([-2.0, -11.0])
    )


@FEW
@hypothesis.given(x=floats, weights=vectors)
def test_the_average_of_identical_trees_is_that_tree_bit_for_bit(x, weights):
    tree = {"w": x, "zero": np.float32([-0.0, 0.0])}
    assert bits(merge.average([tree] * 3, weights[0])) == bits(tree)
    assert bits(merge.average([tree] * 3)) == bits(tree)
    stacked = merge.stack([tree] * 3)
    assert bits(merge.average_stacked(stacked, weights[0])) == bits(tree)


@FEW
@hypothesis.given(x=floats, y=floats, z=floats, w=vectors)
def test_the_unnormalised_average_is_linear_in_weights(x, y, z, w):
    total = [merge.average([x, y, z], row, normalize=False) for row in (*w, w.sum(0))]
    bound = 1e-5 * np.abs([x, y, z]).max() * w.sum() + 1e-30
    np.testing.assert_allclose(sum(total[:3]), total[3], rtol=0, atol=bound)


@FEW
@hypothesis.given(x=floats, y=floats, z=floats, w=vectors)
def test_the_average_does_not_depend_on_the_order_of_the_trees(x, y, z, w):
    one = merge.average([x, y, z], w[0])
    other = merge.average([z, x, y], w[0][[2, 0, 1]])
    bound = 1e-6 * np.abs([x, y, z]).max() + 1e-30
    np.testing.assert_allclose(one, other, rtol=0, atol=bound)


@FEW
@hypothesis.given(x=floats, y=floats)
def test_interpolation_hits_its_endpoints_bit_for_bit(x, y):
    x[0], y[0] = [-0.0, 0.0], [0.0, -0.0]
    x[1, 0] = np.inf
    assert bits(merge.interpolate(x, y, 0)) == bits(x)
    assert bits(merge.interpolate(x, y, 1.0)) == bits(y)
    assert bits(merge.interpolate(x, x, 0.3)) == bits(x)


@FEW
@hypothesis.given(x=floats, y=floats)
def test_task_vectors_at_scale_zero_return_the_base_bit_for_bit(x, y):
    x[0], y[0] = -0.0, np.inf
    assert bits(merge.apply_task_vectors(x, [y, y], [0, 0])) == bits(x)
    assert bits(merge.apply_task_vectors(x, [y], [1.0], lam=0.0)) == bits(x)
    assert bits(merge.apply_task_vectors(x, [], [])) == bits(x)


def test_averaging_two_models_is_adding_their_weighted_task_vectors():
    base, d, g = random_trees(3)
    tau = [merge.task_vector(d, base), merge.task_vector(g, base)]
    for omega in (0.0, 0.2, 0.6, 1.0):
        chex.assert_trees_all_close(
            merge.average([d, g], [omega, 1 - omega]),
            merge.apply_task_vectors(base, tau, [omega, 1 - omega]),
            atol=1e-6,
        )
        chex.assert_trees_all_close(
            merge.interpolate(g, d, omega),
            merge.average([d, g], [omega, 1 - omega]),
            atol=1e-6,
        )
    half = merge.apply_task_vectors(base, tau, 2.0, lam=0.25)
    chex.assert_trees_all_close(
        half, merge.apply_task_vectors(base, tau, [0.5, 0.5]), atol=1e-6
    )


def test_the_gradient_of_a_weight_is_the_inner_product_with_its_tree():
    models = random_trees(3)
    target = random_trees(1, seed=7)[0]

    def loss(tree):
        return optax.tree.vdot(tree, target) + optax.tree.norm(tree, squared=True)

    def of_weights(w):
        return loss(merge.average(models, w, normalize=False))

    w = jnp.array([0.2, 0.3, -0.1])
    g = jax.grad(loss)(merge.average(models, w, normalize=False))
    expected = jnp.stack([optax.tree.vdot(g, model) for model in models])
    chex.assert_trees_all_close(jax.grad(of_weights)(w), expected, rtol=1e-5)
    stacked = merge.stack(models)
    chex.assert_trees_all_close(
        jax.grad(lambda w: loss(merge.average_stacked(stacked, w, normalize=False)))(w),
        expected,
        rtol=1e-5,
    )


def test_exact_cases_keep_the_derivative_of_the_formula():
    a, b = jnp.array([1.0, 2.0]), jnp.array([4.0, 2.0])
    for t in (0.0, 1.0):
        slope = jax.jacobian(lambda t: merge.interpolate(a, b, t))(t)
        chex.assert_trees_all_close(slope, b - a)
    d_first = jax.grad(lambda x: merge.average([x, a], [1, 3]).sum())(a)
    chex.assert_trees_all_close(d_first, jnp.full(2, 0.25))
    d_scale = jax.grad(lambda s: merge.apply_task_vectors(a, [b], [s]).sum())(0.0)
    chex.assert_trees_all_close(d_scale, b.sum())


def test_any_weights_share_one_compiled_program(caplog):
    models, row = random_trees(3, seed=3), jnp.array([0.5, 0.2, 0.1])
    merge.average(models)  # the first call may compile
    merge.interpolate(*models[:2], 0.5)
    merge.apply_task_vectors(models[0], models[1:], [0.1, 0.2])
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        merge.average(models, [1, 2, 3])
        merge.average(models, row)
        merge.average(models, 4.0)
        merge.interpolate(*models[:2], 0)
        merge.interpolate(*models[:2], np.float32(0.25))
        merge.apply_task_vectors(models[0], models[1:], [3, 4], lam=2)
    assert not [r for r in caplog.records if "ompiling" in r.getMessage()]


def test_vmap_and_map_over_weight_rows_give_one_merge_a_row():
    models = random_trees(3)
    rows = jnp.array([[1.0, 0, 0], [1, 1, 1], [0.2, 0.5, 0.3]])
    expected = [merge.average(models, row) for row in rows]
    stacked = merge.stack(models)
    by_vmap = jax.vmap(lambda w: merge.average(models, w))(rows)
    by_stack = jax.vmap(merge.average_stacked, (None, 0))(stacked, rows)
    by_map = jax.lax.map(lambda w: merge.average_stacked(stacked, w), rows)
    for merged in (by_vmap, by_stack, by_map):
        chex.assert_trees_all_close(merged, merge.stack(expected), atol=1e-6)


def test_linear_merges_equal_those_of_mergekit(test_data):
    folder = test_data.parent / "vectors" / "merge"
    if not folder.is_dir():
        pytest.skip("no reference values of mergekit")
    given = np.load(folder / "merge_inputs.npz")
    wanted = np.load(folder / "merge_outputs.npz")
    cases = json.loads((folder / "merge_cases.json").read_text())["cases"]
    seen = 0
    for case in cases:
        known = case.get("method") in ("linear", "task_arithmetic")
        if not known or "leaves" not in case:
            continue
        params = case["params"]
        dtype = jnp.dtype(case["inp"])
        for leaf in case["leaves"]:
            models = [jnp.asarray(given[f"{m}/{leaf}"], dtype) for m in case["models"]]
            if case["method"] == "linear":
                normalize = params.get("normalize", True)
                result = merge.average(models, params["weight"], normalize=normalize)
            else:
                base = jnp.asarray(given[f"{case['base']}/{leaf}"], dtype)
                others = [
                    m
                    for m, n in zip(models, case["models"], strict=True)
                    if n != case["base"]
                ]
                deltas = [merge.task_vector(m, base, dtype="float32") for m in others]
                result = merge.apply_task_vectors(
                    base, deltas, params["weight"], lam=params.get("lambda", 1.0)
                )
            expected = wanted[f"{case['case']}/{leaf}"]
            if expected.dtype == np.uint16:
                expected = expected.view(jnp.bfloat16)
            expected = np.asarray(expected, np.float32)
            bound = (3e-6 if dtype == jnp.float32 else 2e-2) * np.abs(expected).max()
            np.testing.assert_allclose(
                np.asarray(result, np.float32), expected, rtol=0, atol=bound
            )
            seen += 1
    assert seen >= 15


def test_operations_are_shared_by_every_form_of_the_average():
    leaves = [jnp.array([1.0]), jnp.array([2.0])]
    weights = jnp.array([1.0, 3.0])
    assert linear.weighted_mean(leaves, weights) == 1.75
    assert linear.weighted_sum(leaves, weights) == 7.0
