"""Schedules, clipping, decay masks and averages, with the numbers written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import optim
from jaxlab.core import errors


def _rates(config, steps):
    rate = optim.schedule(config, steps)
    return [round(float(rate(step)), 6) for step in range(1, steps + 1)]


def test_olmo_warms_up_from_a_tenth_and_decays_linearly_to_a_tenth():
    config = optim.OptimConfig(
        1.0, "linear", warmup_steps=4, warmup_start=0.1, final=0.1
    )
    # 0.1 + 0.9 n / 4 for n = 1 .. 4; then 1 - 0.9 n / 6.
    assert _rates(config, 10) == [
        0.325, 0.55, 0.775, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1,
    ]  # fmt: skip


def test_cosine_is_half_way_in_the_middle():
    config = optim.OptimConfig(2.0, "cosine", warmup_steps=2, final=0.5)
    # 2 (0.5 + 0.5 (1 + cos(pi n / 4)) / 2); cos(pi / 4) = 0.707107
    assert _rates(config, 6) == [1.0, 2.0, 1.853553, 1.5, 1.146447, 1.0]


def test_warmup_stable_decay_is_flat_and_then_falls():
    config = optim.OptimConfig(1.0, "wsd", warmup_steps=2, decay_steps=4, final=0.0)
    assert _rates(config, 9) == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_constant_rate_is_constant_after_the_warm_up():
    config = optim.OptimConfig(0.5, "constant", warmup_steps=2)
    assert _rates(config, 4) == [0.25, 0.5, 0.5, 0.5]


def test_restarts_repeat_the_decay():
    config = optim.OptimConfig(1.0, "linear", warmup_steps=1, final=0.0, cycles=2)
    assert _rates(config, 9) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.75, 0.5, 0.25, 0.0]


def test_a_schedule_can_be_longer_than_the_run_and_ends_flat_when_shorter():
    long = optim.OptimConfig(1.0, "linear", final=0.0, schedule_steps=8)
    assert _rates(long, 4) == [0.875, 0.75, 0.625, 0.5]
    short = optim.OptimConfig(1.0, "linear", final=0.5, schedule_steps=2)
    assert _rates(short, 4) == [0.75, 0.5, 0.5, 0.5]


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["linear", "cosine", "wsd", "constant"]),
    st.integers(0, 10),
    st.floats(0, 1),
)
def test_a_rate_is_never_above_the_peak_and_ends_at_its_final_share(
    name, warmup, final
):
    config = optim.OptimConfig(
        3.0, name, warmup_steps=warmup, final=final, decay_steps=5
    )
    rates = optim.schedule(config, 20)(jnp.arange(1, 21))
    assert float(rates.max()) <= 3.0 + 1e-5
    expected = 3.0 if name == "constant" else 3.0 * final
    np.testing.assert_allclose(rates[-1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            optim.OptimConfig(1.0, "cosin"),
            "optim.schedule 'cosin'; use one of constant",
        ),
        (optim.OptimConfig(1.0, warmup_steps=11), "warmup_steps 11"),
        (optim.OptimConfig(1.0, "wsd", decay_steps=11), "decay_steps 11 do not fit"),
        (optim.OptimConfig(1.0, "wsd", decay_steps=6, cycles=2), "in each of 2 cycles"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(config, message):
    with pytest.raises(errors.UserError, match=message):
        optim.schedule(config, 10)


NEVER = (-1, -1e-9, float("nan"), float("inf"), float("-inf"))
OUTSIDE = {
    **dict.fromkeys(("learning_rate", "epsilon", "weight_decay"), NEVER),
    **dict.fromkeys(("warmup_steps", "decay_steps", "schedule_steps"), (-1,)),
    **dict.fromkeys(("clip_norm", "clip_norm_start"), NEVER),
    **dict.fromkeys(("warmup_start", "final"), (*NEVER, 1.1)),
    **dict.fromkeys(("beta1", "beta2", "ema", "momentum"), (*NEVER, 1, 2)),
    "clip_start_steps": (-1,),
    "cycles": (0, -1),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_numbers_out_of_range_are_refused_with_their_key_and_range(name):
    for value in OUTSIDE[name]:
        with pytest.raises(errors.UserError, match=rf"^optim\.{name} .*; use [01] "):
            optim.OptimConfig(**{"learning_rate": 1.0, name: value})
    optim.OptimConfig(**{"learning_rate": 1.0, name: 1 if name == "cycles" else 0})


def test_the_first_update_uses_the_first_rate():
    config = optim.OptimConfig(
        1.0, "linear", warmup_steps=4, weight_decay=0.0, clip_norm=None, epsilon=0.0
    )
    tx, rate = optim.build(config, 8)
    params = {"w": jnp.array([1.0])}
    state = tx.init(params)
    for step in (1, 2, 3):
        updates, state = tx.update({"w": jnp.array([5.0])}, state, params)
        # Adam's step on a constant gradient is its sign.
        np.testing.assert_allclose(updates["w"], [-float(rate(step))], rtol=1e-4)


def test_clipping_has_the_published_runs_small_constant():
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clip = optim.clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    assert clipped["a"] == np.float32(3.0) * (np.float32(1.0) / np.float32(5.0 + 1e-6))
    loose = optim.clip_by_global_norm(5.1)
    unchanged, _ = loose.update(gradients, loose.init(gradients))
    assert unchanged["b"] == 4.0
    # At the bound itself: just below, where optax would leave it.
    edge = optim.clip_by_global_norm(5.0)
    assert edge.update(gradients, edge.init(gradients))[0]["b"] < 4.0


def test_the_norm_is_taken_in_f32_whatever_the_gradients_are():
    gradients = {"a": jnp.full((4,), 2.0**9, jnp.float16)}  # squares overflow f16
    clip = optim.clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    assert clipped["a"].dtype == jnp.float16
    np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-3)


def test_the_first_steps_can_have_another_bound():
    config = optim.OptimConfig(
        1.0, clip_norm=1.0, clip_norm_start=10.0, clip_start_steps=2, weight_decay=0.0
    )
    tx, _ = optim.build(config, 8)
    params = {"w": jnp.zeros(1)}
    state = tx.init(params)
    moments = []
    for _ in range(3):
        _, state = tx.update({"w": jnp.array([100.0])}, state, params)
        moments.append(float(optax.tree.get(state, "mu")["w"][0]))
    # mu = 0.9 mu + 0.1 g with g = 10, 10, 1.
    np.testing.assert_allclose(moments, [1.0, 1.9, 1.81], rtol=1e-5)


def test_a_first_bound_that_is_not_given_is_asked_for():
    config = optim.OptimConfig(1.0, clip_start_steps=2)
    with pytest.raises(errors.UserError, match=r"set optim\.clip_norm_start"):
        optim.build(config, 8)


def test_parameters_named_in_no_decay_are_not_decayed():
    config = optim.OptimConfig(
        1.0, "constant", no_decay=("norm",), weight_decay=0.1, clip_norm=None
    )
    tx, _ = optim.build(config, 8)
    params = {"norm": {"scale": jnp.ones(2)}, "w": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert updates["norm"]["scale"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(updates["w"], -0.1)


def test_a_misspelt_no_decay_is_refused():
    tx, _ = optim.build(optim.OptimConfig(1.0, no_decay=("nrom",)), 8)
    with pytest.raises(errors.UserError, match="'nrom' matches no parameter"):
        tx.init({"norm": {"scale": jnp.ones(2)}})


def test_adamw_is_optax_adamw():
    config = optim.OptimConfig(
        1e-2, "constant", beta1=0.8, beta2=0.9, weight_decay=0.1, clip_norm=None
    )
    ours, _ = optim.build(config, 8)
    theirs = optax.adamw(1e-2, 0.8, 0.9, 1e-8, weight_decay=0.1)
    a = b = {"w": jnp.array([1.0, -2.0, 3.0])}
    state_a, state_b = ours.init(a), theirs.init(b)
    for step in range(3):
        gradients = jax.tree.map(lambda w, step=step: jnp.sin(w + step), a)
        updates, state_a = ours.update(gradients, state_a, a)
        a = optax.apply_updates(a, updates)
        updates, state_b = theirs.update(gradients, state_b, b)
        b = optax.apply_updates(b, updates)
    np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


def test_the_average_follows_the_parameters_after_each_update():
    config = optim.OptimConfig(
        0.5, "constant", weight_decay=0.0, clip_norm=None, ema=0.75
    )
    tx, _ = optim.build(config, 8)
    params = {"w": jnp.array([3.0])}
    state = tx.init(params)
    assert optim.ema_of(state)["w"].tolist() == [3.0]
    expected, w = 3.0, 3.0
    for _ in range(2):
        updates, state = tx.update({"w": jnp.array([2.0])}, state, params)
        params = optax.apply_updates(params, updates)
        w -= 0.5  # Adam's step on a constant gradient
        expected = 0.75 * expected + 0.25 * w
    np.testing.assert_allclose(params["w"], [w], rtol=1e-5)
    np.testing.assert_allclose(optim.ema_of(state)["w"], [expected], rtol=1e-5)


def test_an_average_that_is_not_kept_cannot_be_read():
    tx, _ = optim.build(optim.OptimConfig(1.0), 8)
    with pytest.raises(ValueError, match=r"set optim\.ema"):
        optim.ema_of(tx.init({"w": jnp.ones(1)}))


def test_an_average_needs_the_parameters():
    tx = optim.parameter_ema(0.9)
    state = tx.init({"w": jnp.ones(1)})
    with pytest.raises(ValueError, match="needs params"):
        tx.update({"w": jnp.ones(1)}, state)


AVERAGES = {
    "parameter_ema": (lambda: optim.parameter_ema(0.999), optim.ema_of),
    "keep_anchor": (lambda: optim.keep_anchor("ema", decay=0.999), optim.anchor_of),
    "keep_anchor_narrow": (
        lambda: optim.keep_anchor("ema", decay=0.999, dtype="bfloat16"),
        optim.anchor_of,
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_an_average_moves_whatever_the_parameters_are_kept_in(name, dtype):
    make, read = AVERAGES[name]
    tx = make()
    state = tx.init({"w": jnp.ones(2, dtype), "n": jnp.array(3)})
    now = {"w": jnp.full(2, 1.25, dtype), "n": jnp.array(5)}
    zeros = jax.tree.map(jnp.zeros_like, now)
    state, _ = jax.lax.scan(
        lambda state, _: (tx.update(zeros, state, now)[1], None), state, length=3000
    )
    average = read(state)
    # 1 + 0.25 (1 - 0.999^3000) = 1.2376
    np.testing.assert_allclose(average["w"], 1.2376, atol=1e-3)
    assert average["w"].dtype == jnp.float32
    assert average["n"].dtype == now["n"].dtype
    assert average["n"] == 5
