"""Properties of the transformer: what sees what, and what must not change a number."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import tree
from jaxlab.models import (
    Decoder,
    Encoder,
    Scorer,
    TransformerConfig,
    attention,
    empty_cache,
)
from jaxlab.models import rope as rope_lib

V, L = 64, 12
SIZES = {"vocab": V, "embed": 32, "layers": 2, "heads": 4, "mlp": 48, "length": L}
YARN = rope_lib.Rope(
    theta=100.0, scaling="yarn", factor=4.0, original_length=32, beta_fast=4.0
)
LLAMA3 = rope_lib.Rope(theta=100.0, scaling="llama3", factor=8.0, original_length=32)
# Weights larger than at initialisation, so that every option moves the logits.
LARGE = {"initializer_std": 0.25}
FAMILIES = {
    "olmo1": TransformerConfig(
        **SIZES, **LARGE, norm="layernorm", clip_qkv=0.8, tied=True
    ),
    "olmo2": TransformerConfig(
        **SIZES, **LARGE, norm_position="post", qk_norm=True, kv_heads=2
    ),
    "olmo3": TransformerConfig(
        **SIZES, **LARGE, norm_position="post", qk_norm=True, kv_heads=2, window=3,
        full_layers=(1,), rope=YARN, window_rope=rope_lib.Rope(theta=100.0),
    ),
    "llama31": TransformerConfig(**SIZES, **LARGE, kv_heads=2, rope=LLAMA3),
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)
TOKENS = np.random.default_rng(0).integers(0, V, (2, L)).astype(np.int32)


@functools.cache
def random_params(config, model=Decoder):
    """Parameters that depend on the sizes alone, so that configs can be compared."""
    extra = {Decoder: (), Scorer: (np.array([L, L]),), Encoder: (TOKENS > 0,)}[model]
    boxed = model(config).init(jax.random.key(0), TOKENS, *extra)["params"]
    return nn.unbox(boxed)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, segment_ids=None, positions=None):
    return Decoder(config).apply({"params": params}, tokens, segment_ids, positions)


def params_of(config):
    return random_params(
        dataclasses.replace(config, dtype="float32", remat="none", scan=True)
    )


@functools.cache
def reference(family):
    """Loss and gradients of a family as it is."""
    return loss_and_grads(FAMILIES[family], params_of(FAMILIES[family]))


def loss_and_grads(config, params, tokens=TOKENS):
    def loss(params):
        logps, total = Decoder(config).apply(
            {"params": params}, tokens, np.roll(tokens, -1, 1), method="token_logps"
        )
        return -logps.mean() + 1e-2 * jnp.mean(total**2)

    return jax.jit(jax.value_and_grad(loss))(params)


# ---- what sees what ----


@families
def test_a_token_changes_no_logit_before_it_and_every_one_from_it_on(family):
    config = FAMILIES[family]
    params = params_of(config)
    before = run(config, params, TOKENS)
    for t in (1, 7, L - 1):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % V
        moved = np.abs(run(config, params, changed) - before).max(axis=(0, 2))
        assert (moved[:t] == 0).all()
        assert moved[t] > 1e-3


@pytest.mark.parametrize("window", [1, 3, L, L + 5])
def test_one_sliding_layer_reaches_exactly_its_window(window):
    config = TransformerConfig(
        **SIZES | {"layers": 1}, **LARGE, window=window, full_layers=()
    )
    params = params_of(config)
    before = run(config, params, TOKENS)
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % V
    moved = np.abs(run(config, params, changed) - before).max(axis=(0, 2)) > 0
    # The window counts the query: position 2 is seen by 2 .. 2 + window - 1.
    assert list(moved) == [2 <= i < 2 + window for i in range(L)]


@families
def test_packed_documents_have_the_logits_they_have_alone(family):
    config = FAMILIES[family]
    params = params_of(config)
    cut = 5
    segments = np.array([[4] * cut + [9] * (L - cut)])
    positions = np.array([[*range(cut), *range(L - cut)]])
    packed = run(config, params, TOKENS[:1], segments, positions)
    first = run(config, params, TOKENS[:1, :cut])
    second = run(config, params, TOKENS[:1, cut:])
    np.testing.assert_allclose(packed[:, :cut], first, atol=2e-5)
    np.testing.assert_allclose(packed[:, cut:], second, atol=2e-5)
    # Positions are relative once attention is masked: resetting them changes nothing.
    unreset = run(config, params, TOKENS[:1], segments)
    np.testing.assert_allclose(unreset, packed, atol=1e-4)


def test_rows_do_not_see_each_other():
    config = FAMILIES["olmo3"]
    alone = run(config, params_of(config), TOKENS[1:])
    both = run(config, params_of(config), TOKENS)
    np.testing.assert_allclose(both[1:], alone, atol=2e-5)


# ---- the cache ----


@families
def test_decoding_with_a_left_padded_cache_equals_the_whole_rows(family):
    config = FAMILIES[family]
    params = params_of(config)
    whole = run(config, params, TOKENS)
    padding, prompt = 3, 5  # row 1 is shorter by `padding`
    tokens = np.stack([TOKENS[0, :prompt], np.roll(TOKENS[1, :prompt], padding)])
    valid = np.ones((2, prompt), bool)
    valid[1, :padding] = False
    extend = jax.jit(functools.partial(Decoder(config).apply, method="extend"))
    cache = empty_cache(config, 2, L + 1)
    logits, cache = extend({"params": params}, tokens, cache, valid)
    for t in range(prompt, L):
        np.testing.assert_allclose(logits[0], whole[0, t - 1], atol=5e-5)
        np.testing.assert_allclose(logits[1], whole[1, t - 1 - padding], atol=5e-5)
        step = np.stack([TOKENS[0, t], TOKENS[1, t - padding]])[:, None]
        logits, cache = extend({"params": params}, step, cache, np.ones((2, 1), bool))
    assert int(cache["length"]) == L


def test_a_prompt_may_be_appended_in_pieces():
    config = FAMILIES["olmo3"]
    params = params_of(config)
    extend = jax.jit(functools.partial(Decoder(config).apply, method="extend"))
    cache = empty_cache(config, 2, L)
    for start, stop in ((0, 5), (5, 6), (6, L)):
        part = TOKENS[:, start:stop]
        valid = np.ones(part.shape, bool)
        logits, cache = extend({"params": params}, part, cache, valid)
    np.testing.assert_allclose(logits, run(config, params, TOKENS)[:, -1], atol=5e-5)


# ---- what must not change a number ----


@pytest.mark.slow
@families
def test_unrolled_and_unfused_layers_compute_the_same(family):
    config = FAMILIES[family]
    params = params_of(config)
    want, want_grads = reference(family)
    other = dataclasses.replace(config, scan=False, fuse_projections=False)
    loss, grads = loss_and_grads(other, params)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    close(grads, want_grads)


@pytest.mark.parametrize(
    ("remat", "scan"),
    [
        ("full", True),
        pytest.param("dots", True, marks=pytest.mark.slow),
        pytest.param("qkvo", True, marks=pytest.mark.slow),
        ("qkvo", False),
    ],
)
def test_recomputation_changes_neither_loss_nor_gradients(remat, scan):
    config = FAMILIES["olmo3"]
    want, want_grads = reference("olmo3")
    other = dataclasses.replace(config, remat=remat, scan=scan)
    loss, grads = loss_and_grads(other, params_of(config))
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    close(grads, want_grads)


def close(tree_a, tree_b, tolerance=1e-4):
    """Every leaf within `tolerance` of its own largest value."""
    for (name, a), b in zip(
        tree.flatten(tree_a).items(), jax.tree.leaves(tree_b), strict=True
    ):
        scale = float(jnp.abs(b).max()) + 1e-9
        assert float(jnp.abs(a - b).max()) < tolerance * scale, name


@pytest.mark.parametrize("name", ["olmo1", "llama31"])
@pytest.mark.parametrize("blocks", [1, 2, 5, 1000])
def test_token_logps_are_log_softmax_whatever_the_blocks(name, blocks):
    # A length of 11 has no divisor: the last block must be filled up.
    config, tokens = FAMILIES[name], TOKENS[:, :11]
    targets = np.roll(tokens, -1, 1)
    bytes_a_block = -(-2 * 11 * V * 4 // blocks)
    config = dataclasses.replace(config, loss_block_bytes=bytes_a_block)
    params = params_of(FAMILIES[name])
    logits = run(FAMILIES[name], params, tokens)
    logps, total = jax.jit(
        functools.partial(Decoder(config).apply, method="token_logps")
    )({"params": params}, tokens, targets)
    want = np.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    np.testing.assert_allclose(logps, want[..., 0], atol=2e-5)
    np.testing.assert_allclose(total, jax.nn.logsumexp(logits, -1), atol=2e-5)


@pytest.mark.slow
def test_blocks_of_the_loss_do_not_change_its_gradient():
    config = FAMILIES["olmo1"]
    small = dataclasses.replace(config, loss_block_bytes=2 * V * 4 * 5)
    want = reference("olmo1")
    got = loss_and_grads(small, params_of(config))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    close(got[1], want[1])


@families
def test_bfloat16_stays_close_to_float32(family):
    config = FAMILIES[family]
    half = dataclasses.replace(config, dtype="bfloat16")
    exact = run(config, params_of(config), TOKENS)
    rough = run(half, params_of(config), TOKENS)
    assert rough.dtype == jnp.float32
    # Eight bits of mantissa through two layers: a few per cent of the spread.
    assert float(jnp.abs(rough - exact).mean()) < 0.05 * float(exact.std())


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("olmo1", {"data": 2, "fsdp": 2, "tensor": 2}),
        pytest.param(
            "olmo3", {"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow
        ),
        pytest.param("olmo3", {"data": 2, "context": 4}, marks=pytest.mark.slow),
        ("olmo1", {"fsdp": 2, "context": 2, "tensor": 2}),
    ],
)
def test_a_sharded_model_computes_what_one_device_computes(family, shape):
    config = dataclasses.replace(FAMILIES[family], fuse_projections=False)
    params = params_of(FAMILIES[family])
    tokens = np.concatenate([TOKENS, TOKENS[::-1]])
    if "context" in shape:  # a row for every data shard
        tokens = tokens[:2]
    want, want_grads = loss_and_grads(config, params, tokens)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    mesh = mesh_lib.make_mesh(shape)
    with mesh_lib.use(mesh):
        sharded = jax.device_put(params, mesh_lib.param_shardings(boxed, mesh))
        rows = jax.device_put(tokens, mesh_lib.batch_sharding(mesh))
        loss, grads = loss_and_grads(config, sharded, rows)
    assert len(sharded["blocks"]["mlp"]["up"]["kernel"].sharding.device_set) == 8
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    close(jax.device_get(grads), want_grads)


def test_blocked_attention_equals_one_block(monkeypatch):
    config = FAMILIES["olmo3"]
    segments = np.repeat([[0, 1]], L // 2, axis=1)
    params = params_of(config)
    want = run(config, params, TOKENS, np.tile(segments, (2, 1)))
    monkeypatch.setattr(attention, "_BLOCK", 5)
    apply = jax.jit(lambda *args: Decoder(config).apply({"params": params}, *args))
    got = apply(TOKENS, np.tile(segments, (2, 1)))
    np.testing.assert_allclose(got, want, atol=2e-5)


# ---- rotary positions ----


def numpy_frequencies(rope, head_dim):
    """The formulas of the papers, in float64 and without JAX."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    base = rope.theta**-exponents
    wavelength = 2 * np.pi / base
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "llama3":
        low = rope.original_length / rope.low_freq_factor
        high = rope.original_length / rope.high_freq_factor
        smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blend = (1 - smooth) * base / rope.factor + smooth * base
        scaled = np.where(wavelength > low, base / rope.factor, blend)
        return np.where(wavelength < high, base, scaled)
    if rope.scaling == "yarn":

        def dim(rotations):
            per_rotation = rope.original_length / (2 * np.pi * rotations)
            return head_dim * np.log(per_rotation) / (2 * np.log(rope.theta))

        low, high = dim(rope.beta_fast), dim(rope.beta_slow)
        if rope.truncate:
            low, high = np.floor(low), np.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
        return base / rope.factor * ramp + base * (1 - ramp)
    return base


