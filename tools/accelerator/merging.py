"""Merges in a device's memory: bytes of all inputs and of the output per second.

An average and task vectors touch each number once, so that memory bounds them; TIES
sorts by size and gets no verdict. Reading is cheaper than writing: a merge, which reads
four bytes for each that it writes, can move more than a copy.
"""

import jax
import jax.numpy as jnp
import measure
import rows

from jaxlab import merge


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    wide = 4096 if measure.is_accelerator() else 512
    for kind in ("float32", "bfloat16"):
        base, *tuned = (tree(seed, wide, kind) for seed in range(4))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
        for name, way in clock.sizes("merging", ways(base, tuned)):
            speed = 5 * size / measure.seconds(way)
            goal = None if name == "ties of 3" else measure.goal("copy")
            rows.emit(
                "merging", f"{name}, {kind}, {size / 1e6:.0f} MB each", speed / 1e9,
                "GB/s", share=speed / peaks.copy(), of="copy", goal=goal,
            )  # fmt: skip


def ways(base, tuned) -> dict:
    """What is timed; each reads four trees and writes one."""
    vectors = [merge.task_vector(one, base) for one in tuned]
    return {
        "average of 4": lambda: merge.average([base, *tuned]),
        "3 task vectors": lambda: merge.apply_task_vectors(base, vectors, [0.3] * 3),
        "ties of 3": lambda: merge.ties(base, tuned, density=0.5),
    }


def tree(seed: int, wide: int, kind: str):
    keys = jax.random.split(jax.random.key(seed), 8)
    return {
        f"layer {i}": jax.random.normal(key, (wide, 4 * wide), jnp.float32).astype(kind)
        for i, key in enumerate(keys)
    }
