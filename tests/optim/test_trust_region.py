"""TRAM: values of the paper's algorithm, anchors, and the shared reference values.

The oracle is the algorithm written once more, on one flat vector in numpy
(tests/support/climbs.py); gradients are jax's. The shared values were made with the
authors' code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import optim
from tests.support import climbs, peers
from tests.support.climbs import (
    arguments,
    fisher_of_batch,
    flat,
    problem,
    reverse,
    run,
    symmetric,
    written_out,
)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


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


def test_a_narrow_anchor_halves_its_memory():
    params = problem()[0]
    state = optim.tram(optax.sgd(0.1), anchor_dtype=jnp.bfloat16).init(params)
    assert {x.dtype.name for x in jax.tree.leaves(state.anchor)} == {"bfloat16"}


# ---- the shared reference values


@pytest.fixture
def vectors(test_data):
    return peers.shared(test_data, "tram_refit")


BASES = {
    "sgd": lambda: optax.sgd(0.5),
    "adam": lambda: optax.adam(0.02, 0.9, 0.99, 1e-8),
    "adamw": lambda: optax.adamw(0.02, 0.9, 0.99, 1e-8, weight_decay=0.1),
}

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
    init, anchor, ids, labels = climbs.shared_problem(vectors)
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
