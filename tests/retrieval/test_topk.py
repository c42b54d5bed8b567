"""Top-k of inner products, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.retrieval import topk
from tests.support.searches import expected, whole_numbers

quick = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**16)


@quick
@given(seeds)
def test_blocks_are_merged_in_row_order(seed):
    vectors, queries = (
        whole_numbers(seed, 300, 4),
        whole_numbers(seed + 1, 3, 4),
    )
    blocks = topk.place_blocks(vectors, rows=64)  # the last one has 44
    found = topk.top_k(queries, blocks, 50)
    scores, rows = expected(vectors, queries, 50)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


def test_top_k_never_sees_anything_but_f32(monkeypatch):
    seen, real = [], jax.lax.top_k

    def spy(operand, k):
        seen.append(operand.dtype)
        return real(operand, k)

    monkeypatch.setattr(jax.lax, "top_k", spy)
    jax.clear_caches()  # or nothing is traced
    for rows in (8, 4096):
        retrieval.Index(jnp.ones((rows, 8), jnp.bfloat16)).search(np.ones((2, 8)), 4)
    assert len(seen) == 3  # one level, then two
    assert {*seen} == {jnp.dtype("float32")}


@given(st.integers(1, 10**7), st.integers(1, 4096))
def test_blocks_are_bounded_equal_and_aligned(rows, dim):
    block = topk.block_rows(rows, dim)
    count = -(-rows // block)
    assert block % 64 == 0
    assert block <= 2**17
    assert 4 * dim * (block - 64) < 2**28
    assert block * count < rows + 64 * (count + 1)
