"""Peak FLOP/s of the devices, the denominator of model-FLOP utilisation.

From data sheets for accelerators (dense bf16 matmul); measured on CPU, where
clock, cores and neighbours decide.
"""

import functools
import time

import jax
import jax.numpy as jnp

# bf16 FLOP/s of one jax device, by a part of `device_kind` in lower case.
_DATA_SHEETS = (
    ("v5 lite", 197e12),
    ("v5e", 197e12),
    ("v5p", 459e12),
    ("v5", 459e12),
    ("v6", 918e12),
    ("v4", 275e12),
    ("v3", 61.5e12),
    ("v2", 22.5e12),
    ("tpu7x", 1153.5e12),
    ("b200", 2250e12),
    ("h200", 989e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l40", 181e12),
    ("l4", 121e12),
    ("v100", 125e12),
    ("t4", 65e12),
)


@functools.cache
def flops_per_second() -> tuple[float, str]:
    """(peak of all devices of all hosts, where the number is from).

    Fake CPU devices share the host, which is measured once.
    """
    device = jax.devices()[0]
    kind = device.device_kind.lower()
    if device.platform == "cpu":
        return measure(), "measured f32 matmul"
    for part, peak in _DATA_SHEETS:
        if part in kind:
            return peak * jax.device_count(), f"{device.device_kind} data sheet"
    return measure() * jax.device_count(), f"measured matmul on {device.device_kind}"


def measure(size: int = 1536, repeats: int = 3) -> float:
    """FLOP/s of the best of a few square f32 matmuls on one device."""
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(lambda a, b: a @ b)
    matmul(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
