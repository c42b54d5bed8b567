"""Spherical merges and model stock: values, exactness, gradients, sharding."""

import json
import os
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.merge.spheres import merges

FEW = hypothesis.settings(max_examples=15, deadline=None)
OURS = pathlib.Path(__file__).parents[1] / "values" / "merge"
VECTORS = pathlib.Path(os.environ.get("JAXLAB_TEST_DATA", "?")) / "../vectors/merge"
METHODS = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")
# No tiny numbers: vectors shorter than 1e-5 to 1e-8 count as having no direction.
matrices = hnp.arrays(
    np.float32, (4, 3), elements=st.integers(-8000, 8000).map(lambda n: n / 1000)
)


def merged(case, trees):
    """A case of mergekit's, by our functions."""
    others = [trees[m] for m in case["models"] if m != case["base"]]
    base = trees[case["base"]] if case["base"] else None
    params = case["params"]
    match case["method"]:
        case "slerp":
            return merges.slerp(base, others[0], params["t"])
        case "nuslerp":
            row = params.get("nuslerp_row_wise", False)
            along = {True: "leaf", False: "column" if row else "row"}[
                params.get("nuslerp_flatten", True)
            ]
            weights = params["weight"]
            return merges.nuslerp(*others, weights, base=base, along=along)
        case "multislerp":
            normalize = params.get("normalize_weights", True)
            return merges.multislerp(
                others, params["weight"], base=base, normalize=normalize
            )
        case "karcher":
            return merges.karcher(others, **params)
        case "model_stock":
            return merges.model_stock(base, others, **params)


def assert_reproduced(case, trees, expected):
    """Within 3e-6 of the leaf's maximum in f32, one rounding in bf16."""
    found = merged(case, trees)
    for leaf, value in expected.items():
        result = np.asarray(found[leaf], np.float64)
        low = trees["base"][leaf].dtype == jnp.bfloat16
        bound = (4e-3 if low else 3e-6) * np.abs(value).max(initial=1e-30)
        np.testing.assert_allclose(
            result, value, rtol=0, atol=bound, err_msg=f"{case} {leaf}"
        )


def our_cases():
    cases = json.loads((OURS / "cases.json").read_text())["cases"]
    return [case for case in cases if case["method"] in METHODS]


@pytest.mark.parametrize("case", our_cases(), ids=lambda case: case["name"])
def test_mergekits_values_are_reproduced(case):
    shapes = json.loads((OURS / "cases.json").read_text())["shapes"]
    with np.load(OURS / "values.npz") as arrays:

        def tree(name):
            flat, leaves = arrays[name], {}
            for leaf, shape in shapes.items():
                size = int(np.prod(shape))
                leaves[leaf], flat = flat[:size].reshape(shape), flat[size:]
            return leaves

        expected = tree(case["name"])
        dtype = case.get("dtype", "float32")
        names = ("base", "ft1", "ft2", "ft3")
        trees = {
            name: {
                leaf: jnp.asarray(value).astype(dtype)
                for leaf, value in tree(name).items()
                if leaf in case["leaves"]
            }
            for name in names
        }
    assert case["leaves"]
    assert_reproduced(case, trees, {leaf: expected[leaf] for leaf in case["leaves"]})


@pytest.mark.slow
@pytest.mark.skipif(not VECTORS.is_dir(), reason="reference vectors are not here")
def test_the_reference_vectors_are_reproduced():
    raw = dict(np.load(VECTORS / "merge_inputs.npz"))
    outputs = dict(np.load(VECTORS / "merge_outputs.npz"))
    cases = json.loads((VECTORS / "merge_cases.json").read_text())["cases"]
    cases = [c for c in cases if c.get("method") in METHODS and "special" not in c]
    assert len(cases) >= 8
    for case in cases:
        dtype = case["inp"]
        trees = {
            name: {
                leaf: jnp.asarray(raw[f"{name}/{leaf}"]).astype(dtype)
                for leaf in case["leaves"]
            }
            for name in ("base", "ft1", "ft2", "ft3")
        }
        values = {leaf: outputs[f"{case['case']}/{leaf}"] for leaf in case["leaves"]}
        if dtype == "bfloat16":
            values = {n: v.view(jnp.bfloat16).astype(float) for n, v in values.items()}
        assert_reproduced(case, trees, values)


