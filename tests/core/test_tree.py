"""Trees: paths, differences, layers, finite leaves, fingerprints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import tree


def test_a_pattern_that_matches_no_path_is_refused():
    params = {"blocks": {"norm": {"scale": 1}}}
    with pytest.raises(ValueError, match=r"'nrom' matches no parameter.*blocks/norm"):
        tree.mask(params, ["norm", "nrom"])


def test_differences_list_everything_at_once():
    a = {"w": jnp.zeros(2), "x": jnp.zeros((2, 3)), "y": jnp.zeros(1)}
    b = {"w": jnp.zeros(2, jnp.bfloat16), "x": jnp.zeros((3, 2)), "z": jnp.zeros(1)}
    assert tree.differences([a, b]) == [
        "tree 1 adds z",
        "tree 1 lacks y",
        "w: float32[2] in tree 0 vs bfloat16[2] in tree 1",
        "x: float32[2,3] in tree 0 vs float32[3,2] in tree 1",
    ]
    assert tree.differences([a, a, a]) == []
    # Without dtypes the first is no difference.
    assert len(tree.differences([a, b], dtypes=False)) == 3
    with pytest.raises(ValueError, match="models differ in 4 places: tree 1 adds z"):
        tree.same_structure([a, b], what="models")


def test_a_third_tree_is_compared_with_the_first():
    a, b = {"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}
    assert tree.differences([a, a, b]) == [
        "w: float32[2] in tree 0 vs float32[3] in tree 2"
    ]


def test_leaves_that_are_not_finite_are_named_and_integers_are_not_asked():
    params = {
        "bad": jnp.array([1.0, jnp.nan]),
        "ids": jnp.arange(3),
        "worse": jnp.array([-jnp.inf], jnp.bfloat16),
        "good": jnp.zeros(2),
    }
    assert tree.non_finite(params) == ["bad", "worse"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_number_of_many_that_is_not_finite_is_seen(dtype):
    for size, place in itertools.product((7, 1000, 100_003), (0, 0.5, -1)):
        place = int(size * place)
        for bad in (np.nan, np.inf, -np.inf):
            values = np.full(size, -1e-30, np.float32)
            assert tree.non_finite({"w": jnp.asarray(values, dtype)}) == []
            values[place] = bad
            assert tree.non_finite({"w": jnp.asarray(values, dtype)}) == ["w"]
    assert tree.non_finite({"w": jnp.zeros(0, dtype)}) == []


def test_a_fingerprint_does_not_depend_on_how_a_leaf_is_sharded():
    value = jax.random.normal(jax.random.key(0), (16, 8))
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placements = [P(), P("data"), P("fsdp", "tensor"), P(("data", "fsdp"), "tensor")]
    prints = [
        tree.fingerprint({"w": jax.device_put(value, NamedSharding(mesh, spec))})
        for spec in placements
    ]
    assert prints == [tree.fingerprint({"w": np.asarray(value)})] * len(placements)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
        ([1.0, -1.0], [-1.0, 1.0]),  # only the sign bits change places
        ([0.0, 1.0], [0.0, -1.0]),
        ([0.0], [-0.0]),
        ([2.0, *[1.0] * 511], [*[1.0] * 256, 2.0, *[1.0] * 255]),
    ],
)
def test_a_fingerprint_sees_values_that_moved_or_changed(before, after):
    for dtype in (jnp.float32, jnp.bfloat16):
        first, second = jnp.array(before, dtype), jnp.array(after, dtype)
        assert tree.fingerprint([first]) != tree.fingerprint([second])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_a_fingerprint_sees_any_single_flipped_bit(index, bit, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, 100, np.uint32)
    flipped = bits.copy()
    flipped[index] ^= np.uint32(1 << bit)
    assert tree.fingerprint({"w": bits}) != tree.fingerprint({"w": flipped})


def test_a_fingerprint_takes_every_dtype_of_a_state():
    state = {
        "bool": jnp.array([True, False]),
        "f16": jnp.ones(2, jnp.float16),
        "f32": np.ones(2, np.float32),
        "i8": jnp.ones(2, jnp.int8),
        "key": jax.random.key(0),
        "step": jnp.zeros((), jnp.int32),
    }
    assert list(tree.fingerprint(state)) == list(tree.flatten(state))
    other = {**state, "key": jax.random.key(1)}
    assert tree.fingerprint(state)["key"] != tree.fingerprint(other)["key"]