@settings(max_examples=12, deadline=None)
@given(
    scaling=st.sampled_from(["default", "linear", "llama3", "yarn"]),
    theta=st.sampled_from([1e4, 5e5]),
    factor=st.sampled_from([2.0, 8.0]),
    truncate=st.booleans(),
)
def test_rotary_tables_follow_the_papers_up_to_long_contexts(
    scaling, theta, factor, truncate
):
    rope = rope_lib.Rope(
        theta, scaling, factor=factor, original_length=8192, truncate=truncate
    )
    positions = np.array([[0, 1, 100, 4095]])
    cos, sin = rope.tables(jnp.asarray(positions), 128)
    angles = positions[..., None] * numpy_frequencies(rope, 128)
    scale = 0.1 * math.log(factor) + 1 if scaling == "yarn" else 1.0
    assert cos.shape == (1, 4, 64)
    # f32 keeps 24 bits: an angle of 4095 radians is known to a few 1e-4.
    np.testing.assert_allclose(cos, scale * np.cos(angles), atol=2e-3)
    np.testing.assert_allclose(sin, scale * np.sin(angles), atol=2e-3)
    np.testing.assert_allclose(cos[:, :2], scale * np.cos(angles[:, :2]), atol=1e-6)


def test_yarn_multiplies_by_the_attention_factor_that_it_is_given():
    rope = dataclasses.replace(YARN, attention_factor=1.5)
    cos, sin = rope.tables(jnp.zeros((1, 1), jnp.int32), 8)
    np.testing.assert_array_equal(cos, np.full((1, 1, 4), 1.5, np.float32))
    np.testing.assert_array_equal(sin, np.zeros((1, 1, 4), np.float32))


