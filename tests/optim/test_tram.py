"""TRAM, ASAM, SAM, Fisher-SAM: values, and what goes wrong elsewhere.

The oracle of this file is the algorithm written once more, on one flat vector in numpy;
gradients are jax's. The shared reference values were made with the authors' code.
"""

import functools
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
from tests.support import peers

SHAPES = {"embed": (11, 6), "w1": (6, 8), "b1": (8,), "w2": (8, 4), "b2": (4,)}
STEPS = 4


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def logits_of(params, ids, noise=0.0, *, detach=False):
    rows = params["embed"][ids]
    rows = jax.lax.stop_gradient(rows) if detach else rows
    hidden = jnp.tanh(jnp.mean(jnp.tanh(rows + noise), axis=1) @ params["w1"] + row(
        params["b1"]
    ))  # fmt: skip
    return hidden @ params["w2"] + row(params["b2"])


def row(vector):
    return vector[None]


def loss_of(params, ids, labels, noise=0.0):
    logps = jax.nn.log_softmax(logits_of(params, ids, noise))
    return -jnp.mean(jnp.take_along_axis(logps, labels[:, None], axis=1))


def problem(seed=0, steps=STEPS):
    random = np.random.default_rng(seed)
    tree = {k: jnp.asarray(random.normal(size=s) * 0.5) for k, s in SHAPES.items()}
    far = {k: v + 0.1 * random.normal(size=v.shape) for k, v in tree.items()}
    ids = jnp.asarray(random.integers(0, 11, (steps, 6, 5)))
    labels = jnp.asarray(random.integers(0, 4, (steps, 6)))
    noise = jnp.asarray(0.1 * random.normal(size=(steps, 6, 5, 6)))
    return tree, far, ids, labels, noise


def flat(tree):
    return np.concatenate([np.ravel(tree[k]) for k in SHAPES])


def arguments(params, ids, labels, noise=None, *, fisher=None):
    """What a training step hands to `tx.update`, beside the gradients."""
    grad = jax.grad(loss_of)
    extra = {"grad_fn": lambda p, _: grad(p, ids, labels)}
    if fisher is not None:
        extra["fisher_fn"] = lambda p: fisher(p, ids, labels, noise)
    else:
        z = 0.0 if noise is None else noise
        extra["logits"] = logits_of(params, ids)
        extra["logits_fn"] = lambda p: logits_of(p, ids, z)
    return grad(params, ids, labels), extra


def run(tx, given, *, noisy=False, fisher=None, anchor=None, jit=True):
    """[steps, 158] parameters after every step, and the radii."""
    params, _, ids, labels, noise = given
    state = tx.init(params)
    if anchor is not None:
        state = state._replace(anchor=anchor)

    def step(params, state, ids, labels, noise):
        shaken = noise if noisy or fisher is not None else None
        grads, extra = arguments(params, ids, labels, shaken, fisher=fisher)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1)) if jit else step
    params = jax.tree.map(jnp.copy, params)
    rows, radii = [], []
    for i in range(len(ids)):
        params, state = step(params, state, ids[i], labels[i], noise[i])
        rows.append(flat(params))
        radii.append(float(state.radius))
    return np.stack(rows), np.array(radii)


