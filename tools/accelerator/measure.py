"""The clock and the peaks of `check_accelerator.py`.

A share is a number divided by the best that this process has seen the same device do: a
large square matmul of the same operands, or a copy of a large array (bytes read plus
bytes written). Data sheets play no part.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rows

_ROUNDS = 3
_LEAST_SECONDS = 0.1  # of one round


def seconds(call: Callable[[], Any]) -> float:
    """Of one call among several that are under way together: the best round's mean."""
    jax.block_until_ready(call())  # compiles
    start = time.perf_counter()
    jax.block_until_ready(call())
    count = _LEAST_SECONDS / max(time.perf_counter() - start, 1e-7)
    count = min(max(math.ceil(count), 1), 200)
    best = math.inf
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            last = call()
        jax.block_until_ready(last)
        best = min(best, (time.perf_counter() - start) / count)
    return best


def is_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def dtype() -> str:
    """What models compute in here."""
    return "bfloat16" if is_accelerator() else "float32"


def goal(kind: str) -> float | None:
    """The least share of a peak that is not called low; a CPU's sizes are too small."""
    return {"matmul": 0.5, "copy": 0.8}[kind] if is_accelerator() else None


class Peaks:
    """The best matmul and copy of this device, measured when first asked for."""

    def __init__(self):
        self._found = {}

    def matmul(self, kind: str) -> float:
        """FLOP/s of square matmuls of "bfloat16", "float32", or exact "highest" f32."""
        if kind not in self._found:
            self._found[kind] = max(map(_matmul(kind), _sizes(kind)))
            rows.emit("peak", f"matmul, {kind}", self._found[kind] / 1e12, "TFLOP/s")
        return self._found[kind]

    def copy(self) -> float:
        """Bytes per second read and written by the fastest way to copy an array."""
        if "copy" not in self._found:
            count = (1 << 28) if is_accelerator() else (1 << 25)  # f32: 1 GB, 128 MB
            x = jnp.ones(count, jnp.float32)
            ways = (jnp.copy, jax.jit(jnp.negative), jax.jit(lambda x: x + 1))
            best = min(seconds(lambda way=way: way(x)) for way in ways)
            self._found["copy"] = 2 * x.nbytes / best
            rows.emit("peak", "copy of one array", self._found["copy"] / 1e9, "GB/s")
        return self._found["copy"]


def _sizes(kind: str) -> tuple[int, ...]:
    if not is_accelerator():
        return 1024, 2048
    return (4096, 8192) if kind == "highest" else (4096, 8192, 16384)


def _matmul(kind: str) -> Callable[[int], float]:
    operands = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    precision = jax.lax.Precision.HIGHEST if kind == "highest" else None

    def flops(size: int) -> float:
        keys = jax.random.split(jax.random.key(size))
        a, b = (jax.random.normal(key, (size, size), operands) for key in keys)
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        return 2 * size**3 / seconds(lambda: multiply(a, b))

    return flops
