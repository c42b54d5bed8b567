"""Rotary positions: the papers' tables, and what a rotation keeps."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.models import rope as rope_lib
from tests.support.decoders import YARN


def numpy_frequencies(rope, head_dim):
    """The formulas of the papers, in float64 and without JAX."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    base = rope.theta**-exponents
    wavelength = 2 * np.pi / base
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "llama3":
        low = rope.original_length / rope.low_freq_factor
        high = rope.original_length / rope.high_freq_factor
        smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blend = (1 - smooth) * base / rope.factor + smooth * base
        scaled = np.where(wavelength > low, base / rope.factor, blend)
        return np.where(wavelength < high, base, scaled)
    if rope.scaling == "yarn":

        def dim(rotations):
            per_rotation = rope.original_length / (2 * np.pi * rotations)
            return head_dim * np.log(per_rotation) / (2 * np.log(rope.theta))

        low, high = dim(rope.beta_fast), dim(rope.beta_slow)
        if rope.truncate:
            low, high = np.floor(low), np.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
        return base / rope.factor * ramp + base * (1 - ramp)
    return base


@settings(max_examples=12, deadline=None)
@given(
    scaling=st.sampled_from(["default", "linear", "llama3", "yarn"]),
    theta=st.sampled_from([1e4, 5e5]),
    factor=st.sampled_from([2.0, 8.0]),
    truncate=st.booleans(),
)
def test_rotary_tables_follow_the_papers_up_to_long_contexts(
    scaling, theta, factor, truncate
):
    rope = rope_lib.Rope(
        theta, scaling, factor=factor, original_length=8192, truncate=truncate
    )
    positions = np.array([[0, 1, 100, 4095]])
    cos, sin = rope.tables(jnp.asarray(positions), 128)
    angles = positions[..., None] * numpy_frequencies(rope, 128)
    scale = 0.1 * math.log(factor) + 1 if scaling == "yarn" else 1.0
    assert cos.shape == (1, 4, 64)
    # f32 keeps 24 bits: an angle of 4095 radians is known to a few 1e-4.
    np.testing.assert_allclose(cos, scale * np.cos(angles), atol=2e-3)
    np.testing.assert_allclose(sin, scale * np.sin(angles), atol=2e-3)
    np.testing.assert_allclose(cos[:, :2], scale * np.cos(angles[:, :2]), atol=1e-6)


def test_yarn_multiplies_by_the_attention_factor_that_it_is_given():
    rope = dataclasses.replace(YARN, attention_factor=1.5)
    cos, sin = rope.tables(jnp.zeros((1, 1), jnp.int32), 8)
    np.testing.assert_array_equal(cos, np.full((1, 1, 4), 1.5, np.float32))
    np.testing.assert_array_equal(sin, np.zeros((1, 1, 4), np.float32))


def test_rotation_keeps_lengths_and_makes_products_relative():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    rope = rope_lib.Rope()

    def product(i, j):
        (ci, si), (cj, sj) = (rope.tables(jnp.array([[p]]), 8) for p in (i, j))
        return jnp.sum(rope_lib.rotate(q, ci, si) * rope_lib.rotate(k, cj, sj))

    np.testing.assert_allclose(product(3, 1), product(12, 10), rtol=1e-5)
    np.testing.assert_allclose(product(5, 5), jnp.sum(q * k), rtol=1e-5)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="use default, linear, llama3 or yarn"):
        rope_lib.Rope(scaling="su").tables(jnp.zeros((1, 1), jnp.int32), 8)
