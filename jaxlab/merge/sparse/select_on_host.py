"""The k-th largest magnitude of numbers on the host, exactly and without a sort.

A non-negative float orders as its bit pattern read as an integer does. Two ways:

- `cuts`, of arrays. A strided sample gives a bracket that holds the k-th largest
  almost surely; one pass counts what lies above it and collects what lies in it (a
  few percent), which alone are sorted. Where the sample misled, the digits below
  decide: always exact.
- Digit by digit, of a stream that is read once a round, in memory that does not grow.
  `digit_counts` counts how often every digit of 16 bits occurs among the numbers that
  agree with what is known; `find` takes the digit in which the k-th largest falls.
  Counts add up over chunks and leaves. Two rounds for float32:

    prefix, rank = None, k
    for shift in DIGITS[4]:
        counts = sum(digit_counts(bits(base, tuned), prefix, shift) for ... in chunks)
        digit, rank = find(counts, rank)
        prefix = digit if prefix is None else prefix << 16 | digit

  leaves the cut's pattern in `prefix`, and in `rank` how many of the elements equal to
  it are among the k largest.

Measured on 25M float32, nanoseconds of one core an element: bracket 2.7, digits
11.2, introselect of |d| 11.6. Only the bracket gains from threads: numpy's
`bincount` and `partition` hold the interpreter.

Conventions, the same in `merge.sparse.select_on_device`: magnitudes below the
smallest normal number count as 0 (XLA flushes them on some devices), and NaN is larger
than infinity.

Numpy only: merging files need not import jax.
"""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np

# Bytes of the float -> the shifts of its digits.
DIGITS = {4: (16, 0), 8: (48, 32, 16, 0)}
CHUNK = 1 << 17  # elements; the buffers of one thread about fill its cache
SAMPLE = 1 << 14

# One array of magnitudes to select from: |tuned - base|, or |tuned| if base is None.
Part = tuple[np.ndarray | None, np.ndarray]


