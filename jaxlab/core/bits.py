"""The 32-bit mixer behind checksums of checkpoints and random masks of merges.

    mix         the finalizer of MurmurHash3 (Appleby 2011): a bijection in which every
                input bit changes half of the output bits
    checksum    sum_i mix(word_i + i * 2^32 / golden ratio)   mod 2^32

The same bits from numpy and from jax: arrays of either go in and come out. They are in
files that are read for ever, so no value here may change.
"""

from typing import Any

import numpy as np

GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio
_STEPS = ((16, np.uint32(0x85EBCA6B)), (13, np.uint32(0xC2B2AE35)))
_LAST = 16


def mix(bits: Any) -> Any:
    """uint32 -> uint32, elementwise.

    >>> hex(int(mix(np.uint32([1]))[0]))
    '0x514e28b7'
    """
    for shift, factor in _STEPS:
        bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> _LAST)


def checksum(words: Any, index: Any) -> Any:
    """The checksum of words at their places in a leaf, a uint32.

    Integer addition wraps and commutes, so parts of a leaf add up in any order.

    Args:
        words: uint32[...], the bits of the numbers.
        index: uint32 of the same shape, as of `indices`.
    """
    return mix(words + index * GOLDEN).sum(dtype=np.uint32)


def checksum_of_piece(words: np.ndarray, start: int) -> int:
    """`checksum` of a flat piece on the host, without arrays between; not yet mod 2^32.

    Args:
        words: uint8, uint16 or uint32[n].
        start: index of the first in its leaf.
    """
    bits = np.arange(start, start + len(words), dtype=np.uint64).astype(np.uint32)
    bits *= GOLDEN
    bits += words
    for shift, factor in _STEPS:
        bits ^= bits >> np.uint32(shift)
        bits *= factor
    bits ^= bits >> np.uint32(_LAST)
    return int(bits.sum(dtype=np.uint64))


def indices(shape: tuple[int, ...], xp: Any) -> Any:
    """uint32[shape]: the row-major index of every element, sharded as it is used.

    Of more than 2^32 elements the lower words.

    Args:
        shape: of a leaf.
        xp: `numpy` or `jax.numpy`.
    """
    index = xp.zeros(shape, np.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        along = xp.arange(shape[axis], dtype=np.uint32) * np.uint32(stride % 2**32)
        others = [other for other in range(len(shape)) if other != axis]
        index = index + xp.expand_dims(along, others)
        stride *= shape[axis]
    return index