def written_out(given, kind, *, anchor=None, noisy=False, rate=0.5, **settings):
    """The same on one vector: SGD, every formula as the papers print it."""
    params, _, ids, labels, noise = given
    sizes = np.cumsum([int(np.prod(s)) for s in SHAPES.values()])[:-1]

    def tree(vector):
        parts = zip(SHAPES.items(), np.split(vector, sizes), strict=True)
        return {k: jnp.asarray(v.reshape(s)) for (k, s), v in parts}

    theta = flat(params)
    centre = theta if anchor is None else flat(anchor)
    rows, radii = [], []
    for x, y, z in zip(ids, labels, noise, strict=True):
        grad = lambda v: flat(jax.grad(loss_of)(tree(v), x, y))  # noqa: B023, E731
        g = grad(theta)
        if kind == "fisher":
            f = flat(jax.grad(loss_of)(tree(theta), x, y, z if noisy else 0.0)) ** 2
            inverse = 1 / (1 + settings["eta"] * f)
            radius = settings["gamma"]
            e = radius * inverse * g / np.sqrt(np.sum(g * inverse * g))
        else:
            radius = settings.get("rho")
            if kind == "tram":
                source = theta if noisy else centre
                p = np.exp(jax.nn.log_softmax(
                    logits_of(tree(source), x, z if noisy else 0.0)
                ))  # fmt: skip
                q = np.exp(jax.nn.log_softmax(logits_of(tree(theta), x)))
                radius = np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
                radius = min(
                    radius * settings.get("scale", 1.0), settings.get("most", 9)
                )
            t = np.abs(theta) + settings.get("eta", 0.0)
            t = t if settings.get("adaptive", True) else np.ones_like(t)
            e = radius * t**2 * g / np.linalg.norm(t * g)
        keep = settings.get("decay", 0.0)
        centre = keep * centre + (1 - keep) * theta
        theta = theta - rate * grad(theta + e)
        rows.append(theta)
        radii.append(radius)
    return np.stack(rows), np.array(radii)


def fisher_of_batch(params, ids, labels, noise):
    grads = jax.grad(loss_of)(params, ids, labels, noise)
    return jax.tree.map(jnp.square, grads)


