"""NF4: a frozen matrix in 4 bits a value, as QLoRA keeps its base.

Dettmers et al. 2023, arXiv:2305.14314; the codes are bitsandbytes'.

    block  = 64 values of the matrix [outputs, inputs] (torch's order), row by row
    code   = nearest of the 16 table entries to x / max |block|       two in a byte
    second level ("double"): max |block| less their mean, in blocks of 256, as the
             nearest of 256 signed entries to it / max |.|; one f32 a block, one mean

The table's entries are quantiles of a normal distribution, 0 and 1 among them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import errors

BLOCK, OUTER_BLOCK = 64, 256
TABLE = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
        *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    np.float32,
)  # fmt: skip


@functools.cache
def outer_table() -> np.ndarray:
    """f32[256]: the signed entries of the second level; a tenth apart by decades.

    Dettmers 2015, arXiv:1511.04561: seven decades, of which the i-th from below has
    2^i entries of either sign, in the middle of as many equal parts of 0.1 to 1.
    """
    entries = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1)
        for middle in (edges[:-1] + edges[1:]) / 2:
            entries += [10.0 ** (i - 6) * middle, -(10.0 ** (i - 6)) * middle]
    return np.sort(np.array(entries, np.float32))


def quantize(values: Any, *, double: bool = True) -> dict[str, jax.Array]:
    """Packs the values of any array, in their row-major order.

    Args:
        values: f32; the last block, and an odd last value, may be short.
        double: quantise the blocks' maxima too.

    Returns:
        {"codes": u8[ceil(N / 2)], the earlier value in the high half;
        "absmax": f32[blocks]}; with `double` "absmax" is u8[blocks], beside "scale",
        f32[ceil(blocks / 256)], and "offset", f32[].
    """
    flat = jnp.ravel(jnp.asarray(values, jnp.float32))
    blocks = _in_blocks(flat, BLOCK)
    absmax = jnp.max(jnp.abs(blocks), axis=1)
    codes = _nearest(TABLE, blocks / _divisor(absmax)[:, None]).ravel()[: flat.size]
    codes = jnp.pad(codes, (0, flat.size % 2)).reshape(-1, 2)
    packed = {"codes": codes[:, 0] << 4 | codes[:, 1], "absmax": absmax}
    if not double:
        return packed
    offset = absmax.mean()
    outer = _in_blocks(absmax - offset, OUTER_BLOCK)
    scale = jnp.max(jnp.abs(outer), axis=1)
    indices = _nearest(outer_table(), outer / _divisor(scale)[:, None])
    absmax = indices.ravel()[: absmax.size]
    return {**packed, "absmax": absmax, "scale": scale, "offset": offset}


def dequantize(packed: dict[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """f32 of a shape, from what `quantize` made of values of that shape."""
    codes = packed["codes"].ravel()
    codes = jnp.stack([codes >> 4, codes & 15], axis=-1).ravel()
    count = int(np.prod(shape))
    absmax = jnp.repeat(_absmax(packed), BLOCK)[:count]
    return (jnp.asarray(TABLE)[codes[:count]] * absmax).reshape(shape)


def pack(kernel: jax.Array) -> dict[str, jax.Array]:
    """A kernel f32[inputs, outputs] as `unpack` takes it, with double quantisation.

    Returns:
        As `quantize`, of the transposed kernel; codes are u8[outputs, inputs / 2] and
        absmax u8[outputs, inputs / 64], so that devices can hold rows of them.

    Raises:
        ArgumentError: blocks would cross rows.
    """
    inputs, outputs = kernel.shape
    if inputs % BLOCK:
        raise errors.ArgumentError(
            f"nf4 packs matrices whose inputs are a multiple of {BLOCK}, not {inputs}; "
            "set adapter.base to float32 or bfloat16"
        )
    packed = quantize(kernel.T)
    rows = {name: packed[name].reshape(outputs, -1) for name in ("codes", "absmax")}
    return packed | rows


def unpack(packed: dict[str, jax.Array]) -> jax.Array:
    """f32[inputs, outputs] from what `pack` made."""
    codes = packed["codes"]
    outputs, inputs = codes.shape[0], 2 * codes.shape[1]
    values = jnp.asarray(TABLE)[jnp.stack([codes >> 4, codes & 15], axis=-1)]
    blocks = values.reshape(outputs, inputs // BLOCK, BLOCK)
    absmax = _absmax(packed).reshape(outputs, inputs // BLOCK, 1)
    return (blocks * absmax).reshape(outputs, inputs).T


def _absmax(packed) -> jax.Array:
    """f32[blocks]."""
    absmax = packed["absmax"].ravel()
    if "scale" not in packed:
        return absmax
    scale = jnp.repeat(packed["scale"], OUTER_BLOCK)[: absmax.size]
    return jnp.asarray(outer_table())[absmax] * scale + packed["offset"]


def _in_blocks(flat, size):
    """[blocks, size], the last filled up with zeros."""
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def _nearest(table, values):
    """u8: index of the entry that is nearest to each value."""
    middles = (table[1:] + table[:-1]) / 2
    return jnp.searchsorted(middles, values).astype(jnp.uint8)


def _divisor(maxima):
    """1 where a block holds only zeros."""
    return jnp.where(maxima > 0, maxima, 1)
