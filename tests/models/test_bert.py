"""Published encoders and rerankers compute what transformers computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import errors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import BertEncoder, BertScorer, hf
from jaxlab.models.bert import encoder
from tests.support.bert_values import (
    KINDS,
    TOLERANCE,
    VALUES,
    expected,
    inputs,
    loaded,
    run,
    shapes,
    vectors,
)

SCORERS = ("bert_scorer", "roberta_scorer")


def hidden_of(kind, *more):
    config, params = loaded(kind)
    return np.asarray(run(config, "hidden", params, *(more or inputs(kind))))


# ---- parity with transformers ----


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_their_mean_are_those_of_transformers(kind):
    values, (config, params) = expected(kind), loaded(kind)
    difference = np.abs(hidden_of(kind) - values["hidden"])
    assert difference[values["mask"]].max() < TOLERANCE
    config = dataclasses.replace(config, pooling="mean", normalize=False)
    ours = vectors(config, params, *inputs(kind))
    np.testing.assert_allclose(ours, values["vectors"], atol=TOLERANCE)


@pytest.mark.parametrize("kind", SCORERS)
def test_scores_are_those_of_transformers(kind):
    config, params = loaded(kind)
    logits = expected(kind)["logits"]
    for method, want in (("__call__", logits[:, 0]), ("logits", logits)):
        ours = run(config, method, params, *inputs(kind))
        np.testing.assert_allclose(ours, want, atol=TOLERANCE)


def test_the_reference_values_would_show_a_mistake():
    config, params = loaded("bert")
    tokens, mask, token_types = inputs("bert")
    right = hidden_of("bert")
    wrong = {
        "epsilon": run(
            dataclasses.replace(config, norm_epsilon=1e-12),
            "hidden", params, tokens, mask, token_types,
        ),
        "token types": run(config, "hidden", params, tokens, mask),
        "mask": run(config, "hidden", params, tokens, mask | True, token_types),
        "places": run(
            config, "hidden", tree_with(params, np.roll), tokens, mask, token_types
        ),
    }  # fmt: skip
    for name, values in wrong.items():
        assert np.abs(values - right)[mask].max() > 10 * TOLERANCE, name


def tree_with(params, roll):
    moved = roll(params["embed"]["positions"], 1, axis=0)
    return params | {"embed": params["embed"] | {"positions": moved}}


def test_real_sentences_have_the_vectors_of_transformers(minilm):
    config, params = hf.load(minilm)
    assert (config.pooling, config.normalize, config.row_length) == ("mean", True, 256)
    with np.load(VALUES / "minilm.npz") as values:
        texts, want = list(values["sentences"]), values["vectors"]
    rows = text_rows.encode_texts(tokenizer_lib.load(minilm), texts, config.row_length)
    assert rows.truncated == 1
    ours = run(config, "__call__", params, *rows[:3])
    np.testing.assert_allclose(ours, want, atol=TOLERANCE)


# ---- properties ----


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    config, params = loaded(kind)
    config = dataclasses.replace(config, pooling="mean", normalize=False)
    wide = [
        np.pad(x, ((0, 1), (0, 5)), constant_values=value)
        for x, value in zip(inputs(kind), (config.pad_id, False, 0), strict=True)
    ]
    ours = vectors(config, params, *wide)[:3]
    np.testing.assert_allclose(ours, vectors(config, params, *inputs(kind)), atol=1e-5)


def test_no_vector_depends_on_a_padded_position():
    config, params = loaded("bert")
    config = dataclasses.replace(config, pooling="mean")
    tokens, mask, token_types = inputs("bert")

    def total(noise):
        got = run(config, "__call__", params, tokens, mask, token_types, noise)
        return jnp.sum(got**2 * jnp.arange(16)[None])

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.zeros((3, 10, 16))))
    assert (gradient[~mask] == 0).all()
    assert (np.abs(gradient[mask]).max(axis=-1) > 1e-6).all()


def test_noise_is_added_to_the_word_embeddings():
    config, params = loaded("roberta_scorer")
    shift = np.linspace(-1, 1, 16, dtype=np.float32)
    noise = np.broadcast_to(shift, (3, 10, 16))
    ours = run(config, "logits", params, *inputs("roberta_scorer"), noise)
    words = params["embed"]["embedding"] + shift[None]
    moved = params | {"embed": params["embed"] | {"embedding": words}}
    want = run(config, "logits", moved, *inputs("roberta_scorer"))
    np.testing.assert_allclose(ours, want, atol=1e-5)
    still = run(config, "logits", params, *inputs("roberta_scorer"), 0 * noise)
    np.testing.assert_allclose(still, expected("roberta_scorer")["logits"], atol=1e-4)

    def total(params):
        return jnp.sum(run(config, "logits", params, *inputs("roberta_scorer"), noise))

    gradient = jax.jit(jax.grad(total))(params)["embed"]
    assert (gradient["embedding"] == 0).all()
    assert (gradient["positions"] != 0).any()


def test_poolings_are_the_mean_the_first_and_all_tokens():
    config, params = loaded("bert")
    hidden, mask = hidden_of("bert"), expected("bert")["mask"]
    mean = np.stack(
        [row[real].mean(axis=0) for row, real in zip(hidden, mask, strict=True)]
    )
    for pooling, normalize, want in (
        ("mean", True, mean),
        ("cls", False, hidden[:, 0]),
        ("none", True, hidden),
    ):
        chosen = dataclasses.replace(config, pooling=pooling, normalize=normalize)
        ours = vectors(chosen, params, *inputs("bert"))
        size = np.linalg.norm(want, axis=-1, keepdims=True) if normalize else 1.0
        np.testing.assert_allclose(ours, want / size, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "mean"), ("bert", "cls"), ("xlm_roberta", "none")]
)
def test_rows_without_any_token_are_finite_and_so_are_their_gradients(kind, pooling):
    config, params = loaded(kind)
    config = dataclasses.replace(config, head="none", pooling=pooling, normalize=True)
    tokens = np.full((2, 6), config.pad_id, np.int32)
    mask = np.zeros((2, 6), bool)

    def total(params):
        return jnp.sum(run(config, "__call__", params, tokens, mask))

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert not tree.non_finite(gradient)
    if pooling == "mean":
        assert (vectors(config, params, tokens, mask) == 0).all()


@pytest.mark.slow
def test_scanned_unrolled_and_recomputed_layers_agree():
    config, params = loaded("bert_scorer")

    def value_and_grad(**changes):
        chosen = dataclasses.replace(config, **changes)

        def total(params):
            return jnp.sum(run(chosen, "__call__", params, *inputs("bert_scorer")) ** 2)

        return jax.jit(jax.value_and_grad(total))(params)

    want = value_and_grad()
    for changes in ({"scan": False, "remat": "dots"}, {"remat": "full"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            value_and_grad(**changes),
            want,
        )


def test_bfloat16_computes_nearly_the_same_with_f32_parameters_and_results():
    config, params = loaded("bert")
    half = dataclasses.replace(config, dtype="bfloat16")
    assert run(half, "hidden", params, *inputs("bert")).dtype == jnp.bfloat16
    ours, want = (vectors(c, params, *inputs("bert")) for c in (half, config))
    assert ours.dtype == np.float32
    assert (np.sum(ours * want, axis=-1) > 0.99).all()
    made = jax.tree.leaves(shapes(half, "bert"))
    assert {leaf.dtype for leaf in made} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bert", {"fsdp": 4, "tensor": 2}),
        pytest.param(
            "roberta_scorer", {"data": 4, "tensor": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_sharded_encoder_computes_what_one_device_computes(kind, shape):
    config, params = loaded(kind)
    rows = [np.tile(x, (4, 1))[:8] for x in inputs(kind)]

    def value_and_grad(params, *rows):
        def total(params):
            got = run(config, "__call__", params, *rows)
            return jnp.sum(got**2), got

        return jax.value_and_grad(total, has_aux=True)(params)

    want = jax.jit(value_and_grad)(params, *rows)
    mesh = mesh_lib.make_mesh(shape)
    _, sharded = hf.load(VALUES / kind, mesh=mesh)
    kernel = sharded["blocks"]["mlp"]["up"]["kernel"]
    fsdp = shape.get("fsdp", 1)
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // fsdp, 10)
    with mesh_lib.use(mesh):
        rows = jax.device_put(rows, mesh_lib.batch_sharding(mesh))
        ours = jax.jit(value_and_grad)(sharded, *rows)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.device_get(ours),
        want,
    )


def test_batches_of_one_shape_compile_once():
    config, params = loaded("xlm_roberta")
    apply = jax.jit(BertEncoder(config).apply)
    tokens, mask, _ = inputs("xlm_roberta")
    for batch in ((tokens, mask), (tokens[::-1], mask[::-1]), (tokens, ~mask)):
        apply({"params": params}, *batch)
    assert apply._cache_size() == 1


def test_rows_beyond_the_positions_are_refused():
    config, params = loaded("xlm_roberta")
    assert config.length == 16
    rows = np.full((1, 17), 5, np.int32), np.ones((1, 17), bool)
    with pytest.raises(errors.UserError, match=r"17 tokens, but .* 16 positions"):
        run(config, "hidden", params, *rows)
    longest = hidden_of("xlm_roberta", rows[0][:, :16], rows[1][:, :16])
    assert np.isfinite(longest).all()


# ---- cross-encoders from encoders ----


def test_an_encoder_becomes_a_scorer_that_keeps_what_it_had():
    for kind in ("bert", "xlm_roberta"):
        config, params = loaded(kind)
        made, full = encoder.as_scorer(config, params, jax.random.key(3))
        kept = {name: full[name] for name in params}
        jax.tree.map(np.testing.assert_array_equal, kept, params)
        scores = run(made, "__call__", full, *inputs(kind))
        assert scores.shape == (3,)
        assert np.ptp(scores) > 0
        assert tree.differences([shapes(made, kind), full]) == []


def test_a_classifier_has_one_logit_a_label(tmp_path):
    names = ("entailment", "neutral", "contradiction")
    made = encoder.as_scorer(*loaded("xlm_roberta"), jax.random.key(0), labels=names)
    assert run(made[0], "logits", made[1], *inputs("xlm_roberta")).shape == (3, 3)
    with pytest.raises(errors.UserError, match=r'3 labels, not one; .*"logits"'):
        run(made[0], "__call__", made[1], *inputs("xlm_roberta"))
    hf.save(tmp_path / "m", *made)
    assert hf.load(tmp_path / "m")[0].labels == names


def test_a_config_without_a_head_makes_no_scorer():
    with pytest.raises(
        errors.UserError, match=r"head is 'pooler'; .*`bert\.as_scorer`"
    ):
        BertScorer(loaded("bert")[0]).init(jax.random.key(0), *inputs("bert"))