def test_rotation_keeps_lengths_and_makes_products_relative():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    rope = rope_lib.Rope()

    def product(i, j):
        (ci, si), (cj, sj) = (rope.tables(jnp.array([[p]]), 8) for p in (i, j))
        return jnp.sum(rope_lib.rotate(q, ci, si) * rope_lib.rotate(k, cj, sj))

    np.testing.assert_allclose(product(3, 1), product(12, 10), rtol=1e-5)
    np.testing.assert_allclose(product(5, 5), jnp.sum(q * k), rtol=1e-5)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="use default, linear, llama3 or yarn"):
        rope_lib.Rope(scaling="su").tables(jnp.zeros((1, 1), jnp.int32), 8)


# ---- published sizes, arithmetic, initialisation ----

OLMO_1B = TransformerConfig(
    vocab=50304, embed=2048, layers=16, heads=16, mlp=8192, norm="layernorm", tied=True
)
OLMO_7B = TransformerConfig(
    vocab=50304, embed=4096, layers=32, heads=32, mlp=11008, norm="layernorm"
)
OLMO2_7B = TransformerConfig(
    vocab=100352, embed=4096, layers=32, heads=32, mlp=11008, norm_position="post",
    qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(OLMO_1B, 1_176_764_416), (OLMO_7B, 6_888_095_744), (OLMO2_7B, 7_298_617_344)],
)
def test_published_models_have_their_published_number_of_parameters(config, parameters):
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS[:1])
    assert tree.count(nn.unbox(shapes)) == parameters


