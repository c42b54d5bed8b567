"""Attention kernels: splash against XLA, shards of a context, and defaults."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import mesh as mesh_lib
from jaxlab.models import (
    Decoder,
    attention,
)
from tests.support.decoders import FAMILIES, TOKENS, L, params_of, run


def test_blocked_attention_equals_one_block(monkeypatch):
    config = FAMILIES["olmo3"]
    segments = np.repeat([[0, 1]], L // 2, axis=1)
    params = params_of(config)
    want = run(config, params, TOKENS, np.tile(segments, (2, 1)))
    monkeypatch.setattr(attention, "_BLOCK", 5)
    apply = jax.jit(lambda *args: Decoder(config).apply({"params": params}, *args))
    got = apply(TOKENS, np.tile(segments, (2, 1)))
    np.testing.assert_allclose(got, want, atol=2e-5)


def splash_case(length=256, heads=4, kv_heads=2, head_dim=128, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    qkv = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    segments = (jnp.arange(length) >= 100).astype(jnp.int32)
    return qkv, jnp.tile(segments[None], (batch, 1))


def attend(implementation, qkv, segments, window=None, is_causal=True):
    windows = () if window is None else (window, qkv[0].shape[1] + 1)
    return attention.attend(
        *qkv,
        implementation=implementation,
        is_causal=is_causal,
        window=None if window is None else jnp.asarray(window),
        windows=windows,
        segment_ids=segments,
    )


def test_splash_lowers_for_tpu_with_its_gradient():
    qkv, segments = splash_case()

    def loss(qkv, segments):
        return attend("splash", qkv, segments, window=50).sum()

    lowered = (
        jax.jit(jax.grad(loss)).trace(qkv, segments).lower(lowering_platforms=("tpu",))
    )
    assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.parametrize("length", [128, 384, 640])
def test_splash_takes_every_multiple_of_128(length):
    qkv, segments = splash_case(length)
    text = (
        jax.jit(lambda q, s: attend("splash", q, s))
        .trace(qkv, segments)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    assert "tpu_custom_call" in text


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_splash_lowers_under_a_mesh_whatever_the_kv_heads(kv_heads):
    mesh = mesh_lib.make_mesh({"fsdp": 4, "tensor": 2})
    qkv, segments = splash_case(128, kv_heads=kv_heads, batch=4)
    with mesh_lib.use(mesh):
        traced = jax.jit(lambda q, s: attend("splash", q, s)).trace(qkv, segments)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


@pytest.mark.parametrize(
    ("window", "is_causal"), [(None, True), (40, True), (300, True), (None, False)]
)
def test_splash_computes_what_xla_computes(monkeypatch, window, is_causal):
    interpret(monkeypatch)
    qkv, segments = splash_case(128, heads=2, kv_heads=1, batch=1)
    got, want = (
        attend(name, qkv, segments, window, is_causal) for name in ("splash", "xla")
    )
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("kv_heads", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_splash_shares_keys_between_heads_and_has_their_gradients(
    monkeypatch, kv_heads
):
    interpret(monkeypatch)
    qkv, segments = splash_case(128, heads=4, kv_heads=kv_heads, batch=1)
    got, want = (
        jax.grad(lambda qkv, name=name: (attend(name, qkv, segments) ** 2).sum())(qkv)
        for name in ("splash", "xla")
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_sharded_splash_computes_what_xla_computes(monkeypatch):
    interpret(monkeypatch)
    qkv, segments = splash_case(128, kv_heads=1, batch=2)
    want = attend("xla", qkv, segments)
    mesh = mesh_lib.make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    with mesh_lib.use(mesh):
        got = jax.jit(lambda q, s: attend("splash", q, s))(qkv, segments)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
    "implementation", [pytest.param("splash", marks=pytest.mark.slow), "xla"]
)
@pytest.mark.parametrize(
    ("window", "is_causal"), [(None, True), (200, True), (None, False)]
)
def test_parts_of_a_row_see_the_keys_of_all_of_it(
    monkeypatch, implementation, window, is_causal
):
    interpret(monkeypatch)
    qkv, segments = splash_case(256, heads=2, kv_heads=1, batch=2)

    def outcome(name, qkv, segments):
        y = attend(name, qkv, segments, window, is_causal)
        return (y**2).sum(), y

    def both(name):
        return jax.jit(jax.grad(functools.partial(outcome, name), has_aux=True))

    want_grads, want = both("xla")(qkv, segments)
    mesh = mesh_lib.make_mesh({"data": 2, "context": 2, "tensor": 2})
    with mesh_lib.use(mesh):
        program = both(implementation).lower(qkv, segments).compile()
        grads, got = program(qkv, segments)
    assert "all-gather" in program.as_text()
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


def test_rows_that_context_shards_do_not_divide_are_attended_whole(monkeypatch):
    interpret(monkeypatch)
    qkv, segments = splash_case(128, heads=2, kv_heads=1, batch=2)
    want = attend("xla", qkv, segments)
    mesh = mesh_lib.make_mesh({"data": 2, "context": 3}, jax.devices()[:6])
    with mesh_lib.use(mesh):
        for name in ("splash", "xla"):
            got = jax.jit(functools.partial(attend, name))(qkv, segments)
            np.testing.assert_allclose(got, want, atol=2e-5)


def interpret(monkeypatch):
    """Runs the TPU kernel step by step on the CPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )

    for name in ("make_splash_mha_single_device", "make_splash_mqa_single_device"):
        make = functools.partial(getattr(kernel, name), interpret=True)
        monkeypatch.setattr(kernel, name, make)


def test_rows_that_a_kernel_does_not_take_run_as_xla(caplog):
    config = dataclasses.replace(FAMILIES["olmo2"], attention="splash")
    params = params_of(FAMILIES["olmo2"])
    want = run(FAMILIES["olmo2"], params, TOKENS)
    np.testing.assert_array_equal(run(config, params, TOKENS), want)
    assert not caplog.records, "short rows cost nothing and are not worth a warning"
    qkv, _ = splash_case(160, batch=1)
    for name in ("splash", "cudnn"):
        np.testing.assert_array_equal(attend(name, qkv, None), attend("xla", qkv, None))
    assert "rows of 160 tokens; use a multiple of 128" in caplog.text
    assert "activations are float32; use bfloat16" in caplog.text


def test_every_platform_has_a_default_and_auto_is_settled_by_it():
    assert attention.default_implementation("cpu") == "xla"
    config = FAMILIES["olmo1"]
    assert config.resolve("tpu").attention == "splash"
    assert config.resolve("gpu").attention == "cudnn"
    assert config.resolve("cpu").fuse_projections
    assert not config.resolve("tpu").fuse_projections


def test_an_unknown_attention_is_refused_where_it_would_run():
    qkv, segments = splash_case(128, batch=1)
    with pytest.raises(ValueError, match="use one of"):
        attend("nonsense", qkv, segments)
