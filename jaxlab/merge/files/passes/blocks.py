"""Linear combinations of blocks of numbers on the host, in buffers that are used again.

A block is read, widened (float32; float64 where the numbers are that), combined and
rounded once. Reused buffers that stay in the cache make this as fast as reading and
writing the files; it needs neither jax nor a copy of a model.

    anchored   theta_a - sum_{k != a} c_k (theta_a - theta_k)
    free       sum_k c_k theta_k

The first is the second where the coefficients sum to 1, and is a base plus scaled
differences. It returns exactly `theta_a` where all numbers are equal, zeros' signs
included: the subtraction is written the way that keeps -0.0.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors

# (model k, vector, again) -> None: fills it with model k's numbers of some range;
# `again` where they may have been read before.
Read = Callable[[int, np.ndarray, bool], None]

# Of a widened block. Smaller ones would fit the level-2 cache, but then two threads
# wait for the interpreter more than for memory: 256 KiB takes twice as long as 1 MiB.
BLOCK_BYTES = 1 << 20
BUFFERS = 6


class Combination(NamedTuple):
    """The coefficients of one tensor.

    Attributes:
        coefficients: one a model.
        anchor: the model that differences are taken from, or None.
        is_mean: the coefficients sum to 1 and the result is an average: an infinity of
            the anchor must not become the NaN that infinity minus infinity is.
    """

    coefficients: tuple[float, ...]
    anchor: int | None = None
    is_mean: bool = False


def mean(weights: Sequence[float]) -> Combination:
    """The weighted average; weights that sum to 0 are refused before."""
    total = float(np.sum(np.asarray(weights, np.float64)))
    shares = tuple(float(weight) / total for weight in weights)
    return Combination(shares, int(np.argmax(np.abs(shares))), True)


class Workspace:
    """The buffers of one thread.

    Args:
        block_bytes: of a widened block.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES):
        self.block_bytes = block_bytes
        self._buffers = [np.empty(block_bytes, np.uint8) for _ in range(BUFFERS)]

    def view(self, index: int, dtype: np.dtype, count: int) -> np.ndarray:
        """A buffer as a vector."""
        return self._buffers[index][: count * np.dtype(dtype).itemsize].view(dtype)


def combine(
    read: Read,
    dtypes: Sequence[np.dtype],
    wide: np.dtype,
    combination: Combination,
    count: int,
    space: Workspace,
) -> np.ndarray:
    """One block, widened: a buffer of `space`, good until the next call.

    Args:
        read: fills a vector with the block of model k.
        dtypes: of the models' numbers.
        wide: what they are computed in.
        combination: of the block's tensor.
        count: numbers in the block.
    """
    origin, total, term = (space.view(i, wide, count) for i in range(3))
    anchor = combination.anchor

    def load(k, out, again=False):
        raw = out if dtypes[k] == wide else space.view(3, dtypes[k], count)
        read(k, raw, again)
        if raw is not out:
            np.copyto(out, raw)

    if anchor is not None:
        load(anchor, origin)
    first = True
    for k, coefficient in enumerate(combination.coefficients):
        if k == anchor or (coefficient == 0 and anchor is not None):
            continue
        out = total if first else term
        load(k, out)
        if anchor is not None:
            np.subtract(origin, out, out=out)
        np.multiply(out, wide.type(coefficient), out=out)
        if not first:
            np.add(total, term, out=total)
        first = False
    if anchor is None:
        return total
    if first:
        return origin
    np.subtract(origin, total, out=total)
    if combination.is_mean and np.isnan(np.minimum.reduce(total)):
        _mend(load, combination.coefficients, origin, total, term, space)
    return total


def _mend(load, coefficients, origin, total, term, space) -> None:
    """Where infinities made NaNs: the plain sum, or the number that all share."""
    broken = np.flatnonzero(np.isnan(total))
    plain = np.zeros(len(broken), total.dtype)
    same = np.ones(len(broken), bool)
    for k, coefficient in enumerate(coefficients):
        load(k, term, again=True)
        plain += total.dtype.type(coefficient) * term[broken]
        same &= term[broken] == origin[broken]
    total[broken] = np.where(same, origin[broken], plain)


def narrow(
    wide: np.ndarray, dtype: np.dtype, space: Workspace, name: str
) -> np.ndarray:
    """A block rounded to nearest even, in a buffer of `space` if it is not `wide`.

    Raises:
        UserError: a finite number is beyond float16.
    """
    if wide.dtype == dtype:
        return wide
    out = space.view(4, dtype, len(wide))
    try:
        is_half = dtype == np.float16
        with np.errstate(over="raise" if is_half else "ignore", invalid="ignore"):
            np.copyto(out, wide, casting="unsafe")
    except FloatingPointError:
        raise errors.UserError(
            f"{name} has values beyond float16's 65504; write bfloat16"
        ) from None
    return out