def test_flops_per_token_of_olmo_7b_written_out():
    # 6 (6,888,095,744 parameters - 50,304 x 4,096 of the look-up)
    # + 12 x 32 layers x 4,096 x 2,048 of the scores
    assert OLMO_7B.flops_per_token(2048) == 6 * 6_682_050_560 + 3_221_225_472
    assert OLMO_7B.flops_per_token(2048, causal=True) == 40_092_303_360 + 1_610_612_736


@pytest.mark.slow
def test_mitchell_initialisation_shrinks_what_writes_to_the_residual():
    config = TransformerConfig(
        vocab=512, embed=64, layers=4, heads=4, mlp=192, initializer="mitchell"
    )
    params = nn.unbox(Decoder(config).init(jax.random.key(0), TOKENS)["params"])
    cut = 0.9866  # std of a unit normal cut at 3
    inner = [
        params["embed"]["embedding"],
        params["lm_head"]["kernel"],
        *(params["blocks"]["attn"][name]["kernel"] for name in "qkv"),
        *(params["blocks"]["mlp"][name]["kernel"] for name in ("gate", "up")),
    ]
    for leaf in inner:
        np.testing.assert_allclose(leaf.std(), cut * 64**-0.5, rtol=0.05)
        assert float(jnp.abs(leaf).max()) <= 3 * 64**-0.5
    for i in range(4):
        out = params["blocks"]["attn"]["o"]["kernel"][i].std()
        down = params["blocks"]["mlp"]["down"]["kernel"][i].std()
        np.testing.assert_allclose(out, cut * (2 * 64 * (i + 1)) ** -0.5, rtol=0.05)
        np.testing.assert_allclose(down, cut * (2 * 192 * (i + 1)) ** -0.5, rtol=0.05)


