"""Properties of the transformer: what sees what, and what must not change a number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import tree
from jaxlab.models import (
    Decoder,
    Encoder,
    Scorer,
    TransformerConfig,
    empty_cache,
)
from tests.support.decoders import (
    FAMILIES,
    LARGE,
    SIZES,
    TOKENS,
    L,
    V,
    params_of,
    random_params,
    run,
)

families = pytest.mark.parametrize("family", FAMILIES)


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


def test_initialisation_under_a_mesh_takes_a_single_short_row():
    config = dataclasses.replace(FAMILIES["olmo3"], attention="splash")
    with mesh_lib.use(mesh_lib.make_mesh({"fsdp": 4, "tensor": 2})):
        shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS[:1])
    assert tree.count(nn.unbox(shapes)) == tree.count(params_of(FAMILIES["olmo3"]))


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "nonsense"}, "attention 'nonsense'; use one of"),
        ({"remat": "some"}, "remat 'some'; use one of"),
        ({"dtype": "int8"}, "dtype 'int8'; use one of"),
        ({"norm": "batchnorm"}, "norm 'batchnorm'; use one of"),
        ({"layers": 0}, "layers is 0; it must be a whole number from 1"),
        ({"kv_heads": 3}, "4 heads do not share 3 kv_heads evenly"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"window": 0}, "window 0 sees nothing"),
        ({"window": 2**31}, r"model.window 2147483648; use at most 2\^31 - 1"),
        ({"full_layers": (1,)}, "full_layers without a window"),
        ({"window": 3, "full_layers": (2,)}, r"full_layers \[2\] are not among 2"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SIZES | changes)