def test_slerp_turns_by_the_share_of_the_angle_asked_for():
    a, b = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}
    third = merges.slerp(a, b, 1 / 3)["w"]
    np.testing.assert_allclose(third, [2 * np.cos(np.pi / 6), 1.0], atol=1e-6)


@FEW
@hypothesis.given(x=matrices, y=matrices)
def test_slerp_hits_its_ends_bit_for_bit(x, y):
    assert np.asarray(merges.slerp(x, y, 0)).tobytes() == x.tobytes()
    assert np.asarray(merges.slerp(x, y, 1.0)).tobytes() == y.tobytes()
    assert np.asarray(merges.slerp(x, x, 0.3)).tobytes() == x.tobytes()


@FEW
@hypothesis.given(x=matrices, w=hnp.arrays(np.float32, 3, elements=st.floats(0.25, 4)))
def test_merging_identical_trees_gives_that_tree(x, w):
    bound = {"rtol": 0, "atol": 2e-6 * np.abs(x).max()}
    np.testing.assert_allclose(merges.karcher([x, x, x], w), x, **bound)
    np.testing.assert_allclose(merges.multislerp([x, x, x], w), x, **bound)
    np.testing.assert_allclose(merges.nuslerp(x, x, w[:2]), x, **bound)
    np.testing.assert_allclose(merges.model_stock(x, [x, x, x]), x, **bound)


@FEW
@hypothesis.given(x=matrices, y=matrices, z=matrices)
def test_the_order_of_the_models_does_not_matter(x, y, z):
    hypothesis.assume(min(np.linalg.norm(v) for v in (x, y, z)) > 0.1)
    hypothesis.assume(np.linalg.norm(sum(v / np.linalg.norm(v) for v in (x, y, z))) > 1)
    w = [0.5, 0.3, 0.2]
    bound = {"rtol": 0, "atol": 1e-4 * np.abs([x, y, z]).max()}
    one, other = (
        merges.karcher([x, y, z], w),
        merges.karcher([z, x, y], [0.2, *w[:2]]),
    )
    np.testing.assert_allclose(one, other, **bound)
    np.testing.assert_allclose(
        merges.model_stock(x * 0.5, [x, y, z]),
        merges.model_stock(x * 0.5, [z, x, y]),
        **bound,
    )


def test_the_karcher_mean_is_where_the_weighted_tangents_cancel():
    vectors = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    vectors += 1.5
    w = np.array([0.5, 0.3, 0.2])
    mean = np.asarray(merges.karcher(list(vectors), w, max_iter=60, tol=1e-7), float)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(np.linalg.norm(mean), w @ norms, rtol=1e-5)
    m, units = mean / np.linalg.norm(mean), vectors / norms[:, None]
    angles = np.arccos(units @ m)
    pulls = (angles / np.sin(angles))[:, None] * (units - (units @ m)[:, None] * m)
    assert np.linalg.norm(w @ pulls) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1.0, 2.0, 1.0]])
def test_derivatives_in_the_weights_are_those_of_finite_differences(weights):
    trees = list(np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32))
    target = jnp.asarray(trees[0] * 0.3 + 1)
    for f in (
        lambda w: merges.karcher(trees, w),
        lambda w: merges.multislerp(trees, w),
        lambda w: merges.nuslerp(*trees[:2], w[:2]),
        lambda w: merges.slerp(*trees[:2], w[0]),
    ):
        loss = jax.jit(lambda w, f=f: jnp.sum((f(w) - target) ** 2))
        slope = jax.grad(loss)(jnp.array(weights))
        for k in range(3):
            step = np.eye(3)[k] * 1e-2
            estimate = (loss(weights + step) - loss(weights - step)) / 2e-2
            np.testing.assert_allclose(slope[k], estimate, rtol=2e-2, atol=2e-2)


