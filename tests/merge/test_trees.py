"""What every merge does with trees: dtypes, containers, sharding, bad input."""

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import merge
from tests.support.trees import bits, random_trees


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_leaves_are_rounded_once(dtype):
    models = [
        jax.random.normal(k, (999,), dtype)
        for k in jax.random.split(jax.random.key(0), 5)
    ]
    w = np.array([0.1, 0.7, 0.2, 0.4, 0.3])
    wide = [np.asarray(m, np.float64) for m in models]
    exact = sum(w[k] * wide[k] for k in range(5)) / w.sum()
    result = merge.average(models, w)
    chex.assert_type(result, dtype)
    ulps = np.abs(np.asarray(result, np.float64) - exact) / np.abs(
        np.spacing(np.asarray(exact, jnp.dtype(dtype))).astype(np.float64)
    )
    assert ulps.max() <= 0.51
    delta = merge.task_vector(models[0], models[1], dtype=jnp.float32)
    back = merge.apply_task_vectors(models[1], [delta], [1.0])
    assert bits(back) == bits(models[0])


def test_float64_leaves_accumulate_in_float64():
    with jax.enable_x64(True):
        a, b = np.array([1.0, 3.0]), np.array([1 + 2e-12, 4.0])
        result = merge.average([a, b], [0.1, 0.2])
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, (0.1 * a + 0.2 * b) / 0.3, rtol=1e-15)


def test_every_kind_of_pytree_goes_through():
    params = flax.core.freeze({"w": jnp.ones((2,)), "b": None, "e": jnp.zeros((0, 3))})
    state = optax.adam(1e-3).init({"w": jnp.ones(2)})
    one = (params, state, jax.random.key(3), True, np.int64(2**40))
    result = merge.average([one, one], [1, 2])
    chex.assert_trees_all_equal_structs(result, one)
    assert result[1][0].count.dtype == jnp.int32
    assert result[2] == one[2]
    assert result[4] == 2**40
    assert result[0]["e"].shape == (0, 3)
    stacked = merge.stack([one[:4], one[:4]])
    assert stacked[1][0].count.shape == (2,)
    chex.assert_trees_all_equal_structs(merge.average_stacked(stacked, [1, 1]), one[:4])


def test_copied_leaves_do_not_alias_the_first_tree():
    count = jnp.arange(4)
    result = merge.average([{"n": count}, {"n": jnp.arange(4)}])
    assert result["n"].unsafe_buffer_pointer() != count.unsafe_buffer_pointer()


def test_tied_leaves_are_merged_once_and_stay_tied():
    def tied(value):
        w = jnp.full(3, value)
        return {"embed": w, "head": w}

    result = merge.average([tied(1.0), tied(3.0)])
    assert result["embed"] is result["head"]
    chex.assert_trees_all_equal(result["head"], jnp.full(3, 2.0))


def test_donation_gives_up_the_first_tree_only():
    a, b = random_trees(2)
    expected = merge.average([a, b])
    result = merge.average([a, b], donate=True)
    chex.assert_trees_all_equal(result, expected)
    assert a["c"].is_deleted()
    assert not b["c"].is_deleted()
    with pytest.raises(ValueError, match="shares arrays"):
        merge.average([b, b], donate=True)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_merge_keeps_the_sharding_and_gathers_nothing(kind):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2)
    specs = {"a": {"w": P("fsdp", "tensor")}, "b": P(None, "tensor"), "n": P()}
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)

    def model(seed):
        x = jax.random.normal(jax.random.key(seed), (8, 4))
        return {"a": {"w": x}, "b": x[:2], "n": jnp.arange(3)}

    plain = [model(seed) for seed in range(3)]
    models = [jax.device_put(m, shardings) for m in plain]
    rows = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    for result in (
        merge.average(models, rows[0]),
        jax.jit(merge.average)(models, rows[0]),
        merge.average_stacked(merge.stack(models), rows[0]),
    ):
        for leaf, wanted in zip(
            jax.tree.leaves(result), jax.tree.leaves(shardings), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        chex.assert_trees_all_close(result, merge.average(plain, rows[0]), atol=1e-6)
    each = jax.vmap(lambda w: merge.average(models, w))(rows)
    assert each["a"]["w"].sharding.spec == P(None, "fsdp", "tensor")
    for of_weights in (
        lambda w: merge.average(models, w)["a"]["w"].sum(),
        lambda w: merge.average_stacked(merge.stack(models), w)["a"]["w"].sum(),
    ):
        by_hand = jax.grad(lambda w: merge.average(plain, w)["a"]["w"].sum())(rows[0])
        with jax.set_mesh(mesh):
            grads = jax.grad(of_weights)(rows[0])
        chex.assert_trees_all_close(grads, by_hand, atol=1e-5)
    text = jax.jit(merge.average).lower(models, rows[0]).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" not in text


def test_a_replicated_tree_is_merged_where_the_first_one_lives():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    first = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("fsdp")))
    result = merge.average([first, np.zeros((8, 2), np.float32)])
    assert result.sharding.spec == P("fsdp")
    elsewhere = jax.device_put(jnp.ones((8, 2)), jax.devices()[3])
    replicated = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match=r"sharded differently.*use jax.device_put"):
        merge.average([replicated, first])  # the second would have to be gathered
    with pytest.raises(ValueError, match="on other devices"):
        merge.average([first, elsewhere])


