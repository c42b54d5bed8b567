"""Texts and pairs as padded rows with special tokens."""

import functools
import pathlib

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import byte_pairs

words = st.lists(st.sampled_from(["a", "bs", "東", "ж", "cs d"]), max_size=9)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "##s", "東"]


@functools.cache
def wordpiece(pair="[CLS] $A [SEP] $B:1 [SEP]:1"):
    vocab = {word: i for i, word in enumerate(WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer()
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(WORDS[:4])
    if pair:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair=pair,
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    model.enable_truncation(4)  # as published files have it; not followed
    model.enable_padding(length=99)
    data = model.to_str().encode()
    return byte_pairs.BytePairs.from_bytes(data, {}, pathlib.Path("made"))


def test_texts_become_padded_rows_with_special_tokens():
    rows = text_rows.encode_texts(wordpiece(), ["A bs", "", "東東 ж", "a b c d a"], 6)
    assert rows.tokens.tolist() == [
        [2, 4, 5, 8, 3, 0],
        [2, 3, 0, 0, 0, 0],
        [2, 9, 9, 1, 3, 0],
        [2, 4, 5, 6, 7, 3],
    ]
    assert rows.mask.sum(axis=1).tolist() == [5, 2, 5, 6]
    assert (rows.token_types == 0).all()
    assert rows.truncated == 1
    kinds = [rows.tokens.dtype, rows.mask.dtype, rows.token_types.dtype]
    assert kinds == [np.int32, bool, np.int32]


def test_only_the_second_text_of_a_pair_is_cut():
    rows = text_rows.encode_pairs(wordpiece(), ["a b", "a", ""], ["c d c", "", "d"], 7)
    assert rows.tokens.tolist() == [
        [2, 4, 5, 3, 6, 7, 3],
        [2, 4, 3, 3, 0, 0, 0],
        [2, 3, 7, 3, 0, 0, 0],
    ]
    assert rows.token_types.tolist() == [
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
    ]
    assert rows.truncated == 1


def test_a_first_text_that_leaves_no_room_is_refused_or_cut_on_request():
    texts = ["a", "a b c d"], ["b", "d d d"]
    with pytest.raises(errors.UserError, match=r"pair 1: the first text has 4 tokens"):
        text_rows.encode_pairs(wordpiece(), *texts, 7)
    rows = text_rows.encode_pairs(wordpiece(), *texts, 7, cut="longest")
    assert rows.tokens[1].tolist() == [2, 4, 5, 3, 7, 7, 3]
    assert rows.truncated == 1


def test_roberta_sets_two_separators_and_one_token_type():
    tokenizer = wordpiece("[CLS] $A [SEP] [SEP] $B [SEP]")
    rows = text_rows.encode_pairs(tokenizer, ["a"], ["b c"], 8)
    assert rows.tokens.tolist() == [[2, 4, 3, 3, 5, 6, 3, 0]]
    assert (rows.token_types == 0).all()


def test_a_special_token_that_is_spelled_out_ends_nothing():
    rows = text_rows.encode_texts(wordpiece(), ["a [SEP] b"], 12)
    assert (rows.tokens == 3).sum() == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), max_size=4), st.integers(4, 14))
def test_rows_hold_the_beginnings_of_both_texts_and_count_what_is_cut(texts, length):
    first, second = ([" ".join(side[i]) for side in texts] for i in range(2))
    tokenizer = wordpiece()
    rows = text_rows.encode_pairs(tokenizer, first, second, length, cut="longest")
    cut = 0
    for tokens, mask, kinds, a, b in zip(*rows[:3], first, second, strict=True):
        size = mask.sum()
        assert mask[:size].all()
        assert (tokens[size:] == 0).all()
        own = [tokenizer.encode(text) for text in (a, b)]
        kept = tokens[1 : (kinds[:size] == 0).sum() - 1].tolist()
        kept = kept, tokens[len(kept) + 2 : size - 1].tolist()
        assert all(
            whole[: len(part)] == part for whole, part in zip(own, kept, strict=True)
        )
        lost = sum(map(len, own)) - sum(map(len, kept))
        assert lost == max(sum(map(len, own)) + 3 - length, 0)
        cut += lost > 0
    assert rows.truncated == cut


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_rows.encode_texts(wordpiece(), ["a"], 2), "use at least 3"),
        (lambda: text_rows.encode_texts(wordpiece(), "abc", 8), "texts is one string"),
        (
            lambda: text_rows.encode_texts(wordpiece(), ["a", None], 8),
            "text 1 is not Uni",
        ),
        (
            lambda: text_rows.encode_texts(wordpiece(), ["\ud800"], 8),
            "text 0 is not Uni",
        ),
        (
            lambda: text_rows.encode_pairs(wordpiece(), ["a"], [], 8),
            "1 first and 0 second",
        ),
        (
            lambda: text_rows.encode_pairs(wordpiece(None), ["a"], ["b"], 8),
            "sets nothing",
        ),
        (lambda: text_rows.encode_texts(object(), ["a"], 8), "tokenizer.json"),
    ],
)
def test_texts_that_cannot_be_encoded_are_one_clear_error(call, message):
    with pytest.raises(errors.UserError, match=message):
        call()


def test_no_text_at_all_is_no_row():
    assert text_rows.encode_texts(wordpiece(), [], 8).tokens.shape == (0, 8)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("lower", [True, False, None])
def test_lower_case_is_what_the_settings_of_a_bert_tokenizer_say(kind, lower):
    # Checked against transformers 5.24; a class that is not BERT's takes the model.
    config = {"tokenizer_class": kind, "do_lower_case": lower}
    tokenizer = byte_pairs.BytePairs.from_bytes(
        wordpiece().data, config, pathlib.Path("made")
    )
    rows = text_rows.encode_texts(tokenizer, ["A"], 3)
    is_kept = lower is False and kind == "BertTokenizer"
    assert rows.tokens.tolist() == [[2, 1 if is_kept else 4, 3]]
