"""Uniform random numbers by counter: number i depends on nothing but (stream, i).

So a leaf that is cut into chunks or sharded over devices draws the numbers of the
whole, wherever they are computed and with nothing gathered; and a model's mask of a
leaf depends on the key, the leaf's path and the model's number only, not on which
other leaves or models are merged.

    u(i) = mix(mix(low(i) ^ s_0) + s_1 + high(i) * 2^32 / golden ratio) / 2^32

with `mix` of `core/bits.py`, a stream's two words s, and the two words of a 64-bit
index. Enough for masks; not for cryptography.

The same bits from numpy and from jax; `xp` says which of the two.
"""

import zlib
from typing import Any

import numpy as np

from jaxlab.core import bits as bits_lib


def stream(key: Any, path: str, number: int) -> Any:
    """The two words from which one model's numbers for one leaf come.

    Args:
        key: uint32 words, at least one: `jax.random.key_data` of a key.
        path: of the leaf.
        number: of the model.

    Returns:
        uint32[2], of numpy or jax as `key` is.
    """
    words = [key[i] for i in range(len(key))]
    words += [np.uint32(zlib.crc32(path.encode())), np.uint32(number)]
    first = second = np.uint32(len(words))
    with np.errstate(over="ignore"):  # of numpy's scalars; arrays wrap in silence
        for word in words:
            moved = second + word * bits_lib.GOLDEN + bits_lib.GOLDEN
            first, second = bits_lib.mix(first ^ word), bits_lib.mix(moved)
    module = np if isinstance(key, np.ndarray) else _jax_numpy()
    return module.stack([first, second])


def uniform(words: Any, shape: tuple[int, ...], start: int = 0, *, xp: Any) -> Any:
    """Numbers `start`, `start + 1`, ... of a stream, in row-major order.

    Args:
        words: uint32[2] from `stream`.
        shape: of fewer than 2^32 elements, or of slices of fewer.
        start: index of the first, below 2^64: the place of a chunk in its leaf.
        xp: `numpy` or `jax.numpy`.

    Returns:
        f32[shape] in [0, 1), multiples of 2^-24.
    """
    begin, above = np.uint32(start & 0xFFFFFFFF), np.uint32(start >> 32)
    with np.errstate(over="ignore"):
        low = begin + bits_lib.indices(shape, xp)
        above = above + _wraps(shape, xp) + (low < begin).astype(np.uint32)
        high = above * bits_lib.GOLDEN
        bits = bits_lib.mix(bits_lib.mix(low ^ words[0]) + (high + words[1]))
    return (bits >> 8).astype(np.float32) * np.float32(2**-24)


def _wraps(shape, xp):
    """The upper words of the indices."""
    inner = int(np.prod(shape[1:], dtype=object))
    if not shape or shape[0] * inner <= 2**32:
        return np.uint32(0)
    first = xp.arange(shape[0], dtype=np.uint32).reshape(-1, *(1,) * (len(shape) - 1))
    # Not a table of 64-bit products: compilers compute iotas again, tables they keep.
    upper, lower = first * np.uint32(inner >> 16), first * np.uint32(inner & 0xFFFF)
    start = (upper << 16) + lower
    high = (upper >> 16) + (start < lower).astype(np.uint32)
    return high + (bits_lib.indices(shape, xp) < start).astype(np.uint32)


def _jax_numpy():
    import jax.numpy

    return jax.numpy