def test_one_error_lists_every_difference():
    a = {"w": jnp.ones((2, 3)), "b": jnp.ones(2), "n": jnp.ones(1)}
    b = {"w": jnp.ones((3, 2)), "b": jnp.ones(2, jnp.bfloat16), "extra": jnp.ones(1)}
    with pytest.raises(ValueError, match="5 problems") as error:
        merge.average([a, b, a], [1.0, -1.0, 0.0])
    for part in (
        "tree 1 lacks n",
        "tree 1 adds extra",
        "w: float32[2,3] in tree 0 vs float32[3,2] in tree 1",
        "b: float32[2] in tree 0 vs bfloat16[2] in tree 1",
        "sum to 0",
    ):
        assert part in str(error.value)


def test_containers_must_agree():
    a = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="other containers"):
        merge.average([a, flax.core.freeze(a)])
    with pytest.raises(ValueError, match="tree 1 adds w"):
        merge.average([{"w": None}, a])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights of shape \[1\] given, 2 needed"),
        (jnp.ones((3, 2)), "2 needed"),
        ([1.0, float("nan")], "not all finite"),
        ([1.0, -1.0], "sum to 0"),
        ([0.1, 0.2 - 0.3], "sum to 0"),
        (0, "sum to 0"),
        ({"math": 1.0}, "are not numbers"),
        ([1.0, [2.0]], "are not numbers"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    x = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        merge.average([x, x], weights)
    with pytest.raises(ValueError, match=message):
        merge.average_stacked(merge.stack([x, x]), weights)


def test_other_bad_input_is_refused():
    x, y = {"w": jnp.ones(2), "n": jnp.array(1)}, {"w": jnp.ones(2), "n": jnp.array(2)}
    with pytest.raises(ValueError, match="n in tree 1 is not that of tree 0"):
        merge.average([x, y])
    with pytest.raises(ValueError, match="n in tree 1"):
        merge.stack([x, y])
    with pytest.raises(ValueError, match="n in tree 1"):
        merge.average([{"n": 1}, {"n": 2}])
    for function in (merge.average, merge.stack):
        with pytest.raises(ValueError, match="at least one tree"):
            function([])
    with pytest.raises(ValueError, match="a sequence of trees"):
        merge.average({"math": x, "code": x})
    with pytest.raises(ValueError, match="t must be a scalar"):
        merge.interpolate(x, x, [0.1, 0.2])
    with pytest.raises(ValueError, match="does not begin with the 2 models"):
        merge.average_stacked({"a": jnp.ones((2, 3)), "b": jnp.ones(3)}, [1, 1])
    with pytest.raises(ValueError, match="n in tree 2 is not that of tree 0"):
        merge.average_stacked({"n": jnp.array([1, 1, 2])}, [1, 1, 1])
    with pytest.raises(ValueError, match="scales of shape"):
        merge.apply_task_vectors(x, [x], [1, 2])
    with pytest.raises(ValueError, match="bfloat16"):
        merge.apply_task_vectors(jnp.ones(2), [jnp.ones(2, "bfloat16")], 1)


def test_checks_of_values_step_aside_for_tracers():
    x = {"w": jnp.arange(3.0), "n": jnp.array(1)}
    constant = {"w": jnp.ones(3), "n": jnp.array(2)}
    assert jax.jit(lambda a, b: merge.average([a, b]))(x, x)["n"] == 1
    assert jnp.isnan(
        jax.jit(lambda w: merge.average([x, merge.interpolate(x, x, 0)], w))(
            jnp.zeros(2)
        )["w"][1]
    )
    weighted = jax.grad(lambda w: merge.average([x, x], [w, 1 - w])["w"].sum())
    assert weighted(0.3) == 0
    with pytest.raises(ValueError, match="n in tree 1"):  # constants are known
        jax.jit(lambda w: merge.average([x, constant], w))(jnp.ones(2))
    with pytest.raises(ValueError, match="2 needed"):
        jax.jit(lambda w: merge.average([x, x], w))(jnp.ones(3))