VARIANTS = {
    "previous": ({"anchor": "previous"}, {"decay": 0.0}),
    "initial": ({"anchor": "initial"}, {"decay": 1.0}),
    "ema": ({"anchor": "ema", "anchor_decay": 0.9}, {"decay": 0.9}),
    "bounded": (
        {"anchor": "initial", "max_radius": 0.02},
        {"decay": 1.0, "most": 0.02},
    ),
    "scaled": ({"radius_scale": 3.0, "eta": 0.01}, {"scale": 3.0, "eta": 0.01}),
    "plain": (
        {"adaptive": False, "radius_scale": 5.0},
        {"adaptive": False, "scale": 5},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_tram_is_the_algorithm_of_the_paper(name):
    ours, theirs = VARIANTS[name]
    given = problem()
    anchor = given[1] if name in ("initial", "ema", "bounded") else None
    expected = written_out(given, "tram", anchor=anchor, **theirs)
    got = run(optim.tram(optax.sgd(0.5), **ours), given, anchor=anchor)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-7)  # state is float32
    assert (got[1][1:] > 0).all()


def test_tram_x_shakes_the_input_and_keeps_no_anchor():
    given = problem()
    tx = optim.tram(optax.sgd(0.5), anchor=None, radius_scale=50.0)
    assert tx.init(given[0]).anchor is None
    expected = written_out(given, "tram", noisy=True, scale=50.0)
    np.testing.assert_allclose(run(tx, given, noisy=True)[0], expected[0], atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_and_sam_are_climbs_of_constant_radius(eta):
    given = problem()
    got = run(optim.asam(optax.sgd(0.5), 0.5, eta=eta), given, fisher=None)[0]
    np.testing.assert_allclose(
        got, written_out(given, "asam", rho=0.5, eta=eta)[0], atol=1e-12
    )
    got = run(optim.sam(optax.sgd(0.5), 0.05), given)[0]
    np.testing.assert_allclose(
        got, written_out(given, "sam", rho=0.05, adaptive=False)[0], atol=1e-12
    )


def test_sam_equals_that_of_optax():
    params, _, ids, labels, _ = problem()
    reference = optax.contrib.sam(
        optax.sgd(0.5),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
        opaque_mode=True,
    )
    ends = []
    for tx in (reference, optim.sam(optax.sgd(0.5), 0.05)):
        theta, state = params, tx.init(params)
        for x, y in zip(ids, labels, strict=True):
            grads, extra = arguments(theta, x, y)
            updates, state = tx.update(grads, state, theta, grad_fn=extra["grad_fn"])
            theta = optax.apply_updates(theta, updates)
        ends.append(flat(theta))
    np.testing.assert_allclose(*ends, atol=1e-12)


@pytest.mark.parametrize("noisy", [False, True])
def test_fisher_climbs_divide_by_the_fisher_information(noisy):
    given = problem()
    settings = {"gamma": 0.1, "eta": 0.1}
    expected = written_out(given, "fisher", noisy=noisy, **settings)[0]
    if noisy:
        tx = optim.tram_fisher(optax.sgd(0.5), **settings)
        got = run(tx, given, fisher=fisher_of_batch)[0]
    else:
        got = run(optim.fisher_sam(optax.sgd(0.5), **settings), given)[0]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_the_climb_is_along_the_gradient_scaled_by_squared_parameters():
    # The released code leaves the gradient out: its ascent is the same for L and -L.
    params, _, ids, labels, _ = problem()
    grads = jax.grad(loss_of)(params, ids[0], labels[0])
    climb = ascent.Climb(adaptive=True)
    squares = ascent.scales(params, climb)
    up, _ = ascent.perturbation(grads, squares, 0.1, climb)
    expected = flat(grads) * flat(params) ** 2
    cosine = flat(up) @ expected / np.linalg.norm(flat(up)) / np.linalg.norm(expected)
    assert cosine == pytest.approx(1, abs=1e-14)
    assert abs(released_ascent(params, grads, 0.1) @ flat(grads)) < 0.2 * (
        np.linalg.norm(released_ascent(params, grads, 0.1))
        * np.linalg.norm(flat(grads))
    )
    down, _ = ascent.perturbation(
        jax.tree.map(jnp.negative, grads), squares, 0.1, climb
    )
    np.testing.assert_array_equal(flat(up), -flat(down))


def released_ascent(params, grads, radius):
    """theta^2 d / |theta g|: what the released code adds to the parameters."""
    theta = flat(params)
    return theta**2 * radius / np.linalg.norm(theta * flat(grads))


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


def test_the_anchor_of_a_jitted_step_may_be_donated():
    given = problem()
    for anchor in ("previous", "initial", "ema"):
        tx = optim.tram(optax.adam(0.02), anchor=anchor)
        fast, slow = run(tx, given), run(tx, given, jit=False)
        np.testing.assert_allclose(fast[0], slow[0], atol=1e-12)


def test_the_first_step_from_its_own_anchor_is_an_ordinary_one():
    params, _, ids, labels, _ = problem()
    tx = optim.tram(optax.sgd(0.5))
    grads, extra = arguments(params, ids[0], labels[0])
    updates, state = tx.update(grads, tx.init(params), params, **extra)
    assert float(state.radius) == 0.0
    np.testing.assert_array_equal(flat(updates), -0.5 * flat(grads))


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
    moved = ascent.shifted(theta, change, climb, jnp.int32(0))
    seen, meant = to_bf16(moved) - to_bf16(theta), np.asarray(change, np.float64)
    assert seen @ meant / np.linalg.norm(seen) / np.linalg.norm(meant) < 0.5
    coarse = theta.astype(jnp.bfloat16)
    change, _ = ascent.perturbation(g, ascent.scales(coarse, climb), 0.5, climb)
    assert np.mean(ascent.shifted(coarse, change, climb, jnp.int32(0)) != coarse) < 0.01
    values = jnp.full((40_000,), 1.0 + 2.0**-10, jnp.float32)
    climb = ascent.Climb(stochastic_rounding=True)
    moved = ascent.shifted(values, jnp.zeros_like(values), climb, jnp.int32(3))
    assert set(np.unique(moved)) == {1.0, 1.0 + 2.0**-7}
    assert float(jnp.mean(moved)) == pytest.approx(1.0 + 2.0**-10, abs=1e-4)
    again = ascent.shifted(values, jnp.zeros_like(values), climb, jnp.int32(3))
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


def test_a_narrow_anchor_halves_its_memory():
    params = problem()[0]
    state = optim.tram(optax.sgd(0.1), anchor_dtype=jnp.bfloat16).init(params)
    assert {x.dtype.name for x in jax.tree.leaves(state.anchor)} == {"bfloat16"}


def test_the_norm_of_many_small_numbers_is_taken_in_float32():
    params = {i: jnp.ones((100,), jnp.bfloat16) for i in range(400)}
    climb = ascent.Climb()
    _, norm = ascent.perturbation(params, ascent.scales(params, climb), 1.0, climb)
    assert float(norm) == pytest.approx(200.0)
    tiny = {"w": jnp.full((100,), 1e-5, jnp.float16)}
    _, norm = ascent.perturbation(tiny, ascent.scales(tiny, climb), 1.0, climb)
    assert float(norm) == pytest.approx(1e-4, rel=1e-2)


# ---- divergences


def test_kl_is_right_where_the_plain_form_is_noise():
    random = np.random.default_rng(0)
    for scale in (1e-5, 1e-4, 1e-2, 1.0):
        x = random.normal(size=(16, 1000))
        y = x + scale * random.normal(size=x.shape)
        exact = np.mean(np.sum(_softmax(x) * (_log_softmax(x) - _log_softmax(y)), -1))
        x32, y32 = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        got = float(optim.kl_divergence(x32, y32))
        assert got >= 0
        assert got == pytest.approx(exact, rel=1e-2 if scale < 1e-4 else 1e-3)


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _softmax(x):
    return np.exp(_log_softmax(x))


def test_kl_of_rows_that_do_not_count_is_left_out():
    x, y = jnp.zeros((3, 4)), jnp.eye(3, 4) * 2
    where = jnp.array([True, False, True])
    expected = (optim.kl_divergence(x[0], y[0]) + optim.kl_divergence(x[2], y[2])) / 2
    got = optim.kl_divergence(x, y, where=where)
    assert float(got) == pytest.approx(float(expected), rel=1e-14)
    assert float(optim.kl_divergence(x, y, where=jnp.zeros(3))) == 0.0


def test_kl_of_impossible_tokens_is_zero_or_infinite_and_never_nan():
    never = jnp.array([0.0, 0.0, -jnp.inf])
    ever = jnp.array([0.0, 0.0, 0.0])
    assert float(optim.kl_divergence(never, never)) == 0.0
    assert float(optim.kl_divergence(never, ever)) == pytest.approx(np.log(1.5))
    assert float(optim.kl_divergence(ever, never)) == np.inf


def test_the_gradient_of_kl_is_the_difference_of_probabilities():
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(5,)))
    for y in (x, x + 1e-6, jnp.asarray(random.normal(size=(5,)))):
        got = jax.grad(lambda y: optim.kl_divergence(x, y))(y)
        np.testing.assert_allclose(
            got, jax.nn.softmax(y) - jax.nn.softmax(x), atol=1e-12
        )


