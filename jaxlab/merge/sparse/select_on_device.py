"""The k-th largest magnitude under `jit` and on sharded arrays: by counting, no sort.

A non-negative float orders as its bit pattern read as an integer does, so the pattern
of the k-th largest is the greatest t with `count(patterns >= t) >= k`. Two bits of it
are found a pass, by counting against three thresholds: 16 passes for float32.

A count moves single numbers between devices, where a sort gathers the array: the
compiled program of a sharded leaf holds scalar all-reduces and no all-gather. With a
single device the three counts are one reduction of three operands, which XLA:CPU fuses
with the comparisons (5 ns an element for all passes; 27 for 31 passes of a plain sum,
for which XLA writes the comparisons to memory first). XLA would gather the operands of
such a reduction if they are sharded, so with more devices there are three sums.

Totals may pass 2^32, hence the counts in two words of which the lower has 16 bits. A
leaf of more elements (the stacked layers of 70B parameters) is counted along its first
axis, slice by slice.

Conventions: see `merge.sparse.select_on_host`, with which every result agrees to
the bit.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import bits as bits_lib

LIMIT = 2**32 - 1  # elements that one word counts


def bits(values: jax.Array) -> jax.Array:
    """The bit patterns of magnitudes of float32 (uint32) or float64 (uint64)."""
    unsigned = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
    info = np.finfo(values.dtype)
    smallest, infinity = (
        np.array(x, values.dtype).view(unsigned)[()] for x in (info.tiny, np.inf)
    )
    patterns = jax.lax.bitcast_convert_type(jnp.abs(values), unsigned)
    patterns = jnp.minimum(patterns, infinity + unsigned.type(1))
    return jnp.where(patterns < smallest, unsigned.type(0), patterns)


def words(rank):
    """A count below 2^48 as `uint32[..., 2]`: what is above its low 16 bits, and these.

    Of integers or of floats without a fraction.

    >>> words(65537).tolist()
    [1, 1]
    """
    xp = jnp if isinstance(rank, jax.Array) else np
    rank = xp.asarray(rank)
    high = rank // 2**16
    return xp.stack([high, rank - high * 2**16], axis=-1).astype(np.uint32)


def total(flags: jax.Array) -> jax.Array:
    """How many of an array's booleans are true, as `words`."""
    return _counts([flags.astype(jnp.uint32)], [jnp.uint32(1)])[0]


def largest(parts: Sequence[jax.Array], rank: jax.Array) -> jax.Array:
    """The element of this rank among unsigned integers in arrays of any shapes.

    Args:
        parts: arrays of one unsigned dtype; those of more than `LIMIT` elements of at
            most 2^16 slices of fewer.
        rank: uint32[2] as `words` gives it; 1 is the largest. For 0 the result is the
            greatest integer, for a rank beyond the number of elements it is 0.
    """
    dtype = parts[0].dtype
    steps = 4 * dtype.itemsize

    def narrow(step, prefix):
        shift = (2 * (steps - 1 - step)).astype(dtype)
        thresholds = [prefix + (dtype.type(digit) << shift) for digit in (1, 2, 3)]
        reached = [_reaches(count, rank) for count in _counts(parts, thresholds)]
        return prefix + (sum(r.astype(dtype) for r in reached) << shift)

    # Shaped as the rank's words are, so that vmap over ranks finds one carry.
    start = jnp.zeros_like(rank[0], dtype)
    return jax.lax.fori_loop(0, steps, narrow, start)


def stops(parts: Sequence[jax.Array], cut: jax.Array, rank: jax.Array) -> list:
    """Per part, the flat index before which its elements equal to `cut` are kept.

    So many are kept that with those above the cut there are `rank`; the first parts
    and the lowest indices come first. Costs as much as `largest` once more, and moves
    no more: an index is found by counting, too. Parts have at most `LIMIT` elements.
    """
    one = parts[0].dtype.type(1)
    left = _subtract(rank, _counts(parts, [cut + one])[0])
    results = []
    for part in parts:
        equal = part == cut
        count = total(equal)
        share = jnp.where(_reaches(left, count), count, left)
        backwards = jnp.where(
            equal,
            jnp.uint32(LIMIT) - bits_lib.indices(part.shape, jnp),
            jnp.uint32(0),
        )
        last = jnp.uint32(LIMIT) - largest([backwards], share)
        results.append(jnp.where((share == 0).all(), jnp.uint32(0), last + 1))
        left = _subtract(left, share)
    return results


def _counts(parts, thresholds):
    """How many elements reach each threshold, in two words."""
    totals = []
    for column in zip(*(_count(part, thresholds) for part in parts), strict=True):
        column = [_total(c) for c in column]
        high, low = (sum(words) for words in zip(*column, strict=True))
        totals.append(jnp.stack([high + (low >> 16), low & 0xFFFF]))
    return totals


def _total(counts):
    """The two words of one count, or of the sum over slices."""
    high, low = jnp.sum(counts >> 16), jnp.sum(counts & 0xFFFF)
    return high + (low >> 16), low & 0xFFFF


def _count(part, thresholds):
    flags = tuple((part >= t).astype(jnp.uint32) for t in thresholds)
    if part.size > LIMIT:
        axes = tuple(range(1, part.ndim))
        return [jnp.sum(flag, axes, dtype=jnp.uint32) for flag in flags]
    if jax.device_count() > 1:
        return [jnp.sum(flag, dtype=jnp.uint32) for flag in flags]
    return jax.lax.reduce(
        flags,
        (jnp.uint32(0),) * len(flags),
        lambda a, b: tuple(map(jax.lax.add, a, b)),
        tuple(range(part.ndim)),
    )


def _reaches(count, rank):
    return (count[0] > rank[0]) | ((count[0] == rank[0]) & (count[1] >= rank[1]))


def _subtract(a, b):
    """`a - b` of two-word counts, `a` not below `b`."""
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return jnp.stack([a[0] - b[0] - borrow, (a[1] + (borrow << 16)) - b[1]])
