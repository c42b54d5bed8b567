"""The bit mixer: values that are in files of the past, alike in numpy and in jax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import bits, tree
from jaxlab.merge.sparse import random_bits

WORDS = np.uint32([0, 1, 2, 0x9E3779B9, 0xFFFFFFFF, 123456789])
# Written by commit 865b6a5, whose checkpoints and masks are read and drawn again.
MIXED = [0x0, 0x514E28B7, 0x30F4C306, 0x92CA2F0E, 0x81F16F39, 0xBA60D89A]
CHECKSUMS = {
    "bf16": 1233334603, "bool": 4141144917, "f32": 4155764939, "i8": 1294682044,
    "scalar": 2711670521,
}  # fmt: skip
STREAM = [2786219466, 1883858115]
DRAWN = [[10576085, 4586917, 6138706], [3407655, 9979658, 11737365]]


def test_mixed_words_are_those_of_the_past():
    assert bits.mix(WORDS).tolist() == MIXED
    assert jax.jit(bits.mix)(WORDS).tolist() == MIXED


def test_checksums_of_leaves_are_those_of_the_past():
    leaves = {
        "f32": jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4),
        "bf16": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.asarray([True, False, True]),
        "scalar": jnp.float32(3.5),
        "i8": jnp.asarray([-1, 2, 3], jnp.int8),
    }
    assert tree.fingerprint(leaves) == CHECKSUMS


def test_masks_are_drawn_as_in_the_past():
    words = random_bits.stream(np.uint32([1, 2]), "blocks/attn/q", 3)
    assert words.tolist() == STREAM
    drawn = random_bits.uniform(words, (2, 3), 2**32 - 3, xp=np)
    assert (drawn * 2**24).astype(int).tolist() == DRAWN


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_pieces_on_the_host_add_up_to_the_checksum(dtype):
    leaf = np.random.default_rng(0).integers(0, 256, 1000).astype(dtype)
    pieces = [(600, leaf[600:]), (0, leaf[:7]), (7, leaf[7:600])]
    total = sum(bits.checksum_of_piece(piece, start) for start, piece in pieces)
    words, index = leaf.astype(np.uint32), bits.indices(leaf.shape, np)
    assert total % 2**32 == int(bits.checksum(words, index))
    assert total % 2**32 == int(jax.jit(bits.checksum)(words, index))


def test_indices_count_rows_alike_in_numpy_and_jax():
    wanted = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    for module in (np, jnp):
        index = bits.indices((2, 3, 4), module)
        assert index.dtype == np.uint32
        np.testing.assert_array_equal(index, wanted)
    assert bits.indices((), np) == 0


def test_every_input_bit_changes_half_of_the_output_bits():
    words = np.random.default_rng(1).integers(0, 2**32, 4000, dtype=np.uint32)
    for bit in range(32):
        changed = bits.mix(words) ^ bits.mix(words ^ np.uint32(1 << bit))
        assert 15.5 < np.bitwise_count(changed).mean() < 16.5


def test_the_mixer_does_not_wait_for_jax():
    code = "import sys, jaxlab.core.bits; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr
