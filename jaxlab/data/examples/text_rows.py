"""Texts and pairs of texts as the padded rows that encoders and rerankers read.

    text    [CLS] a ... [SEP] pad pad              BERT; RoBERTa has <s> a </s>
    pair    [CLS] a ... [SEP] b ... [SEP] pad      RoBERTa: <s> a </s> </s> b </s>

Special tokens and token types are those of the tokenizer.json's post-processor; its own
truncation and padding are not followed. What is cut is counted.

*Deviation* from transformers: a special token that is spelled out in a text is ordinary
characters, as everywhere in `data/tokenizers/tokenizer.py`: no document can end itself.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

CUTS = ("second", "longest")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 lacks


class TextRows(NamedTuple):
    """Rows of one length, as `BertEncoder` and `BertScorer` take them.

    Attributes:
        tokens: i32[B, L], padded on the right.
        mask: bool[B, L], True at real tokens, the special ones included.
        token_types: i32[B, L].
        truncated: how many rows lost some of their text.
    """

    tokens: np.ndarray
    mask: np.ndarray
    token_types: np.ndarray
    truncated: int


def encode_texts(
    tokenizer: tokenizer_lib.Tokenizer, texts: Sequence[str], length: int
) -> TextRows:
    """One row per text, cut at its end where it is too long; "" is special tokens only.

    Args:
        tokenizer: of a tokenizer.json.
        texts: any number of them, also none.
        length: L, special tokens included.

    Raises:
        UserError: no tokenizer.json, or a length without room for text.
    """
    model = _model(tokenizer)
    room = _room(model, length, is_pair=False)
    truncated, rows = 0, []
    with tokenizer.explain_failure():
        for encoding in _encode(model, texts):
            truncated += len(encoding) > room
            encoding.truncate(room)
            rows.append(model.post_process(encoding))
    return _pad(rows, length, tokenizer.pad_id, truncated)


def encode_pairs(
    tokenizer: tokenizer_lib.Tokenizer,
    first: Sequence[str],
    second: Sequence[str],
    length: int,
    *,
    cut: str = "second",
) -> TextRows:
    """One row per pair, e.g. of a query and a document.

    Args:
        tokenizer: of a tokenizer.json.
        first, second: equally many texts.
        length: L, special tokens included.
        cut: "second" keeps the first text whole; "longest" cuts the longer one until
            both fit, then both alike.

    Raises:
        UserError: no tokenizer.json or one that sets nothing between two texts, a
            length without room for text, or a first text that must stay whole and
            leaves no room for the second.
    """
    if cut not in CUTS:
        raise ValueError(f"cut {cut!r}; use one of {CUTS}")
    if len(first) != len(second):
        raise errors.UserError(
            f"{len(first)} first and {len(second)} second texts; give as many of both"
        )
    model = _model(tokenizer)
    if not model.num_special_tokens_to_add(True):
        raise errors.UserError(
            "the tokenizer sets nothing between two texts; use one whose "
            "tokenizer.json has a post-processor, as BERT's and RoBERTa's"
        )
    room = _room(model, length, is_pair=True)
    truncated, rows = 0, []
    with tokenizer.explain_failure():
        both = zip(_encode(model, first), _encode(model, second), strict=True)
        for number, (a, b) in enumerate(both):
            sizes = _fit_both(len(a), len(b), room, cut)
            if sizes is None:
                raise errors.UserError(
                    f"pair {number}: the first text has {len(a)} tokens and leaves no "
                    f"room for the second in rows of {length}; use longer rows or "
                    "cut='longest'"
                )
            truncated += sizes != (len(a), len(b))
            a.truncate(sizes[0])
            b.truncate(sizes[1])
            rows.append(model.post_process(a, b))
    return _pad(rows, length, tokenizer.pad_id, truncated)


def _fit_both(first: int, second: int, room: int, cut: str) -> tuple[int, int] | None:
    """How many tokens of each text stay; None where the rule cannot be followed.

    >>> _fit_both(3, 9, 8, "second"), _fit_both(9, 3, 8, "longest")
    ((3, 5), (5, 3))
    >>> _fit_both(9, 9, 9, "longest")
    (4, 5)
    """
    if first + second <= room:
        return first, second
    if cut == "second":
        return (first, room - first) if first < room else None
    if first > second:
        return room - min(second, room // 2), min(second, room // 2)
    return min(first, room // 2), room - min(first, room // 2)


def _model(tokenizer) -> Any:
    if not isinstance(tokenizer, byte_pairs.BytePairs):
        raise errors.UserError(
            "encoders need the special tokens of a tokenizer.json; a SentencePiece "
            ".model has none: save it as tokenizer.json"
        )
    return tokenizer.plain


def _room(model, length, is_pair) -> int:
    """Tokens of text in a row."""
    special = model.num_special_tokens_to_add(is_pair)
    if length <= special:
        raise errors.UserError(
            f"rows of {length} tokens have no room beside {special} special tokens; "
            f"use at least {special + 1}"
        )
    return length - special


def _encode(model, texts) -> list[Any]:
    if isinstance(texts, str):
        raise errors.UserError("texts is one string; give a list of them")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or _SURROGATE.search(text):
            raise errors.UserError(
                f"text {number} is not Unicode: {text!r}; leave it out"
            )
    return model.encode_batch_fast(texts, add_special_tokens=False)


def _pad(encodings, length, pad_id, truncated) -> TextRows:
    shape = (len(encodings), length)
    tokens = np.full(shape, pad_id, np.int32)
    mask = np.zeros(shape, bool)
    token_types = np.zeros(shape, np.int32)
    for row, encoding in enumerate(encodings):
        size = len(encoding)
        tokens[row, :size] = encoding.ids
        mask[row, :size] = True
        token_types[row, :size] = encoding.type_ids
    return TextRows(tokens, mask, token_types, truncated)