def test_layers_are_initialised_differently_and_normal_has_one_std():
    config = dataclasses.replace(FAMILIES["llama31"], initializer_std=0.02)
    kernel = params_of(config)["blocks"]["mlp"]["down"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(), 0.9866 * 0.02, rtol=0.05)


# ---- encoder and scorer ----


def test_the_encoder_looks_ahead_and_ignores_padding():
    config = dataclasses.replace(FAMILIES["llama31"], is_causal=False)
    params = random_params(config, Encoder)
    encode = jax.jit(lambda *args: Encoder(config).apply({"params": params}, *args))
    mask = np.arange(L)[None] < np.array([[L], [7]])
    vectors = encode(TOKENS, mask)
    assert vectors.shape == (2, 32)
    short = encode(TOKENS[1:, :7], np.ones((1, 7), bool))
    np.testing.assert_allclose(vectors[1:], short, atol=2e-5)
    padded = np.where(mask, TOKENS, 0)
    np.testing.assert_allclose(encode(padded, mask), vectors, atol=1e-6)

    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % V
    hidden = functools.partial(
        Decoder(config).apply, {"params": params_of(FAMILIES["llama31"])}
    )
    first, moved = (hidden(x, method="hidden")[:, 0] for x in (TOKENS, changed))
    assert float(jnp.abs(first - moved).max()) > 1e-3


def test_the_scorer_reads_the_last_real_token():
    config = FAMILIES["olmo2"]
    params = random_params(config, Scorer)
    score = jax.jit(lambda *args: Scorer(config).apply({"params": params}, *args))
    scores = score(TOKENS, np.array([L, 7]))
    assert scores.shape == (2,)
    np.testing.assert_allclose(
        score(TOKENS[1:, :7], np.array([7])), scores[1:], atol=1e-5
    )
    changed = TOKENS.copy()
    changed[1, 7:] = 0
    np.testing.assert_array_equal(score(changed, np.array([L, 7])), scores)
    changed[1, 6] = (changed[1, 6] + 1) % V
    assert abs(float(score(changed, np.array([L, 7]))[1] - scores[1])) > 1e-3


# ---- kernels of other platforms ----


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


def test_initialisation_under_a_mesh_takes_a_single_short_row():
    config = dataclasses.replace(FAMILIES["olmo3"], attention="splash")
    with mesh_lib.use(mesh_lib.make_mesh({"fsdp": 4, "tensor": 2})):
        shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS[:1])
    assert tree.count(nn.unbox(shapes)) == tree.count(params_of(FAMILIES["olmo3"]))


def test_every_platform_has_a_default_and_auto_is_settled_by_it():
    assert attention.default_implementation("cpu") == "xla"
    config = FAMILIES["olmo1"]
    assert config.resolved("tpu").attention == "splash"
    assert config.resolved("gpu").attention == "cudnn"
    assert config.resolved("cpu").fuse_projections
    assert not config.resolved("tpu").fuse_projections


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "nonsense"}, "attention 'nonsense'; use one of"),
        ({"remat": "some"}, "remat 'some'; use one of"),
        ({"dtype": "int8"}, "dtype 'int8'; use one of"),
        ({"norm": "batchnorm"}, "norm 'batchnorm'; use one of"),
        ({"layers": 0}, "layers is 0; it must be >= 1"),
        ({"kv_heads": 3}, "4 heads do not share 3 kv_heads evenly"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"window": 0}, "window 0 sees nothing"),
        ({"full_layers": (1,)}, "full_layers without a window"),
        ({"window": 3, "full_layers": (2,)}, r"full_layers \[2\] are not among 2"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SIZES | changes)


def test_an_unknown_attention_is_refused_where_it_would_run():
    qkv, segments = splash_case(128, batch=1)
    with pytest.raises(ValueError, match="use one of"):
        attend("nonsense", qkv, segments)
