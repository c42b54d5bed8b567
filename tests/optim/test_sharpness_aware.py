"""SAM, ASAM and Fisher SAM: climbs of a constant radius."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import optim
from jaxlab.optim import ascent
from tests.support.climbs import (
    arguments,
    fisher_of_batch,
    flat,
    loss_of,
    problem,
    run,
    written_out,
)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


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
