"""Every implementation of attention that runs here against f32 in another program.

The reference is `jax.nn.dot_product_attention` in f32 at the highest precision, with
the mask written out. An error is |a - b| / |b| over the whole array; that of a dtype
may be four units in its last place: the products of a row are rounded on their way.
"""

import functools

import jax
import jax.numpy as jnp
import measure
import rows

from jaxlab.models import attention as attention_lib

# Rows, length, heads, kv heads, head_dim, window, segments
_ON_CPU = {
    "causal": (2, 256, 4, 4, 32, None, 1),
    "grouped heads": (2, 256, 4, 2, 32, None, 1),
    "window": (2, 256, 4, 2, 32, 64, 1),
    "segments": (2, 256, 4, 2, 32, None, 3),
}
_ON_ACCELERATORS = {
    "causal": (4, 2048, 16, 16, 128, None, 1),
    "grouped heads": (4, 2048, 16, 4, 128, None, 1),
    "window": (4, 2048, 16, 4, 128, 512, 1),
    "segments": (4, 2048, 16, 4, 128, None, 3),
    "long rows": (1, 8192, 16, 16, 128, None, 1),
}
_BOUND = {"bfloat16": 4 * 2.0**-8, "float32": 1e-5}


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    shapes = _ON_ACCELERATORS if measure.is_accelerator() else _ON_CPU
    for name, shape in clock.sizes("attention", shapes):
        compare(name, *shape, peaks)


def implementations() -> tuple[str, ...]:
    own = attention_lib.default_implementation(jax.default_backend())
    return ("xla",) if own == "xla" else ("xla", own)


def compare(name, B, L, H, K, C, window, segments, peaks) -> None:
    kind, f32 = measure.dtype(), jnp.float32
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, L, H, C), (B, L, K, C), (B, L, K, C), (B, L, H, C))
    q, k, v, weight = (
        jax.random.normal(key, shape, f32).astype(kind)
        for key, shape in zip(keys, shapes, strict=True)
    )
    ids = None if segments == 1 else jnp.arange(L)[None] * segments // L
    ids = None if ids is None else jnp.broadcast_to(ids, (B, L))
    wanted = both(functools.partial(_reference, window=window, ids=ids))
    with jax.default_matmul_precision("highest"):
        expected = wanted(*(x.astype(f32) for x in (q, k, v, weight)))
    pairs = _visible_pairs(L, window, segments)
    flops = 3.5 * 4 * B * H * C * pairs  # forward 4 per pair and number, backward 2.5 x
    for implementation in implementations():
        attend = functools.partial(
            attention_lib.attend,
            implementation=implementation,
            window=None if window is None else jnp.int32(window),
            windows=() if window is None else (window,),
            segment_ids=ids,
        )
        run = both(attend)
        found = run(q, k, v, weight)
        errors = [_error(a, b) for a, b in zip(found, expected, strict=True)]
        speed = flops / measure.seconds(lambda run=run: run(q, k, v, weight))
        words = "output, dq, dk, dv differ by " + ", ".join(f"{e:.1e}" for e in errors)
        rows.emit(
            "attention", f"{implementation}, {name} {B} x {L} x {H} x {C}",
            speed / 1e12, "TFLOP/s", share=speed / peaks.matmul(kind),
            of=f"matmul {kind}", goal=measure.goal("matmul"),
            good=max(errors) < _BOUND[kind], note=words,
        )  # fmt: skip


def both(attend):
    """Jitted (q, k, v, weight) -> (output, gradients of sum(weight x output))."""

    def run(q, k, v, weight):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(weight.astype(out.dtype))

    return jax.jit(run)


def _reference(q, k, v, *, window, ids):
    L = q.shape[1]
    back = jnp.arange(L)[:, None] - jnp.arange(L)[None]
    mask = (back >= 0) if window is None else (back >= 0) & (back < window)
    mask = mask[None, None]
    if ids is not None:
        mask = mask & (ids[:, None, :, None] == ids[:, None, None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def _visible_pairs(length, window, segments) -> float:
    """Pairs of query and key that the mask lets through."""
    length = length / segments
    outside = 0 if window is None else (length - window) ** 2 / 2
    return segments * (length**2 / 2 - outside)


def _error(a, b) -> float:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()))