def test_an_unknown_direction_or_kernel_is_refused():
    with pytest.raises(ValueError, match="forward, reverse, symmetric"):
        optim.kl_divergence(jnp.zeros(2), jnp.zeros(2), direction="back")
    with pytest.raises(ValueError, match="imq2"):
        optim.mmd(jnp.zeros((2, 2)), jnp.zeros((2, 2)), kernel="gauss")


# ---- the shared reference values


@pytest.fixture
def vectors(test_data):
    return peers.shared(test_data, "tram_refit")


def shared_problem(vectors):
    data = vectors("tram_problem")
    name = list(SHAPES)
    init = {name[i]: jnp.asarray(data[f"init_{i}"]) for i in range(5)}
    anchor = {name[i]: jnp.asarray(data[f"anchor_{i}"]) for i in range(5)}
    return init, anchor, jnp.asarray(data["input_ids"]), jnp.asarray(data["labels"])


BASES = {
    "sgd": lambda: optax.sgd(0.5),
    "adam": lambda: optax.adam(0.02, 0.9, 0.99, 1e-8),
    "adamw": lambda: optax.adamw(0.02, 0.9, 0.99, 1e-8, weight_decay=0.1),
}
symmetric = functools.partial(optim.kl_divergence, direction="symmetric")
reverse = functools.partial(optim.kl_divergence, direction="reverse")
FILES = {
    "tram_paper_prev_sgd": ("sgd", optim.tram, {}),
    "tram_paper_prev_sgd_plain": ("sgd", optim.tram, {"adaptive": False}),
    "tram_paper_prev_adam": ("adam", optim.tram, {}),
    "tram_paper_prev_sgd_reverse": ("sgd", optim.tram, {"divergence_fn": reverse}),
    "tram_paper_init_adam": ("adam", optim.tram, {"anchor": "initial"}),
    "tram_paper_init_adam_clamped": (
        "adam", optim.tram, {"anchor": "initial", "max_radius": 0.02},
    ),
    "tram_paper_ema_adamw": (
        "adamw", optim.tram, {"anchor": "ema", "anchor_decay": 0.9},
    ),
    "tram_paper_x_adam": ("adam", optim.tram, {"anchor": None, "radius_scale": 50.0}),
    "tram_paper_x_uniform_sgd": (
        "sgd", optim.tram, {"anchor": None, "radius_scale": 50.0},
    ),
    "tram_paper_x_adam_symmetric": (
        "adam", optim.tram,
        {"anchor": None, "radius_scale": 50.0, "divergence_fn": symmetric},
    ),
    "sam_sgd": ("sgd", optim.sam, {}),
    "asam_adam": ("adam", optim.asam, {"eta": 0.0}),
    "asam_eta_sgd": (
        "sgd", optim.asam,
        {"adaptive": lambda p: jax.tree.map(lambda x: x.ndim > 1, p)},
    ),
    "fsam_adam": ("adam", optim.fisher_sam, {}),
    "tram_fisher_batch_adam": ("adam", optim.tram_fisher, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_shared_values_of_every_optimizer(name, vectors):
    base, factory, options = FILES[name]
    init, anchor, ids, labels = shared_problem(vectors)
    data = vectors(name)
    noise = data["noise"] if "noise" in data else np.zeros((6, 1))
    if noise.ndim < 4:
        noise = np.zeros((6, 6, 5, 6))
    far = anchor if options.get("anchor") in ("initial", "ema") else None
    rows, radii = run(
        factory(BASES[base](), **options),
        (init, None, ids, labels, jnp.asarray(noise)),
        noisy="_x_" in name,
        fisher=fisher_of_batch if name.startswith("tram_fisher") else None,
        anchor=far,
    )
    np.testing.assert_allclose(rows, data["params"], atol=1e-12)
    if "radius" in data:
        np.testing.assert_allclose(radii, data["radius"], rtol=1e-6, atol=1e-12)


def test_shared_values_of_divergences(vectors):
    data = vectors("tram_divergences")
    x, y = jnp.asarray(data["target"]), jnp.asarray(data["logits"])
    for direction in ("forward", "reverse", "symmetric"):
        got = float(optim.kl_divergence(x, y, direction=direction))
        assert got == pytest.approx(
            float(data[f"kl_{direction}_batchmean64"]), abs=1e-12
        )
        # The released numbers: over classes and batch once more, in float32.
        assert got / 5 / 8 == pytest.approx(float(data[f"kl_{direction}"]), abs=1e-7)
    for kernel in ("imq", "imq2", "imq3", "rbf"):
        got = float(optim.mmd(x, y, kernel=kernel)) / len(x)
        assert got == pytest.approx(float(data[f"mmd_{kernel}"]), abs=1e-12)
    assert float(optim.l2(x, y)) / len(x) == pytest.approx(
        float(data["l2_intended"]), abs=1e-12
    )
