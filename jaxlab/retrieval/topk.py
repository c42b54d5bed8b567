"""Exact top-k of inner products, in memory that is bounded by a block of the corpus.

    scores = queries vectors^T, in f32; the k largest a query, equal ones by lower row

Two levels: a row of scores is cut into groups of neighbours, `top_k` over the groups'
maxima picks k groups, and `top_k` over what they hold picks the k scores. That is
exact: an element of any other group has k group leaders before it. It holds with ties
too, since neighbours and groups are both in row order. Corpus blocks are taken one
after the other and merged into the best so far; on several devices each searches its
rows of a block, and their candidates are merged.

`lax.top_k` sees f32 only: of bf16 and of integers XLA:CPU sorts all, a hundred times as
slow. Vectors kept in bf16 are widened a block at a time, which is exact.

Scores must be finite: NaN would come first. `retrieval.Index` sees to that.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_BLOCK_ROWS = 1 << 17
_BLOCK_BYTES = 1 << 28  # of a block of vectors, once widened to f32
_QUERIES = 256  # at a time: 128 MB of scores with the largest block
_GROUPS = (8, 64)  # smallest and largest group


class Best(NamedTuple):
    """The best rows of each query, best first.

    Attributes:
        scores: f32[Q, k].
        rows: i32[Q, k].
    """

    scores: jax.Array
    rows: jax.Array


def block_rows(rows: int, dim: int) -> int:
    """How many rows a block has, so that few, equal blocks cover the corpus.

    A multiple of 64, so that blocks of a mapped file begin where XLA can read them
    without a copy.

    >>> block_rows(5, 384), block_rows(100_000, 384), block_rows(200_000, 384)
    (64, 100032, 100032)
    """
    most = max(min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * max(dim, 1))), 64)
    count = max(-(-rows // most), 1)
    return -(-max(rows, 1) // count // 64) * 64


def placed_blocks(
    vectors: np.ndarray, mesh: Mesh | None = None, *, rows: int | None = None
) -> Iterator[tuple]:
    """(first row, number of rows, block on the device or devices), one at a time.

    On CPU a block shares the memory of `vectors`, a mapped file included. With a mesh
    it ends in rows of zeros where the devices do not divide it.

    Args:
        vectors: [N, dim], f32 or bf16.
        mesh: whose devices share each block's rows.
        rows: of a block; None is `block_rows`.
    """
    rows = rows or block_rows(*vectors.shape)
    for first in range(0, len(vectors), rows):
        block = vectors[first : first + rows]
        count = len(block)
        if mesh is None:
            yield first, count, jax.device_put(block)
            continue
        if short := -count % mesh.size:
            block = np.pad(block, ((0, short), (0, 0)))
        sharding = NamedSharding(mesh, P(mesh.axis_names))
        yield first, count, jax.device_put(block, sharding)


def top_k(
    queries: np.ndarray, blocks: Iterable[tuple], k: int, mesh: Mesh | None = None
) -> Best:
    """The k best rows of each query.

    Queries are taken in powers of 2, at most 256 at a time, so that few programs are
    compiled for one corpus and k.

    Args:
        queries: f32[Q, dim].
        blocks: of `placed_blocks`, in order.
        k: at least 1; of fewer rows, all are returned.
        mesh: that the blocks were placed on.

    Returns:
        Arrays of numpy, [Q, min(k, rows)].

    >>> vectors = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], np.float32)
    >>> best = top_k(np.eye(2, dtype=np.float32), placed_blocks(vectors), 2)
    >>> best.rows.tolist(), best.scores.tolist()
    ([[0, 2], [1, 0]], [[1.0, 1.0], [2.0, 0.0]])
    """
    parts = _in_parts(queries)
    best: list[Best] = []
    total = 0
    for first, count, block in blocks:
        jax.block_until_ready(best)  # or blocks of a mapped file would pile up
        block = block.astype(jnp.float32)
        new = [_of_block(part, block, first, count, k=k, mesh=mesh) for part in parts]
        pairs = zip(best, new, strict=True) if best else ()
        best = [_merged(a, b, k=k) for a, b in pairs] or new
        total = first + count  # rows of zeros that fill up a mesh are not returned
    if not best:
        shape = (len(queries), 0)
        return Best(np.zeros(shape, np.float32), np.zeros(shape, np.int32))
    whole = (np.concatenate(part) for part in zip(*best, strict=True))
    return Best(*(part[: len(queries), : min(k, total)] for part in whole))


def _in_parts(queries: np.ndarray) -> list[jax.Array]:
    """The queries as equal parts, the last filled up with zeros; at least one."""
    size = min(1 << max(len(queries) - 1, 0).bit_length(), _QUERIES)
    short = -len(queries) % size if len(queries) else size
    padded = np.pad(queries, ((0, short), (0, 0)))
    return [jnp.array(padded[i : i + size]) for i in range(0, len(padded), size)]


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _of_block(queries, block, first, count, *, k, mesh):
    """Best of one block whose first row is the corpus's `first`."""
    if mesh is None:
        best = _selected(_scores(queries, block), k)
        return Best(best.scores, best.rows + first)
    axes = mesh.axis_names

    def local(queries, block, first, count):
        before = jax.lax.axis_index(axes) * len(block)
        scores = _scores(queries, block)
        is_row = before + jnp.arange(len(block)) < count
        best = _selected(jnp.where(is_row[None], scores, -jnp.inf), k)
        return Best(best.scores, best.rows + before + first)

    found = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(axes), P(), P()),
        out_specs=P(None, axes),
    )(queries, block, first, count)
    return _top(found, k)


