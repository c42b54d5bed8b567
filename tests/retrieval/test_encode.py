"""Texts to vectors: order, few shapes, windows."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.retrieval import encode

LETTERS = [*"abcdefgh"]


def tokenizer():
    words = {x: i for i, x in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(list(words)[:4])
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    data = model.to_str().encode()
    return byte_pairs.BytePairs.from_bytes(data, {}, pathlib.Path("made"))


SHAPES = []


def sums(variables, tokens, mask, token_types):
    """A vector that tells what was read: weighted sum, tokens, places."""
    SHAPES.append(tokens.shape)
    places = jnp.arange(1.0, tokens.shape[1] + 1)
    weighted = jnp.sum(jnp.where(mask, tokens * places[None], 0), axis=1)
    return variables["params"] * jnp.stack([weighted, mask.sum(1)], axis=1)


def texts_of_many_lengths(count=60):
    rng = np.random.default_rng(9)
    sizes = rng.integers(0, 40, size=count)
    return [" ".join(rng.choice(LETTERS, size=size)) for size in sizes]


def test_vectors_come_in_the_order_of_the_texts_whatever_the_batches():
    texts, made, seen = texts_of_many_lengths(), tokenizer(), []
    rows = text_rows.encode_texts(made, texts, 36)
    places = np.arange(1, 37)
    wanted = np.stack([(rows.tokens * rows.mask * places).sum(1), rows.mask.sum(1)], 1)
    mesh = mesh_lib.make_mesh({"data": 3, "fsdp": 2}, jax.devices()[:6])
    cases = {}, {"batch_tokens": 64}, {"batch_tokens": 1}, {"mesh": mesh}
    for options in cases:
        found = retrieval.embed_texts(
            sums, jnp.float32(2), made, texts, length=36, **options
        )
        np.testing.assert_array_equal(found.vectors, 2 * wanted)
        assert found.truncated == sum(len(text.split()) > 34 for text in texts) > 0
    windows = encode.embed_windows(
        sums, jnp.float32(2), made, iter(texts), length=36, window=25,
        batch_tokens=128, progress=seen.append,
    )  # fmt: skip
    sizes, vectors = zip(*((len(x.vectors), x.vectors) for x in windows), strict=True)
    assert sizes == (25, 25, 10)
    np.testing.assert_array_equal(np.concatenate(vectors), 2 * wanted)
    assert seen == sorted(seen)
    assert len(seen) > 6
    assert seen[-1] == 60


def test_few_shapes_are_compiled():
    texts, made = texts_of_many_lengths(200), tokenizer()
    SHAPES.clear()
    jax.clear_caches()  # other tests may have compiled some
    retrieval.embed_texts(
        sums, jnp.float32(1), made, texts, length=64, batch_tokens=256
    )
    assert len(SHAPES) == len(set(SHAPES)) <= 5
    assert {width for _, width in SHAPES} <= {16, 32, 48}
    assert all(rows * width <= 256 for rows, width in SHAPES)


def test_texts_that_cannot_be_encoded_are_said():
    embed = functools.partial(
        retrieval.embed_texts, sums, jnp.float32(1), tokenizer(), length=16
    )
    with pytest.raises(errors.UserError, match="no texts to encode"):
        embed([])
    with pytest.raises(errors.UserError, match="one string"):
        embed("abc")
    with pytest.raises(errors.UserError, match="texts from 0: text 1 is not Unicode"):
        embed(["a", None])


def test_an_index_is_built_from_windows_of_texts(tmp_path):
    texts, made = texts_of_many_lengths(), tokenizer()

    def batches(done):
        windows = encode.embed_windows(
            sums, jnp.float32(1), made, texts[done:], length=36, window=25
        )
        return (window.vectors for window in windows)

    index = retrieval.Index.build(tmp_path, batches)
    whole = retrieval.embed_texts(sums, jnp.float32(1), made, texts, length=36)
    np.testing.assert_array_equal(index.take(np.arange(60)), whole.vectors)
