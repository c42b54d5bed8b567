"""Cached generation against the full forward pass, sampling, and scoring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import generate, models
from jaxlab.core import errors

VOCAB, EOS, PAD = 96, 1, 0
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
CONFIGS = {
    "plain": {},
    "grouped": {"heads": 4, "kv_heads": 2, "norm_position": "post", "qk_norm": True},
    "sliding": {"heads": 4, "kv_heads": 1, "window": 4, "full_layers": (1,)},
}


def decoder(**options):
    config = {
        "vocab": VOCAB, "embed": 32, "layers": 2, "heads": 2, "mlp": 48, "length": 64,
        "initializer_std": 0.3,
    }  # fmt: skip
    model = models.Decoder(models.TransformerConfig(**(config | options)))
    params = model.init(jax.random.key(1), jnp.zeros((1, 8), jnp.int32))["params"]
    return model, nn.unbox(params)


@pytest.fixture(scope="module", params=CONFIGS)
def any_decoder(request):
    return decoder(**CONFIGS[request.param])


@pytest.fixture(scope="module")
def plain():
    return decoder()


def run(model, params, prompts=PROMPTS, **options):
    settings = {
        "max_new_tokens": 12, "key": jax.random.key(0), "eos_id": EOS, "pad_id": PAD,
    }  # fmt: skip
    return generate.generate(model, params, prompts, **(settings | options))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens):
    return model.apply({"params": params}, tokens)


def full_logits(model, params, tokens):
    """f32[L, V] of one row; padded on the right, which a causal model cannot see."""
    padded = np.pad(np.array([tokens]), ((0, 0), (0, 64 - len(tokens))))
    return apply(model, params, padded)[0, : len(tokens)]


def test_greedy_generation_is_the_argmax_of_the_full_forward_pass(any_decoder):
    model, params = any_decoder
    for prompt, new in zip(
        PROMPTS, run(model, params, temperature=0.0, eos_id=-1), strict=True
    ):
        assert len(new) == 12
        logits = full_logits(model, params, prompt + new)
        # Teacher forcing: every new token is the best one after all before it.
        assert new == logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist()


def test_a_row_does_not_depend_on_the_rows_beside_it(plain):
    together = run(*plain)
    assert run(*plain, prompts=PROMPTS[:1]) == together[:1]
    longer = [[20] * 30, *PROMPTS[1:]]  # another padded length
    assert run(*plain, prompts=longer)[1:] == together[1:]


def test_the_same_key_gives_the_same_tokens_and_another_key_others(plain):
    assert run(*plain) == run(*plain)
    assert run(*plain) != run(*plain, key=jax.random.key(1))


def test_a_row_stops_at_the_end_token_and_includes_it(plain):
    free = run(*plain, temperature=0.0, eos_id=-1)
    end = free[0][4]
    stopped = run(*plain, temperature=0.0, eos_id=end)
    for row, whole in zip(stopped, free, strict=True):
        cut = whole.index(end) + 1 if end in whole else len(whole)
        assert row == whole[:cut]


def test_one_new_token_is_one_token(plain):
    assert [len(row) for row in run(*plain, max_new_tokens=1)] == [1, 1, 1]


@pytest.mark.parametrize("token", [3, 50, VOCAB - 1])
def test_a_single_weight_that_is_no_number_is_told(plain, token):
    model, params = plain
    names = [name for name in params if "head" in name]
    head = jax.tree.map(lambda x: x.at[5, token].set(jnp.nan), params[names[0]])
    with pytest.raises(errors.UserError, match="logits are not finite"):
        run(model, params | {names[0]: head})


def test_no_prompts_give_no_rows(plain):
    assert run(*plain, prompts=[]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[2], []]}, "prompt 1 is empty"),
        ({"prompts": [[2] * 65]}, "prompt 0 of 65 tokens .* length of 64; shorten"),
        ({"prompts": [[2] * 60]}, "max_new_tokens 12 exceed the model's length of 64"),
        ({"max_new_tokens": 0}, "max_new_tokens 0; use 1 or more"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0; use 1 to 96"),
        ({"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_bad_requests_are_one_line(plain, options, message):
    with pytest.raises(errors.UserError, match=message):
        run(*plain, **options)


def test_a_prompt_may_fill_the_model_up_to_its_length(plain):
    assert len(run(*plain, prompts=[[2] * 52], eos_id=-1)[0]) == 12


# ------------------------------------------------------------------ sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def draws(count=2000, **options):
    logits = jnp.tile(jnp.array(LOGITS), (count, 1))
    return np.asarray(generate.sample(logits, jax.random.key(3), **options))


def test_samples_follow_the_softmax():
    counts = np.bincount(draws(8000), minlength=4) / 8000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.15, 0.1], atol=0.02)


def test_temperature_sharpens_as_a_power():
    counts = np.bincount(draws(8000, temperature=0.5), minlength=4) / 8000
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(counts, squares / squares.sum(), atol=0.02)


def test_top_k_and_top_p_limit_the_support():
    assert set(draws(top_k=2)) == {0, 1}
    assert set(draws(top_p=0.7)) == {0, 1}  # 0.5 + 0.25 >= 0.7
    assert set(draws(top_p=0.8)) == {0, 1, 2}
    assert set(draws(top_p=1e-6)) == {0}
    assert set(draws(top_p=1.0)) == {0, 1, 2, 3}
    # top_p counts what top_k left: 0.5 / 0.75 is already more than 0.6.
    assert set(draws(top_k=2, top_p=0.6)) == {0}


def test_what_is_kept_is_renormalised():
    counts = np.bincount(draws(8000, top_k=2), minlength=4) / 8000
    np.testing.assert_allclose(counts, [2 / 3, 1 / 3, 0, 0], atol=0.02)


def test_top_k_of_equal_logits_keeps_k_of_them():
    drawn = generate.sample(jnp.zeros((500, 6)), jax.random.key(0), top_k=2)
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-30])
def test_low_temperatures_tend_to_the_largest_logit(temperature):
    assert set(draws(temperature=temperature)) == {0}


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.floats(0.01, 1.0), st.integers(0, 99))
def test_a_sample_is_always_in_the_nucleus(top_k, top_p, seed):
    logits = np.random.default_rng(seed).normal(size=(64, 8)).astype(np.float32)
    drawn = np.asarray(
        generate.sample(jnp.array(logits), jax.random.key(seed), 0.7, top_k, top_p)
    )
    shares = np.exp(logits / 0.7)
    rank = np.argsort(np.argsort(-logits, axis=1), axis=1)
    shares = np.where(rank < top_k, shares, 0)
    shares /= shares.sum(axis=1, keepdims=True)
    mine = np.take_along_axis(shares, drawn[:, None], axis=1)
    before = np.where(shares > mine, shares, 0).sum(axis=1)
    assert (mine > 0).all()
    assert (before < top_p + 1e-6).all()


# ------------------------------------------------------------------ scoring

CONTEXTS = [[2], [3, 4, 5, 6, 7], [8, 9], list(range(10, 40))]
CONTINUATIONS = [[20, 21, 22], [23], [24] * 18, [40, 41]]


def test_scores_are_sums_of_the_log_softmax(any_decoder):
    model, params = any_decoder
    scores = generate.score(model, params, CONTEXTS, CONTINUATIONS, batch_size=3)
    for n, (context, continuation) in enumerate(
        zip(CONTEXTS, CONTINUATIONS, strict=True)
    ):
        logits = full_logits(model, params, context + continuation)
        logps = jax.nn.log_softmax(logits, axis=-1)
        expected = sum(
            float(logps[len(context) - 1 + i, token])
            for i, token in enumerate(continuation)
        )
        assert scores.logps[n] == pytest.approx(expected, abs=1e-3)
    assert scores.tokens.tolist() == [3, 1, 18, 2]


def test_scores_do_not_depend_on_the_batch_size(plain):
    one, many = (
        generate.score(*plain, CONTEXTS, CONTINUATIONS, batch_size=size).logps
        for size in (1, 16)
    )
    np.testing.assert_allclose(one, many, rtol=1e-5)


def test_greedy_text_scores_at_least_as_high_as_any_other_first_token(plain):
    model, params = plain
    [[best]] = run(model, params, [PROMPTS[0]], max_new_tokens=1, temperature=0.0)
    scores = generate.score(
        model, params, [PROMPTS[0]] * VOCAB, [[token] for token in range(VOCAB)]
    )
    assert scores.logps.argmax() == best
    assert np.exp(scores.logps).sum() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("contexts", "continuations", "message"),
    [
        ([[]], [[2]], "context 0 is empty"),
        ([[2]], [[]], "continuation 0 is empty"),
        ([[2], [3]], [[2]], "2 contexts for 1 continuations"),
        ([[2] * 40], [[2] * 25], "row 0 of 65 tokens exceed the model's length of 64"),
    ],
)
def test_unscorable_rows_are_one_line(plain, contexts, continuations, message):
    with pytest.raises(errors.UserError, match=message):
        generate.score(*plain, contexts, continuations)