def _scores(queries, block):
    highest = jax.lax.Precision.HIGHEST  # or TPUs and GPUs round the operands
    return jnp.einsum("qd,nd->qn", queries, block, precision=highest)


def _selected(scores, k):
    """Best of [Q, N] in two levels; all of them where N < k."""
    queries, count = scores.shape
    k, group = min(k, count), _group_size(count, k)
    if 2 * k * group > count:
        return Best(*_largest(scores, k))
    whole = count // group * group
    leaders = jnp.max(scores[:, :whole].reshape(queries, -1, group), axis=-1)
    _, groups = _largest(leaders, k)
    starts = jnp.sort(groups, axis=1) * group  # row order: ties go to the lower row
    kept = jax.vmap(_slices, (0, 0, None))(scores, starts, group)
    candidates = jnp.concatenate([kept.reshape(queries, -1), scores[:, whole:]], axis=1)
    best, places = _largest(candidates, k)
    chosen = jnp.minimum(places // group, k - 1)
    inside = jnp.take_along_axis(starts, chosen, axis=1) + places % group
    rows = jnp.where(places < k * group, inside, places - k * group + whole)
    return Best(best, rows)


def _largest(scores, k):
    return jax.lax.top_k(jnp.where(scores == 0, 0.0, scores), k)  # or 0 is before -0


def _group_size(count, k):
    """The power of 2 nearest to sqrt(count / k): both levels then see as many."""
    size = 1 << round(math.log2(max(count / k, 1)) / 2)
    return min(max(size, _GROUPS[0]), _GROUPS[1])


def _slices(row, starts, size):
    return jax.vmap(lambda start: jax.lax.dynamic_slice(row, (start,), (size,)))(starts)


@functools.partial(jax.jit, static_argnames="k")
def _merged(a, b, *, k):
    """Best of two; of equal scores those of `a`, whose rows are lower."""
    both = (jnp.concatenate(x, axis=1) for x in zip(a, b, strict=True))
    return _top(Best(*both), k)


def _top(found, k):
    scores, places = jax.lax.top_k(found.scores, min(k, found.scores.shape[1]))
    return Best(scores, jnp.take_along_axis(found.rows, places, axis=1))
