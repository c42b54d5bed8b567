"""What every optimizer that climbs shares: masks, donation, shards, precision."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import optim
from jaxlab.optim import ascent
from tests.support.climbs import (
    SHAPES,
    arguments,
    flat,
    logits_of,
    loss_of,
    problem,
    run,
)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def test_a_gradient_of_zero_climbs_nowhere():
    params = {"w": jnp.ones((3,))}
    zero = {"w": jnp.zeros((3,))}
    for tx in (
        optim.tram(optax.sgd(0.1)), optim.asam(optax.sgd(0.1)),
        optim.sam(optax.sgd(0.1)), optim.fisher_sam(optax.sgd(0.1)),
    ):  # fmt: skip
        seen = []
        extra = {"radius": 1.0} if tx.init(params).anchor is not None else {}
        updates, _ = tx.update(
            zero, tx.init(params), params,
            grad_fn=lambda p, _, seen=seen: seen.append(p) or zero, **extra,
        )  # fmt: skip
        np.testing.assert_array_equal(seen[0]["w"], params["w"])
        assert np.isfinite(updates["w"]).all()


def test_only_masked_leaves_move_and_count():
    params, _, ids, labels, _ = problem()
    grads = jax.grad(loss_of)(params, ids[0], labels[0])
    for mask in (
        {name: name == "w1" for name in SHAPES},
        lambda p: {name: name == "w1" for name in p},
    ):
        climb = ascent.Climb(mask=mask)
        change, norm = ascent.perturbation(
            grads, ascent.scales(params, climb), 0.1, climb
        )
        assert [name for name in SHAPES if change[name] is not None] == ["w1"]
        assert float(norm) == pytest.approx(np.linalg.norm(grads["w1"]), rel=1e-12)
        assert np.linalg.norm(change["w1"]) == pytest.approx(0.1)


def test_the_inner_optimizer_sees_the_parameters_before_the_climb():
    given = problem()
    params, _, ids, labels, _ = given
    inner = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1))
    tx = optim.tram(inner, anchor="initial")
    grads, extra = arguments(params, ids[0], labels[0])
    updates, _ = tx.update(grads, tx.init(params), params, radius=0.7, **extra)
    climb = ascent.Climb(adaptive=True)
    change, _ = ascent.perturbation(grads, ascent.scales(params, climb), 0.7, climb)
    high = extra["grad_fn"](jax.tree.map(jnp.add, params, change), 0)
    expected = -0.1 * (flat(high) + 0.3 * flat(params))
    np.testing.assert_allclose(flat(updates), expected, atol=1e-14)


def test_no_gradient_flows_through_the_radius():
    params, _, ids, labels, _ = problem()
    tx = optim.tram(optax.sgd(1.0), anchor="initial")
    grads, extra = arguments(params, ids[0], labels[0])

    def moved(scale):
        extra["logits"] = logits_of(params, ids[0]) * scale
        updates, _ = tx.update(grads, tx.init(params), params, **extra)
        return jnp.sum(updates["w1"])

    assert float(jax.grad(moved)(2.0)) == 0.0


def test_sharded_parameters_have_one_norm():
    given = problem()
    params, _, ids, labels, noise = given
    mesh = jax.make_mesh(
        (4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    places = {"embed": P(), "w1": P("fsdp", "data"), "b1": P("data"), "w2": P("data"),
              "b2": P("fsdp")}  # fmt: skip
    place = lambda name, x: jax.device_put(x, NamedSharding(mesh, places[name]))  # noqa: E731
    sharded = {name: place(name, x) for name, x in params.items()}
    rows = [jax.device_put(x, NamedSharding(mesh, P())) for x in (ids, labels, noise)]
    for tx in (
        optim.tram(optax.adam(0.02), anchor="previous"),
        optim.asam(optax.adam(0.02)),
    ):
        got = run(tx, (sharded, None, *rows))[0]
        np.testing.assert_allclose(got, run(tx, given)[0], atol=1e-12)


@pytest.mark.parametrize(
    "tx",
    [
        optim.tram(optax.adam(0.02), anchor="previous"),
        optim.tram(optax.adam(0.02), anchor="ema"),
        optim.asam(optax.adam(0.02)),
        optim.fisher_sam(optax.adam(0.02)),
    ],
    ids=["tram", "ema", "asam", "fisher"],
)
def test_a_sharded_step_gathers_nothing_that_the_model_does_not(tx):
    # A model whose passes need no other device's parameters: all else is the step's.
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, P("d"))
    params = {"w": jax.device_put(jax.random.normal(jax.random.key(0), (64, 5)), rows)}

    def loss(params):
        return -jax.nn.log_softmax(params["w"])[:, 0].mean()

    def step(params, state):
        grads = jax.grad(loss)(params)
        return tx.update(
            grads,
            state,
            params,
            grad_fn=lambda p, *_: jax.grad(loss)(p),
            logits=params["w"],
            logits_fn=lambda p: p["w"],
        )

    state = jax.jit(tx.init)(params)
    text = jax.jit(step).lower(params, state).compile().as_text()
    assert "all-reduce" in text, "a norm is of all shards"
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in text


def shard_mapped(tx, given, spec, **reduce):
    """One step inside shard_map: parameters replicated, the batch split in two."""
    params, far, ids, labels, _ = given
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(params, ids, labels):
        params = jax.tree.map(lambda x: jax.lax.pcast(x, "d", to="varying"), params)
        state = tx.init(params)._replace(anchor=far)
        grads, extra = arguments(params, ids, labels)
        updates, _ = tx.update(grads, state, params, **extra)
        return jax.tree.map(lambda x: jax.lax.pmean(x, "d"), updates)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P()
    )
    return flat(jax.jit(mapped)(params, ids[0], labels[0]))


def test_inside_shard_map_the_climb_is_that_of_the_whole_batch():
    given = problem()
    params, far, ids, labels, _ = given
    tx = optim.tram(optax.sgd(0.5), anchor="initial", radius_scale=20.0)
    grads, extra = arguments(params, ids[0], labels[0])
    state = tx.init(params)._replace(anchor=far)
    whole = flat(tx.update(grads, state, params, **extra)[0])
    with_mean = optim.tram(
        optax.sgd(0.5), anchor="initial", radius_scale=20.0, batch_axis_name="d"
    )
    np.testing.assert_allclose(shard_mapped(with_mean, given, P()), whole, atol=1e-12)
    by_device = optim.tram(
        optax.sgd(0.5), anchor="initial", radius_scale=20.0,
        batch_axis_name="d", m_sharpness=True,
    )  # fmt: skip
    assert np.abs(shard_mapped(by_device, given, P()) - whole).max() > 1e-4


def test_inside_shard_map_the_norm_of_split_parameters_is_summed():
    params, grads = jnp.arange(1.0, 9.0), jnp.linspace(-1.0, 1.0, 8)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    climb = ascent.Climb(adaptive=True, param_axis_name="d")

    def change(params, grads):
        squares = ascent.scales(params, climb)
        return ascent.perturbation(grads, squares, 0.3, climb)[0]

    split = jax.shard_map(change, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    expected = 0.3 * params**2 * grads / jnp.linalg.norm(params * grads)
    np.testing.assert_allclose(split(params, grads), expected, atol=1e-14)


def test_microbatches_climb_and_step_as_one_batch():
    params, far, ids, labels, _ = problem()
    parts = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), (ids[0], labels[0]))

    def loss(params, part):
        return loss_of(params, *part), logits_of(params, part[0])

    batch = optim.accumulated(loss, parts)
    (_, logits), grads = batch.value_and_grad(params)
    tx = optim.tram(optax.sgd(0.5), anchor="initial")
    state = tx.init(params)._replace(anchor=far)
    got, _ = tx.update(
        grads, state, params, grad_fn=batch.grad, logits=logits, logits_fn=batch.logits
    )
    grads, extra = arguments(params, ids[0], labels[0])
    whole, _ = tx.update(grads, state, params, **extra)
    np.testing.assert_allclose(flat(got), flat(whole), atol=1e-13)


def test_multi_steps_is_refused_with_the_reason():
    params = problem()[0]
    for tx in (optim.tram(optax.sgd(0.1)), optim.asam(optax.sgd(0.1))):
        with pytest.raises(ValueError, match="MultiSteps would climb on every"):
            optax.MultiSteps(tx, 4).init(params)
        chained = optax.chain(optax.clip(1.0), tx)
        with pytest.raises(ValueError, match="accumulated"):
            optax.MultiSteps(chained, 4).init(params)


def test_missing_arguments_are_named():
    params, _, ids, labels, _ = problem()
    grads, extra = arguments(params, ids[0], labels[0])
    tx = optim.tram(optax.sgd(0.1))
    with pytest.raises(ValueError, match="grad_fn="):
        tx.update(grads, tx.init(params), params)
    with pytest.raises(ValueError, match=r"logits= .* or radius="):
        tx.update(grads, tx.init(params), params, grad_fn=extra["grad_fn"])
    with pytest.raises(ValueError, match="previous, initial, ema"):
        optim.tram(optax.sgd(0.1), anchor="past")
    tx = optim.tram_fisher(optax.sgd(0.1))
    with pytest.raises(ValueError, match="fisher_fn="):
        tx.update(grads, tx.init(params), params, grad_fn=extra["grad_fn"])


def test_coarse_parameters_warn_unless_something_is_done_about_it():
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    with pytest.warns(UserWarning, match="too coarse"):
        optim.asam(optax.sgd(0.1)).init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.asam(optax.sgd(0.1), second_pass_dtype=jnp.float32).init(params)
        optim.asam(optax.sgd(0.1)).init({"w": jnp.ones(3, jnp.float32)})


def to_bf16(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_bf16_sees_little_of_a_perturbation_and_its_expectation_when_rounded_so():
    random = np.random.default_rng(0)
    theta, g = (jnp.asarray(random.normal(size=10**6), jnp.float32) for _ in range(2))
    climb = ascent.Climb(adaptive=True)
    change, _ = ascent.perturbation(g, ascent.scales(theta, climb), 0.5, climb)
    moved = ascent.move(theta, change, climb, jnp.int32(0))
    seen, meant = to_bf16(moved) - to_bf16(theta), np.asarray(change, np.float64)
    assert seen @ meant / np.linalg.norm(seen) / np.linalg.norm(meant) < 0.5
    coarse = theta.astype(jnp.bfloat16)
    change, _ = ascent.perturbation(g, ascent.scales(coarse, climb), 0.5, climb)
    assert np.mean(ascent.move(coarse, change, climb, jnp.int32(0)) != coarse) < 0.01
    values = jnp.full((40_000,), 1.0 + 2.0**-10, jnp.float32)
    climb = ascent.Climb(stochastic_rounding=True)
    moved = ascent.move(values, jnp.zeros_like(values), climb, jnp.int32(3))
    assert set(np.unique(moved)) == {1.0, 1.0 + 2.0**-7}
    assert float(jnp.mean(moved)) == pytest.approx(1.0 + 2.0**-10, abs=1e-4)
    again = ascent.move(values, jnp.zeros_like(values), climb, jnp.int32(3))
    np.testing.assert_array_equal(moved, again)  # a resumed run repeats


def test_the_second_pass_can_be_wider_than_the_parameters():
    params = {"w": jnp.ones((8,), jnp.bfloat16)}
    seen = []

    def grad_fn(at, _):
        seen.append(at["w"])
        return at

    tx = optim.asam(optax.sgd(0.1), 1e-3, second_pass_dtype=jnp.float32)
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=grad_fn)
    assert seen[0].dtype == jnp.float32
    assert (np.asarray(seen[0]) > 1).all()  # 1 + 3e-4 would be 1 in bfloat16
    assert updates["w"].dtype == jnp.bfloat16


def test_the_norm_of_many_small_numbers_is_taken_in_float32():
    params = {i: jnp.ones((100,), jnp.bfloat16) for i in range(400)}
    climb = ascent.Climb()
    _, norm = ascent.perturbation(params, ascent.scales(params, climb), 1.0, climb)
    assert float(norm) == pytest.approx(200.0)
    tiny = {"w": jnp.full((100,), 1e-5, jnp.float16)}
    _, norm = ascent.perturbation(tiny, ascent.scales(tiny, climb), 1.0, climb)
    assert float(norm) == pytest.approx(1e-4, rel=1e-2)