def cuts(parts: Sequence[Part], ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The magnitudes of the given ranks among all elements of all parts.

    Args:
        parts: pairs of arrays of any shape and floating dtype.
        ranks: 1 is the largest; 0 lies above everything, a rank beyond the number of
            elements below everything.

    Returns:
        For each rank the bit pattern of that magnitude, and how many of the elements
        equal to it belong to the `rank` largest.

    >>> (pattern, equal), = cuts([(None, np.float32([1, -4, 2, 4]))], [2])
    >>> np.uint32(pattern).view(np.float32), equal
    (np.float32(4.0), 2)
    """
    parts = [
        (None if base is None else base.reshape(-1), tuned.reshape(-1))
        for base, tuned in parts
    ]
    itemsize = max((wide(tuned.dtype).itemsize for _, tuned in parts), default=4)
    size = sum(tuned.size for _, tuned in parts)
    by_rank = {0: ((1 << 8 * itemsize) - 1, 0)}
    inside = sorted({rank for rank in ranks if 0 < rank <= size})
    if inside:
        by_rank |= _cuts_by_bracket(parts, inside, size)
    if missed := [rank for rank in inside if rank not in by_rank]:
        by_rank |= _cuts_by_digit(parts, missed, DIGITS[itemsize])
    return [by_rank.get(rank, (0, rank)) for rank in ranks]


def bits(
    base: np.ndarray | None, tuned: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """The bit patterns of `|tuned - base|`, widened as every merge widens.

    Args:
        base: floats, or None for `|tuned|`.
        tuned: floats of the same shape.
        out: a buffer of that shape and the widened dtype to work in.

    Returns:
        uint32, or uint64 for float64, of the same shape.
    """
    wider = wide(tuned.dtype)
    out = np.empty(tuned.shape, wider) if out is None else out
    patterns = _difference(base, tuned, out).view(f"u{wider.itemsize}")
    sign, smallest, infinity = (
        np.array(x, wider).view(patterns.dtype)[()]
        for x in (-0.0, np.finfo(wider).tiny, np.inf)
    )
    np.bitwise_and(patterns, ~sign, out=patterns)
    np.minimum(patterns, infinity + patterns.dtype.type(1), out=patterns)
    # Not `patterns < smallest`: of the zeros themselves there may be very many.
    patterns[patterns - 1 < smallest - 1] = 0
    return patterns


def _difference(base, tuned, out):
    """`tuned - base`, widened, in `out`."""
    if base is not None and base.dtype == tuned.dtype == out.dtype:
        return np.subtract(tuned, base, out=out)
    _widen(tuned, out)
    if base is not None:
        np.subtract(out, _widen(base, np.empty_like(out)), out=out)
    return out


def _widen(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The values in a wider buffer."""
    if values.dtype.name != "bfloat16":
        np.copyto(out, values)
        return out
    # By integers: numpy casts a dtype that is not its own slowly, and one at a time.
    bits_of = out.view(np.uint32)
    np.copyto(bits_of, values.view(np.uint16))
    np.left_shift(bits_of, 16, out=bits_of)
    return out


def digit_counts(patterns: np.ndarray, prefix: int | None, shift: int) -> np.ndarray:
    """How often each 16-bit digit occurs at `shift` behind the known leading digits.

    Args:
        patterns: what `bits` gives, flat.
        prefix: the digits above `shift + 16` as one number; None in the first round.

    Returns:
        int64[65536]; additive over chunks.
    """
    if prefix is not None:
        patterns = patterns[patterns >> (shift + 16) == prefix]
    return np.bincount((patterns >> shift) & 0xFFFF, minlength=1 << 16)


def find(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The digit that holds the element of this rank, and its rank inside the digit."""
    from_above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_above, rank))
    digit = len(counts) - 1 - position
    return digit, rank - int(from_above[position] - counts[digit])


def stop_after(parts: Sequence[Part], pattern: int, count: int) -> list[int]:
    """Per part, the flat index before which its share of the first `count` equals lie.

    Equals are the elements whose pattern is `pattern`, numbered through the parts in
    order and within a part by flat index.
    """
    stops = []
    for base, tuned in parts:
        base, tuned = None if base is None else base.reshape(-1), tuned.reshape(-1)
        stop = 0
        for start in range(0, tuned.size if count else 0, CHUNK):
            equals = np.flatnonzero(_chunk_bits(base, tuned, start) == pattern)[:count]
            if equals.size:
                count, stop = count - equals.size, start + int(equals[-1]) + 1
            if not count:
                break
        stops.append(stop)
    return stops


def row_ranks(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """The rank of every `|tuned - base|` in its row, from 0; of equals the first first.

    Rows run along axis 1; a vector or a scalar is one row.

    Returns:
        uint16, or uint32 for longer rows, of the same shape.

    >>> row_ranks(np.zeros((1, 4)), np.array([[3.0, -1, 2, 1]])).tolist()
    [[3, 0, 2, 1]]
    """
    shape, axis = tuned.shape, min(1, max(tuned.ndim - 1, 0))
    base, tuned = (np.moveaxis(np.atleast_1d(x), axis, -1) for x in (base, tuned))
    size = tuned.shape[-1]
    ranks = np.empty(tuned.shape, np.uint16 if size <= 1 << 16 else np.uint32)
    rows = [x.reshape(-1, size) for x in (base, tuned, ranks)] if size else []
    step = max(1, 8 * CHUNK // max(size, 1))
    starts = range(0, len(rows[0]) if rows else 0, step)

    def rank(start):
        some = slice(start, start + step)
        patterns = bits(rows[0][some], rows[1][some])
        if patterns.dtype == np.uint32:  # one sort of (pattern, index): unique, fast
            keys = patterns.astype(np.uint64) << 32 | np.arange(size, dtype=np.uint64)
            keys.sort(axis=1)
            order = (keys & 0xFFFFFFFF).astype(np.intp)
        else:
            order = np.argsort(patterns, axis=1, kind="stable")
        numbers = np.arange(size, dtype=ranks.dtype)
        np.put_along_axis(rows[2][some], order, numbers[None], axis=1)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(rank, starts))
    return np.moveaxis(ranks, -1, axis).reshape(shape)


def wide(dtype: np.dtype) -> np.dtype:
    """What a floating dtype is computed in: float64 stays, all others are float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _cuts_by_bracket(parts, ranks, size):
    """The cut of each rank that its bracket holds, by rank."""
    stride = size // SAMPLE | 1  # odd: not always the same column
    sample = np.sort(
        np.concatenate(
            [bits(None if b is None else b[::stride], t[::stride]) for b, t in parts]
        )
    )
    brackets = {}
    for rank in ranks:
        position = len(sample) * (1 - rank / size)
        margin = 2 + 4 * np.sqrt(position * rank / size)  # 4 standard deviations
        low, high = np.clip([position - margin, position + margin], 0, len(sample) - 1)
        brackets[rank] = sample[int(low)], sample[int(high)]

    wider = wide(parts[0][1].dtype)
    tiny, infinity = np.finfo(wider).tiny, np.array(np.inf, wider)
    ends = [pattern.view(wider) for bracket in brackets.values() for pattern in bracket]
    # Plain floats order as their patterns do unless zeros, denormals or NaN decide;
    # then the patterns, which take three times as many passes, are needed.
    plain = all(tiny <= end <= infinity for end in ends)
    values = ends if plain else [x for bracket in brackets.values() for x in bracket]

    def collect(numbers):
        for low, high in zip(values[::2], values[1::2], strict=True):
            under = numbers < high
            yield numbers.size - np.count_nonzero(numbers <= high)  # NaN is above
            yield numbers.size - np.count_nonzero(under)
            yield numbers.size - np.count_nonzero(numbers < low)
            # Strictly between: of coarse numbers (bf16) many equal the ends.
            yield numbers[np.logical_and(under, numbers > low, out=under)].view(
                unsigned
            )

    unsigned = f"u{wider.itemsize}"
    read = _chunk_magnitudes if plain else _chunk_bits
    totals = zip(*_over_blocks(parts, collect, read), strict=True)
    cuts = {}
    for rank, (low, high) in brackets.items():
        above, from_high, from_low = (
            int(sum(map(sum, next(totals)))) for _ in range(3)
        )
        inner = np.concatenate([piece for row in next(totals) for piece in row])
        left = rank - from_high
        if above < rank <= from_high:
            cuts[rank] = int(high), rank - above
        elif 0 < left <= len(inner):
            inner.sort()
            cut = inner[-left]
            above_cut = len(inner) - int(np.searchsorted(inner, cut, "right"))
            cuts[rank] = int(cut), left - above_cut
        elif len(inner) < left <= from_low - from_high:
            cuts[rank] = int(low), left - len(inner)
    return cuts


def _cuts_by_digit(parts, ranks, shifts):
    """The cut of each rank, by rank."""
    cuts = {rank: (None, rank) for rank in ranks}
    for shift in shifts:
        prefixes = dict.fromkeys(prefix for prefix, _ in cuts.values())

        def count(patterns, prefixes=prefixes, shift=shift):
            return [digit_counts(patterns, prefix, shift) for prefix in prefixes]

        columns = zip(*_over_blocks(parts, count), strict=True)
        counts = dict(zip(prefixes, (sum(map(sum, c)) for c in columns), strict=True))
        for rank, (prefix, left) in cuts.items():
            digit, left = find(counts[prefix], left)
            cuts[rank] = digit | (0 if prefix is None else prefix << 16), left
    return cuts


def _over_blocks(parts, function, read=None):
    """`function` of what `read` makes of every chunk, in threads; None: bit patterns.

    Returns:
        One row a block of chunks: for each thing that `function` gives, a list of it.
    """
    workers, read = os.cpu_count() or 1, read or _chunk_bits
    blocks = []
    for base, tuned in parts:
        step = max(1, tuned.size // (4 * workers * CHUNK)) * CHUNK
        blocks += [(base, tuned, start, step) for start in range(0, tuned.size, step)]

    def run(block):
        base, tuned, first, step = block
        buffer = np.empty(CHUNK, wide(tuned.dtype))
        starts = range(first, min(first + step, tuned.size), CHUNK)
        chunks = [tuple(function(read(base, tuned, s, buffer))) for s in starts]
        return [list(column) for column in zip(*chunks, strict=True)]

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, blocks))


def _chunk_bits(base, tuned, start, buffer=None):
    piece = slice(start, start + CHUNK)
    tuned = tuned[piece]
    out = None if buffer is None else buffer[: tuned.size]
    return bits(None if base is None else base[piece], tuned, out)


def _chunk_magnitudes(base, tuned, start, buffer):
    piece = slice(start, start + CHUNK)
    out = buffer[: tuned[piece].size]
    _difference(None if base is None else base[piece], tuned[piece], out)
    return np.abs(out, out=out)
