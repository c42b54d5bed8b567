"""Sparse merges: what is written out, algebra, odd trees, bad input."""

import flax.core
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import merge
from tests.support.trees import bits, models

FEW = hypothesis.settings(max_examples=10, deadline=None)
floats = hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32))


def test_ties_elects_the_sign_of_the_weighted_sum():
    base = {"w": jnp.zeros(4)}
    first, second = (
        {"w": jnp.array([2.0, 1, -4, 0])},
        {"w": jnp.array([-1.0, 3, -2, 0])},
    )
    np.testing.assert_array_equal(
        merge.ties(base, [first, second])["w"], [2.0, 2.0, -3.0, 0.0]
    )
    np.testing.assert_array_equal(
        merge.ties(base, [first, second], [1, 3], lam=2, normalize=False)["w"],
        [-6.0, 20.0, -20.0, 0.0],
    )


def test_scopes_and_ties_at_the_cut_are_as_defined():
    base = {"a": jnp.zeros(4), "b": jnp.zeros(2)}
    model = {"a": jnp.array([1.0, -1, 1, 3]), "b": jnp.array([9.0, 8.0])}
    by_leaf = merge.ties(base, [model], density=0.5)
    np.testing.assert_array_equal(by_leaf["a"], [1.0, -1, 1, 3])
    np.testing.assert_array_equal(by_leaf["b"], [9.0, 0])
    exact = merge.ties(base, [model], density=0.5, ties="lowest_index")
    np.testing.assert_array_equal(exact["a"], [1.0, 0, 0, 3])
    at_once = merge.ties(base, [model], density=0.5, scope="global")
    np.testing.assert_array_equal(at_once["a"], [0.0, 0, 0, 3])
    np.testing.assert_array_equal(at_once["b"], [9.0, 8.0])
    four = merge.ties(base, [model], density=0.7, scope="global", ties="lowest_index")
    np.testing.assert_array_equal(four["a"], [1.0, 0, 0, 3])