def test_gradients_are_finite_for_identical_opposite_and_zero_trees():
    x = jnp.arange(1.0, 5.0)
    for pair in ([x, x], [x, -x], [x, 0 * x], [0 * x, 0 * x]):
        for f in (
            lambda t, p=pair: merges.slerp(*p, t),
            lambda t, p=pair: merges.nuslerp(*p, jnp.stack([1 - t, t])),
            lambda t, p=pair: merges.karcher(p, jnp.stack([1 - t, t])),
            lambda t, p=pair: merges.multislerp(p, jnp.stack([1 - t, t])),
        ):
            value, slope = jax.jvp(f, (0.3,), (1.0,))
            assert jnp.isfinite(value).all()
            assert jnp.isfinite(slope).all()


def test_one_program_serves_all_weights_and_vmap_gives_many():
    trees = list(np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32))
    rows = jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    many = jax.vmap(lambda w: merges.karcher(trees, w))(rows)
    for row, one in zip(rows, many, strict=True):
        np.testing.assert_allclose(merges.karcher(trees, row), one, atol=1e-6)


def test_sharded_leaves_stay_sharded_and_are_never_gathered():
    mesh = jax.make_mesh(
        (4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    sharding = NamedSharding(mesh, P("x", "y"))
    host = np.random.default_rng(3).normal(size=(3, 8, 16)).astype(np.float32)
    trees = [{"w": jax.device_put(x, sharding)} for x in host]
    alone = [{"w": x} for x in host]
    for f in (
        lambda t, w: merges.slerp(t[0], t[1], w[0]),
        lambda t, w: merges.karcher(t, w),
        lambda t, w: merges.multislerp(t, w),
        lambda t, w: merges.nuslerp(t[0], t[1], w[:2], along="row"),
        lambda t, w: merges.model_stock(t[0], t[1:]),
        lambda t, w: merges.model_stock(t[0], t[1:], filter_wise=True),
    ):
        w = jnp.array([0.3, 0.5, 0.2])
        result = f(trees, w)["w"]
        assert result.sharding == sharding
        np.testing.assert_allclose(result, f(alone, w)["w"], atol=2e-6)
        text = jax.jit(f).lower(trees, w).compile().as_text()
        assert "all-reduce" in text
        assert "all-gather" not in text


def test_a_donated_tree_is_overwritten_by_the_same_merge():
    host = np.random.default_rng(4).normal(size=(3, 64)).astype(np.float32)
    for f in (
        lambda t, **o: merges.slerp(*t[:2], 0.3, **o),
        lambda t, **o: merges.nuslerp(*t[:2], **o),
        lambda t, **o: merges.multislerp(t, **o),
        lambda t, **o: merges.karcher(t, **o),
        lambda t, **o: merges.model_stock(t[0], t[1:], **o),
    ):
        kept, given = ([{"w": jnp.array(x)} for x in host] for _ in range(2))
        result = f(given, donate=True)["w"]
        np.testing.assert_array_equal(result, f(kept)["w"])
        assert given[0]["w"].is_deleted()
        assert not given[1]["w"].is_deleted()


def test_everything_wrong_is_said_at_once():
    a, b = {"w": np.ones(2, np.float32)}, {"w": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"(?s)float32\[2\].*float32\[3\].*t \[nan\]"):
        merges.slerp(a, b, float("nan"))
    with pytest.raises(ValueError, match="along 'diagonal'; use 'leaf'"):
        merges.nuslerp(a, a, along="diagonal")
    with pytest.raises(ValueError, match="two trees are needed"):
        merges.karcher([a])
    with pytest.raises(ValueError, match="two finetuned trees"):
        merges.model_stock(a, [a])
    with pytest.raises(ValueError, match="sum to 0"):
        merges.multislerp([a, a], [1, -1])
