"""Exact search: ties, devices, dtypes, and what cannot be searched."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.retrieval import topk
from tests.support.searches import check_search, expected, whole_numbers

quick = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**16)


@quick
@given(seeds, st.sampled_from([(1, 1), (5, 9), (300, 7), (2000, 3), (2011, 3)]))
def test_search_is_a_stable_argsort_of_the_scores(seed, size):
    rows, k = size
    vectors, queries = (
        whole_numbers(seed, rows, 4),
        whole_numbers(seed + 1, 3, 4),
    )
    check_search(retrieval.Index(vectors), vectors, queries, k)


@pytest.mark.parametrize("queries", [0, 1, 5, 300])
def test_any_number_of_queries_is_answered(queries):
    vectors, some = (
        whole_numbers(0, 70, 4),
        whole_numbers(1, queries, 4),
    )
    check_search(retrieval.Index(vectors), vectors, some, 7)


@pytest.mark.parametrize(("rows", "k"), [(3, 5), (803, 10)])
def test_eight_devices_find_what_one_finds(rows, k):
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2})
    vectors, queries = (
        whole_numbers(2, rows, 4),
        whole_numbers(3, 5, 4),
    )
    index = retrieval.Index(vectors, mesh=mesh)
    check_search(index, vectors, queries, k)
    (_, _, block), *_ = index._blocks
    assert len(block.sharding.device_set) == 8
    assert {shard.data.shape[0] for shard in block.addressable_shards} == {
        -(-rows // 8)
    }
    parts = topk.top_k(queries, topk.place_blocks(vectors, mesh, rows=320), k, mesh)
    np.testing.assert_array_equal(parts.rows, expected(vectors, queries, k)[1])


def test_real_numbers_agree_with_numpy_and_between_devices():
    rng = np.random.default_rng(4)
    vectors, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (2000, 4))
    scores, rows = retrieval.Index(vectors).search(queries, 20)
    wanted = expected(vectors, queries, 20)
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-6)
    np.testing.assert_array_equal(rows, wanted[1])
    sharded = retrieval.Index(vectors, mesh=mesh_lib.make_mesh()).search(queries, 20)
    np.testing.assert_array_equal(sharded[1], rows)
    np.testing.assert_allclose(sharded[0], scores, rtol=1e-6)


def test_equal_vectors_have_equal_scores_wherever_they_are():
    rng = np.random.default_rng(5)
    vectors = np.tile(rng.normal(size=48).astype(np.float32), (1031, 1))
    scores, rows = retrieval.Index(vectors).search(rng.normal(size=(3, 48)), 200)
    assert (scores == scores[:, :1]).all()
    assert (rows == np.arange(200)).all()


def test_zero_is_one_number():
    vectors = np.array([[-1e-30, 0.0], [0.0, 0.0], [0.0, 1.0]], np.float32)
    scores, rows = retrieval.Index(vectors).search(np.array([[1e-30, 0.0]]), 3)
    assert rows.tolist() == [[0, 1, 2]]  # the first product underflows to -0
    assert scores.tolist() == [[0.0, 0.0, 0.0]]


def test_bf16_vectors_are_searched_as_the_f32_they_are():
    rng = np.random.default_rng(6)
    vectors = jnp.asarray(rng.normal(size=(500, 8)), jnp.bfloat16)
    queries = rng.normal(size=(3, 8))
    halves = retrieval.Index(vectors)
    wide = retrieval.Index(np.asarray(vectors, np.float32))
    assert halves.dtype == jnp.bfloat16
    assert wide.dtype == np.float32
    for a, b in zip(halves.search(queries, 9), wide.search(queries, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    assert halves.take([[1, 2]]).dtype == np.float32


def test_few_vectors_or_none_are_all_that_is_returned():
    queries = np.ones((2, 3))
    scores, ids = retrieval.Index(np.zeros((0, 3)), []).search(queries, 5)
    assert scores.shape == ids.shape == (2, 0)
    scores, ids = retrieval.Index(np.ones((2, 3)), ["x", "y"]).search(queries, 5)
    assert ids.tolist() == [["x", "y"]] * 2


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (np.ones(3), None, r"float64\[3\].*\[N, dim\]"),
        ([["a"]], None, r"real numbers"),
        (np.ones((2, 0)), None, r"\[2, 0\]"),
        ([[1.0], [np.nan]], None, "vector 1 is not finite"),
        ([[1.0], [-np.inf]], None, "vector 1 is not finite"),
        ([[1e300]], None, "vector 0 is not finite in float32"),
        (np.ones((2, 1)), ["a"], "1 ids for 2 vectors"),
        (np.ones((2, 1)), ["a", "a"], "'a' is given twice"),
        (np.ones((2, 1)), ["a", 1], "all strings or all whole numbers"),
        (np.ones((2, 1)), [True, False], "all strings or all whole numbers"),
    ],
)
def test_vectors_and_ids_that_do_not_fit_are_named(vectors, ids, message):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index(vectors, ids)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones(2), 1, r"shape \[2\]; use \[Q, 2\]"),
        (np.ones((1, 3)), 1, r"shape \[1, 3\]; use \[Q, 2\]"),
        ([[1.0, np.nan]], 1, "queries: vector 0 is not finite"),
        ([[1e30, 0.0]], 1, "too large for float32; divide"),
        (np.ones((1, 2)), 0, "k 0; use 1 or more"),
    ],
)
def test_queries_that_do_not_fit_are_named(queries, k, message):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index([[1e10, 1.0]]).search(queries, k)


def test_an_index_keeps_its_own_vectors():
    vectors = np.eye(64, 16, dtype=np.float32)
    index = retrieval.Index(vectors)
    vectors[:] = 7
    assert index.search(np.eye(16)[:1], 1)[0] == 1
    assert index.take([0])[0, 0] == 1