def test_rescaling_restores_the_norm_or_the_expectation():
    base, model = {"w": jnp.zeros(4)}, {"w": jnp.array([1.0, -2, 3, 4])}
    masks = [{"w": np.array([True, True, False, False])}]

    def run(rescale):
        return merge.dare(base, [model], density=0.25, masks=masks, rescale=rescale)[
            "w"
        ]

    np.testing.assert_allclose(run("l1"), [10 / 3, -20 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(run("expectation"), [4.0, -8, 0, 0])
    np.testing.assert_array_equal(run(None), [1.0, -2, 0, 0])
    trimmed = merge.ties(base, [model], density=0.5, rescale="l1")["w"]
    np.testing.assert_allclose(trimmed, [0, 0, 30 / 7, 40 / 7], rtol=1e-6)


@FEW
@hypothesis.given(floats, floats, floats, st.floats(-2, 2, width=16))
def test_ties_follows_its_algebra(x, y, z, lam):
    base, finetuned = {"w": x}, [{"w": y}, {"w": z}]

    def run(f=finetuned, w=(0.5, 0.25), **more):
        return merge.ties(base, f, w, **more)["w"]

    assert bits(run(f=[base, base], density=0.5)) == bits(x)
    assert bits(run(lam=0.0, density=0.5)) == bits(x)
    assert bits(run(w=(0, 0), density=0.5)) == bits(x)
    bound = 1e-5 * np.abs([x, y, z]).max() * (1 + abs(lam)) + 1e-30
    swapped = run(f=finetuned[::-1], w=(0.25, 0.5), density=0.5)
    np.testing.assert_allclose(run(density=0.5), swapped, rtol=0, atol=bound)
    one = run(density=0.5, normalize=False) - x
    scaled = run(density=0.5, normalize=False, lam=lam) - x
    np.testing.assert_allclose(lam * one, scaled, rtol=0, atol=4 * bound)
    whole = merge.apply_task_vectors(
        base, [{"w": y - x}, {"w": z - x}], (0.5, 0.25), lam=lam
    )["w"]
    for same in (
        merge.breadcrumbs(base, finetuned, (0.5, 0.25), 1.0, lam=lam),
        merge.dare(base, finetuned, (0.5, 0.25), 1.0, lam=lam, key=jax.random.key(0)),
    ):
        np.testing.assert_allclose(same["w"], whole, rtol=0, atol=bound)


def test_every_sparse_merge_of_equal_trees_is_the_base():
    base = {"w": jnp.array([-0.0, 0.0, 1e-39, 3.5]), "step": jnp.int32(3)}
    key = jax.random.key(0)
    for merged in (
        merge.ties(base, [base] * 2, density=0.5),
        merge.breadcrumbs(base, [base] * 2, density=0.5),
        merge.sce(base, [base] * 2, select_topk=0.5),
        merge.dare(base, [base] * 2, density=0.5, key=key),
        merge.della(base, [base] * 2, density=0.5, key=key),
    ):
        assert bits(merged) == bits(base)


def test_nan_in_any_model_is_nan_in_the_result_and_nowhere_else():
    base, finetuned = models()
    broken = finetuned[1] | {"c": finetuned[1]["c"].at[2].set(jnp.nan)}
    trees = [finetuned[0], broken, finetuned[2]]
    key = jax.random.key(0)
    for merged in (
        merge.ties(base, trees, density=0.2),
        merge.ties(base, trees, density=0.2, select="bisect"),
        merge.ties(base, trees, density=0.0),
        merge.breadcrumbs(base, trees, density=0.2, gamma=0.4),
        merge.dare(base, trees, density=0.2, key=key, rescale=None),
        merge.della(base, trees, density=0.2, key=key, rescale="expectation"),
    ):
        assert np.isnan(merged["c"]).tolist() == [False, False, True, False, False]
        assert not any(np.isnan(merged["a"]["w"]).ravel())
    assert np.isnan(merge.sce(base, trees, select_topk=0.5)["c"][2])


def test_one_program_serves_all_weights_lams_and_densities(caplog):
    base, finetuned = models()

    def run(w, d, lam):
        return (
            merge.ties(base, finetuned, w, d, lam=lam),
            merge.ties(base, finetuned, w, d, lam=lam, select="bisect"),
            merge.breadcrumbs(base, finetuned, w, d, d / 9, lam=lam, select="bisect"),
            merge.dare(base, finetuned, w, d, lam=lam, key=jax.random.key(0)),
            merge.sce(base, finetuned, select_topk=d),
        )

    run([1, 2, 3], 0.5, 1.0)
    with jax.log_compiles():
        run([3, 2, -1], 0.25, 0.3)
    assert not [r.message for r in caplog.records if "Finished XLA" in r.message]


@pytest.mark.slow
def test_weights_can_be_mapped_over_and_differentiated():
    base, finetuned = models()
    # All differences positive: no elected sign flips, where the merge jumps.
    finetuned = [jax.tree.map(lambda a, b: a + abs(b), base, f) for f in finetuned]
    rows = jnp.array([[0.5, 0.3, 0.2], [1.0, 0.4, 0.7]])

    def merged(w):
        return merge.ties(base, finetuned, w, 0.5)

    single = [merged(row) for row in rows]
    for many in (jax.vmap(merged)(rows), jax.lax.map(merged, rows)):
        for k in range(2):
            jax.tree.map(
                lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=1e-6),
                many,
                single[k],
            )

    def total(w, lam):
        return sum(
            jnp.sum(x**2)
            for x in jax.tree.leaves(merge.ties(base, finetuned, w, 0.5, lam=lam))
        )

    slopes = jax.grad(total, (0, 1))(rows[0], 0.8)
    step = 1e-2
    for k in range(3):
        to = [total(rows[0].at[k].add(s), 0.8) for s in (step, -step)]
        np.testing.assert_allclose(
            (to[0] - to[1]) / (2 * step), slopes[0][k], rtol=0.05
        )
    to = [total(rows[0], 0.8 + s) for s in (step, -step)]
    np.testing.assert_allclose((to[0] - to[1]) / (2 * step), slopes[1], rtol=0.01)


def test_weights_and_densities_may_differ_by_path():
    base, finetuned = models()
    weights = merge.weights_by_path([("a", 0.5), (None, 0.0)])
    merged = merge.ties(base, finetuned, weights, 0.5)
    only = merge.ties(base, finetuned, 0.5, 0.5)
    assert bits(merged["a"]) == bits(only["a"])
    assert bits(merged["c"]) == bits(base["c"])
    density = merge.weights_by_path([("a", 0.25), (None, 1.0)])
    merged = merge.ties(base, finetuned, 1.0, density)
    assert bits(merged["a"]) == bits(merge.ties(base, finetuned, 1.0, 0.25)["a"])
    assert bits(merged["c"]) == bits(merge.ties(base, finetuned, 1.0, 1.0)["c"])
    key = jax.random.key(0)
    merged = merge.della(base, finetuned, 1.0, density, 0.1, key=key)
    assert bits(merged["a"]) == bits(
        merge.della(base, finetuned, 1.0, 0.25, 0.1, key=key)["a"]
    )


def test_odd_trees_are_merged_and_tied_leaves_stay_tied():
    def tree(seed):
        w = jax.random.normal(jax.random.key(seed), (4, 3))
        state = optax.ScaleByAdamState(jnp.int32(7), {"w": w + 1}, {"w": w * w})
        return flax.core.freeze(
            {"in": w, "out": w, "none": None, "empty": jnp.zeros((0, 3)), "opt": state}
        )

    base, finetuned = tree(0), [tree(1), tree(2)]
    for merged in (
        merge.ties(base, finetuned, density=0.5),
        merge.dare(base, finetuned, density=0.5, key=jax.random.key(0)),
        merge.sce(base, finetuned, select_topk=0.5),
    ):
        assert jax.tree.structure(merged) == jax.tree.structure(base)
        assert merged["in"] is merged["out"]
        assert merged["opt"].count == 7
        assert merged["empty"].shape == (0, 3)


def test_a_donated_base_is_overwritten_by_the_same_merge():
    base, finetuned = models()
    expected = bits(merge.ties(base, finetuned, density=0.5))
    given = jax.tree.map(jnp.copy, base)
    assert bits(merge.ties(given, finetuned, density=0.5, donate=True)) == expected
    assert given["c"].is_deleted()


def test_everything_wrong_is_said_at_once():
    base, finetuned = models()
    other = {"a": finetuned[0]["a"], "b": finetuned[0]["b"]}
    with pytest.raises(ValueError, match=r"lacks c; scope .*; weights .*; density .*"):
        merge.ties(base, [base, other], [np.nan, 1], [0.5, 0.4, 0.3], scope="layer")
    with pytest.raises(ValueError, match=r"weights .*not all finite; density \[1.5"):
        merge.ties(base, finetuned[:1], [np.nan], 1.5)
    with pytest.raises(ValueError, match=r"need a key: key=jax.random.key"):
        merge.dare(base, finetuned, 1.0, 0.5)
    with pytest.raises(ValueError, match="a key and masks"):
        merge.dare(base, [base], key=jax.random.key(0), masks=[base])
    with pytest.raises(ValueError, match="2 masks for 3 trees"):
        merge.dare(base, finetuned, masks=[base] * 2)
    with pytest.raises(ValueError, match="mask 0 lacks c"):
        merge.dare(base, [base], masks=[other])
    with pytest.raises(ValueError, match=r"use an epsilon below 0.1"):
        merge.della(base, finetuned, 1.0, 0.9, 0.2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="scope 'layer' is not one of"):
        merge.ties(base, finetuned, scope="layer")
    with pytest.raises(ValueError, match="no finetuned"):
        merge.ties(base, [])
    with pytest.raises(ValueError, match="complex numbers have no sign"):
        merge.ties({"w": 1j * jnp.ones(2)}, [{"w": 1j * jnp.ones(2)}])
    with pytest.raises(ValueError, match="select='host' needs concrete"):
        jax.jit(lambda b: merge.ties(b, finetuned, density=0.5, select="host"))(base)
