"""Divergences: exact near zero, of impossible tokens, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import optim
from tests.support import peers


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


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
