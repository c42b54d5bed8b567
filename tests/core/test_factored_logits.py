"""Factored logits: divergences over blocks of the vocabulary."""

import jax
import jax.numpy as jnp

from jaxlab.core import factored_logits


def test_the_gradient_of_a_divergence_is_summed_over_blocks_in_f32():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, other = jax.random.normal(keys[0], (2, 4, 256, 8), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (8, 32))

    def distance(kernel, block_bytes):
        one, two = (
            factored_logits.Factored(x, kernel, block_bytes=block_bytes)
            for x in (hidden, other)
        )
        return factored_logits.kl_divergence(one, two)

    whole, blocks = (jax.grad(distance)(kernel, size) for size in (2**30, 2**12))
    assert float(jnp.abs(whole - blocks).max() / jnp.abs(whole).max()) < 2e-3
