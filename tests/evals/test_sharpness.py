"""Sharpness of a minimum: values written out, and what has to hold of any."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import errors, types
from jaxlab.evals import sharpness as sharpness_lib

KEY = jax.random.key(0)


def quadratic(params, batch):
    """The total of x'Hx / 2 + g'x over `weight`, x being all the parameters."""
    x = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])
    total = x @ batch["hessian"] @ x / 2 + batch["slope"] @ x
    return types.Loss(total, batch["weight"], {})


def diagonal(spectrum, slope=None, weight=1.0):
    spectrum = np.asarray(spectrum, np.float32)
    slope = np.zeros_like(spectrum) if slope is None else np.float32(slope)
    return {
        "hessian": np.diag(spectrum),
        "slope": slope,
        "weight": np.float32(weight),
    }


def mlp_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["kernel"] + batch["bias"])
    logits = hidden @ params["second"]
    losses = -jax.nn.log_softmax(logits)[:, 0] * batch["weight"]
    return types.Loss(jnp.sum(losses), jnp.sum(batch["weight"]), {})


def mlp():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (4, 8))},
        "second": jax.random.normal(keys[1], (8, 2)),
    }
    batches = [
        {
            "x": jax.random.normal(key, (rows, 4)),
            "bias": jnp.zeros((1, 8)),
            "weight": jnp.arange(1.0, rows + 1),
        }
        for key, rows in zip(keys[2:], (5, 3), strict=True)
    ]
    return params, batches


def mean_loss(params, batches):
    losses = [mlp_loss(params, batch) for batch in batches]
    return sum(x.total for x in losses) / sum(x.weight for x in losses)


@pytest.mark.parametrize(
    "spectrum", [[3, -50, 0.5, 2, 2], [-1, -7, -2], [2, 2, 2], [0, 0], [1e-20, -3e-20]]
)
def test_the_top_eigenvalue_of_a_quadratic_is_the_largest_by_sign(spectrum):
    params = {"a": jnp.ones(1), "b": jnp.ones(len(spectrum) - 1), "c": jnp.ones(0)}
    found = sharpness_lib.top_eigenvalue(
        quadratic, params, [diagonal(spectrum)], key=KEY, tol=0.0
    )
    size = max(map(abs, spectrum))
    assert found.value == pytest.approx(max(spectrum), abs=2e-6 * size)
    assert found.residual <= 5e-6 * size
    assert found.iterations <= len(spectrum)


def test_lanczos_stops_after_as_many_products_as_there_are_eigenvalues():
    spectrum = [5] + [1] * 10 + [-2] * 9
    found = sharpness_lib.top_eigenvalue(
        quadratic, jnp.ones(20), [diagonal(spectrum)], key=KEY
    )
    assert found.iterations <= 4
    assert found.value == pytest.approx(5, rel=1e-5)
    alike = sharpness_lib.top_eigenvalue(
        quadratic, jnp.ones(20), [diagonal([2] * 20)], key=KEY
    )
    assert alike.iterations == 1
    assert alike.value == pytest.approx(2, rel=1e-6)


def test_one_eigenvalue_among_many_that_are_alike_is_not_passed_over():
    # A random start has a part in 1000 of the one vector: its residual is 1e-3 at once.
    def loss_fn(x, batch):
        total = (jnp.sum(x**2) + batch * x[0] ** 2) / 2
        return types.Loss(total, jnp.ones(()), {})

    found = sharpness_lib.top_eigenvalue(
        loss_fn, jnp.zeros(1_000_000), [jnp.float32(0.5)], key=KEY, iterations=4
    )
    assert found.value == pytest.approx(1.5, rel=1e-3)


def test_batches_weigh_what_counts_in_them():
    batches = [diagonal([4.0, 0.0]), diagonal([0.0, 9.0], weight=2.0)]
    found = sharpness_lib.top_eigenvalue(
        quadratic, jnp.ones(2), batches, key=KEY, tol=0.0
    )
    assert found.value == pytest.approx(3.0, rel=1e-6)
    rise = sharpness_lib.epsilon_sharpness(
        quadratic, jnp.array([0.0, 1.0]), iter(batches), radius=1.0
    )
    assert rise == pytest.approx((4 - 1) * 9 / 2 / 3, rel=1e-6)


@pytest.mark.slow
def test_the_top_eigenvalue_of_a_network_is_that_of_its_dense_hessian():
    params, batches = mlp()
    with jax.enable_x64():
        params, batches = jax.tree.map(
            lambda x: jnp.asarray(np.float64(x)), (params, batches)
        )
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        hessian = jax.jit(jax.hessian(lambda x: mean_loss(unravel(x), batches)))
        top = np.linalg.eigvalsh(hessian(flat))[-1]
        exact = sharpness_lib.top_eigenvalue(
            mlp_loss, params, batches, key=KEY, iterations=48, tol=1e-9
        )
        loose = sharpness_lib.top_eigenvalue(mlp_loss, params, batches, key=KEY)
    assert exact.value == pytest.approx(top, rel=1e-12)
    assert exact.residual <= 1e-9 * top
    assert loose.iterations < exact.iterations
    assert abs(top - loose.value) <= loose.residual <= 1e-3 * top
    params, batches = mlp()
    narrow = sharpness_lib.top_eigenvalue(
        mlp_loss, params, batches, key=KEY, iterations=48, tol=0.0
    )
    assert narrow.value == pytest.approx(top, rel=2e-6)


def test_more_iterations_climb_to_the_top_from_below():
    params, batches = mlp()
    values = [
        sharpness_lib.top_eigenvalue(
            mlp_loss, params, batches, key=KEY, iterations=count, tol=0.0
        ).value
        for count in (1, 2, 4, 8, 16)
    ]
    assert values == sorted(values)
    assert values[0] < 0.9 * values[-1]


@pytest.mark.slow
def test_sharded_parameters_have_the_same_sharpness():
    params, batches = mlp()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {
        "first": {"kernel": jax.P(None, "data")},
        "second": jax.P("data"),
    }
    sharded = jax.device_put(
        params, jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
    )
    ours, alone = (
        sharpness_lib.top_eigenvalue(mlp_loss, each, batches, key=KEY)
        for each in (sharded, params)
    )
    assert ours.value == pytest.approx(alone.value, rel=1e-5)
    assert ours.iterations == alone.iterations
    ours, alone = (
        sharpness_lib.epsilon_sharpness(mlp_loss, each, batches, radius=0.5, steps=2)
        for each in (sharded, params)
    )
    assert ours == pytest.approx(alone, rel=1e-5)


def test_epsilon_sharpness_of_one_step_has_its_written_out_value():
    batch = diagonal([2.0, 1.0], slope=[1.0, 4.0], weight=2.0)
    x = jnp.array([1.0, 0.0])
    # The total's gradient is (3, 4): eps = 5 (3, 4) / 5, and at (4, 4) the total is
    # 16 + 8 + 4 + 16 = 44, where it was 1 + 1 = 2.
    rise = sharpness_lib.epsilon_sharpness(quadratic, x, [batch], radius=5.0)
    assert rise == pytest.approx((44 - 2) / 2, rel=1e-6)
    # T = |x| + 1 = (2, 1), T g = (6, 4): eps = sqrt(13) T (6, 4) / sqrt(52) = (6, 2),
    # and at (7, 2) the total is 49 + 2 + 7 + 8 = 66.
    rise = sharpness_lib.epsilon_sharpness(
        quadratic, x, [batch], radius=math.sqrt(13), adaptive=True, eta=1.0
    )
    assert rise == pytest.approx((66 - 2) / 2, rel=1e-6)
    # Without eta the second stays 0: eps = (1, 0), at (2, 0) the total is 6.
    rise = sharpness_lib.epsilon_sharpness(
        quadratic, x, [batch], radius=1.0, adaptive=True
    )
    assert rise == pytest.approx((6 - 2) / 2, rel=1e-6)


def test_steps_reach_the_maximum_of_a_quadratic_in_the_ball_from_below():
    # max of g'e + e'He / 2 on |e| = 1: (m - H) e = g for the m above H that fits.
    spectrum, slope = np.array([3.0, 1.0, -2.0]), np.array([0.3, 1.0, 0.5])
    low, high = 3.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        too_far = np.linalg.norm(slope / (middle - spectrum)) > 1
        low, high = (middle, high) if too_far else (low, middle)
    best = slope / (high - spectrum)
    expected = slope @ best + best @ (spectrum * best) / 2
    rises = [
        sharpness_lib.epsilon_sharpness(
            quadratic, jnp.zeros(3), [diagonal(spectrum, slope)], radius=1.0, steps=n
        )
        for n in (1, 2, 4, 8, 64)
    ]
    assert rises == sorted(rises)
    assert rises[0] < 0.9 * expected
    assert rises[-1] == pytest.approx(expected, rel=1e-3)


def test_a_maximum_inside_the_ball_is_found_by_more_steps():
    batch = diagonal([-1.0, -2.0], slope=[1.0, 1.0])  # the top, 3/4, is at (1, 1/2)
    rises = [
        sharpness_lib.epsilon_sharpness(
            quadratic, jnp.zeros(2), [batch], radius=4.0, steps=n
        )
        for n in (*range(1, 13), 50)
    ]
    assert rises[0] < 0
    assert rises == sorted(rises)
    assert 0.6 < rises[-1] <= 0.75


def test_adaptive_sharpness_does_not_change_when_layers_trade_their_scale():
    params, batches = mlp()

    def loss_fn(params, batch):
        out = jax.nn.relu(batch["x"] @ params["first"]["kernel"]) @ params["second"]
        return types.Loss(jnp.sum(out**2), jnp.float32(len(out)), {})

    traded = {
        "first": {"kernel": params["first"]["kernel"] * 8},
        "second": params["second"] / 8,
    }
    for adaptive in (True, False):
        one, other = (
            sharpness_lib.epsilon_sharpness(
                loss_fn, each, batches, radius=0.2, adaptive=adaptive, steps=2
            )
            for each in (params, traded)
        )
        assert (one == pytest.approx(other, rel=1e-4)) == adaptive


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_gradient_or_radius_nothing_rises(adaptive):
    still = [diagonal([2.0, 1.0])]
    for x, radius in ((jnp.zeros(2), 1.0), (jnp.ones(2), 0.0)):
        rise = sharpness_lib.epsilon_sharpness(
            quadratic, x, still, radius=radius, adaptive=adaptive, steps=3
        )
        assert rise == 0


def test_a_tiny_gradient_still_points_somewhere():
    batch = diagonal([1.0, 1.0], slope=[3e-25, 4e-25])
    rise = sharpness_lib.epsilon_sharpness(quadratic, jnp.zeros(2), [batch], radius=2.0)
    assert rise == pytest.approx(2.0)


def test_what_is_not_finite_is_nan_and_not_a_number():
    for hessian in (math.nan, math.inf):
        batches = [diagonal([hessian, 1.0])]
        found = sharpness_lib.top_eigenvalue(quadratic, jnp.ones(2), batches, key=KEY)
        assert math.isnan(found.value)
        assert math.isnan(found.residual)
        assert math.isnan(
            sharpness_lib.epsilon_sharpness(quadratic, jnp.ones(2), batches, radius=1.0)
        )


def test_mistakes_end_in_one_line():
    def eigenvalue(params=None, batches=None, **options):
        params = jnp.ones(2) if params is None else params
        batches = [diagonal([1, 2])] if batches is None else batches
        return sharpness_lib.top_eigenvalue(
            quadratic, params, batches, key=KEY, **options
        )

    def sharpness(batches=None, radius=1.0, **options):
        batches = [diagonal([1, 2])] if batches is None else batches
        return sharpness_lib.epsilon_sharpness(
            quadratic, jnp.ones(2), batches, radius=radius, **options
        )

    with pytest.raises(errors.UserError, match=r"w is bfloat16\[2\]"):
        eigenvalue({"w": jnp.ones(2, jnp.bfloat16)})
    with pytest.raises(errors.UserError, match="there are none"):
        eigenvalue({})
    with pytest.raises(errors.UserError, match="iterations 0"):
        eigenvalue(iterations=0)
    for function in (eigenvalue, sharpness):
        with pytest.raises(errors.UserError, match="at least one batch"):
            function(batches=[])
        with pytest.raises(errors.UserError, match="nothing that counts"):
            function(batches=[diagonal([1, 2], weight=0.0)])
    for wrong in ({"radius": -1.0}, {"radius": math.nan}, {"eta": -1.0}):
        with pytest.raises(errors.UserError, match="finite and not negative"):
            sharpness(**wrong)
    with pytest.raises(errors.UserError, match="steps 0"):
        sharpness(steps=0)
