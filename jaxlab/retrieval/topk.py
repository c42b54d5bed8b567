"""Exact top-k of inner products, in memory that is bounded by a block of the corpus.

    scores = queries vectors^T, in f32; the k largest per query, equal ones by lower row

Two levels: a row of scores is cut into groups of neighbours, `top_k` over the groups'
maxima picks k groups, and `top_k` over what they hold picks the k scores. That is
exact: an element of any other group has k group leaders before it. It holds with ties
too, since neighbours and groups are both in row order. Corpus blocks are taken one
after the other and merged into the best so far; on several devices each searches its
rows of a block, and their candidates are merged.

`lax.top_k` sees f32 only: of bf16 and of integers XLA:CPU sorts all, a hundred times as
slow. Vectors in bf16 are widened a block at a time, which is exact.

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
_PARTS = 16  # so many times a program takes queries, in the memory of one time
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


def place_blocks(
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

    Queries are taken in equal parts of at most 256, and up to 16 parts by one program:
    the system clears the memory of the scores once per program, which for 1,000 queries
    and 100,000 rows would otherwise be a quarter of all time. Few programs are
    compiled for one corpus and k: parts are a power of 2, or a multiple of 8 above 128.

    Args:
        queries: f32[Q, dim].
        blocks: of `place_blocks`, in order.
        k: at least 1; of fewer rows, all are returned.
        mesh: that the blocks were placed on.

    Returns:
        Arrays of numpy, [Q, min(k, rows)].

    >>> vectors = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], np.float32)
    >>> best = top_k(np.eye(2, dtype=np.float32), place_blocks(vectors), 2)
    >>> best.rows.tolist(), best.scores.tolist()
    ([[0, 2], [1, 0]], [[1.0, 1.0], [2.0, 0.0]])
    """
    calls = _calls(queries)
    best: list[Best] = []
    total = 0
    for first, count, block in blocks:
        jax.block_until_ready(best)  # or blocks of a mapped file would pile up
        block = block.astype(jnp.float32)
        new = [
            _search_block(*call, block, first, count, k=k, mesh=mesh) for call in calls
        ]
        pairs = zip(best, new, strict=True) if best else ()
        best = [_merge(a, b, k=k) for a, b in pairs] or new
        total = first + count  # rows of zeros that fill up a mesh are not returned
    if not best:
        shape = (len(queries), 0)
        return Best(np.zeros(shape, np.float32), np.zeros(shape, np.int32))
    whole = (np.concatenate(part) for part in zip(*best, strict=True))
    return Best(*(part[: len(queries), : min(k, total)] for part in whole))


def _calls(queries: np.ndarray) -> list[tuple[jax.Array, int]]:
    """(f32[P, S, dim], how many of P parts hold queries) of each program's call.

    >>> [(x.shape, parts) for x, parts in _calls(np.ones((1000, 2), np.float32))]
    [((4, 256, 2), 4)]
    >>> [(x.shape, parts) for x, parts in _calls(np.ones((5000, 2), np.float32))]
    [((16, 256, 2), 16), ((16, 256, 2), 4)]
    """
    count = max(len(queries), 1)
    parts = -(-count // _QUERIES)
    size = -(-count // parts)
    size = -(-size // 8) * 8 if size > _QUERIES // 2 else 1 << (size - 1).bit_length()
    calls = 1 << (min(parts, _PARTS) - 1).bit_length()
    padded = np.zeros((-(-parts // calls), calls, size, queries.shape[1]), np.float32)
    padded.reshape(-1, queries.shape[1])[: len(queries)] = queries
    return [
        (jnp.array(part), min(parts - i * calls, calls))
        for i, part in enumerate(padded)
    ]


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _search_block(queries, parts, block, first, count, *, k, mesh):
    """Best[P S, k] of one block whose first row is the corpus's `first`."""
    if mesh is None:
        best = _search_parts(queries, parts, block, k)
        return Best(best.scores, best.rows + first)
    axes = mesh.axis_names

    def local(queries, parts, block, first, count):
        before = jax.lax.axis_index(axes) * len(block)
        is_row = before + jnp.arange(len(block)) < count
        best = _search_parts(queries, parts, block, k, is_row, axes)
        return Best(best.scores, best.rows + before + first)

    best = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), P(axes), P(), P()),
        out_specs=P(None, axes),
    )(queries, parts, block, first, count)
    return _top(best, k)


def _search_parts(queries, parts, block, k, is_row=None, axes=()):
    """Best[P S, k], the first `parts` of P parts filled; on the mesh's `axes`."""

    def fill_part(i, best):
        scores = _scores(queries[i], block)
        if is_row is not None:
            scores = jnp.where(is_row[None], scores, -jnp.inf)
        part = _select(scores, k)
        return jax.tree.map(lambda every, one: every.at[i].set(one), best, part)

    shape = (*queries.shape[:2], min(k, len(block)))
    empty = Best(jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
    empty = jax.lax.pcast(empty, axes, to="varying")
    best = jax.lax.fori_loop(0, parts, fill_part, empty)
    return jax.tree.map(lambda x: x.reshape(-1, shape[-1]), best)


def _scores(queries, block):
    highest = jax.lax.Precision.HIGHEST  # or TPUs and GPUs round the operands
    return jnp.einsum("qd,nd->qn", queries, block, precision=highest)


def _select(scores, k):
    """Best of [Q, N] in two levels; all of them where N < k."""
    queries, count = scores.shape
    k, group = min(k, count), _group_size(count, k)
    if 2 * k * group > count:
        return Best(*_largest(scores, k))
    whole = count // group * group
    leaders = jnp.max(scores[:, :whole].reshape(queries, -1, group), axis=-1)
    _, groups = _largest(leaders, k)
    starts = jnp.sort(groups, axis=1) * group  # row order: ties go to the lower row
    inside_groups = jax.vmap(_slices, (0, 0, None))(scores, starts, group)
    candidates = jnp.concatenate(
        [inside_groups.reshape(queries, -1), scores[:, whole:]], axis=1
    )
    best, positions = _largest(candidates, k)
    chosen = jnp.minimum(positions // group, k - 1)
    inside = jnp.take_along_axis(starts, chosen, axis=1) + positions % group
    rows = jnp.where(positions < k * group, inside, positions - k * group + whole)
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
def _merge(a, b, *, k):
    """Best of two; of equal scores those of `a`, whose rows are lower."""
    both = (jnp.concatenate(x, axis=1) for x in zip(a, b, strict=True))
    return _top(Best(*both), k)


def _top(best, k):
    scores, positions = jax.lax.top_k(best.scores, min(k, best.scores.shape[1]))
    return Best(scores, jnp.take_along_axis(best.rows, positions, axis=1))
