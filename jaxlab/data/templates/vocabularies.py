"""Texts to ids with the characters that each is of: byte pairs and SentencePiece.

vocabulary.whole(text)         as the tokenizer stands; None where it need not be asked
vocabulary.piece(text, place)  without its added tokens: what stands between two of them
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from jaxlab.data.tokenizers import byte_pairs, sentence_pieces, special_tokens

FIRST, BEHIND, INSIDE = "first", "behind", "inside"  # of all, a token, a word
Span = tuple[int, int, int]  # id, and the characters start:stop that it is of
_USER_DEFINED = 4  # of sentencepiece_model.proto


class Vocabulary(Protocol):
    """A tokenizer as a template needs it.

    Attributes:
        added: text -> what it is, of all tokens that no content may write.
    """

    added: Mapping[str, special_tokens.Added]

    def whole(self, text: str) -> Iterable[Span] | None: ...

    def piece(self, text: str, place: str) -> Iterable[Span]: ...


def of_tokenizer(tokenizer: Any) -> Vocabulary:
    """That of a tokenizer as `tokenizers.load` gives it."""
    if isinstance(tokenizer, byte_pairs.BytePairs):
        return _BytePairs(tokenizer)
    return _SentencePiece(tokenizer)


class _BytePairs:
    def __init__(self, tokenizer: byte_pairs.BytePairs):
        fields = special_tokens.Added._fields[1:]
        self.added = {
            token.content: special_tokens.Added(
                number, *(getattr(token, field) for field in fields)
            )
            for number, token in tokenizer.parsing.get_added_tokens_decoder().items()
            if token.content.strip()
        }
        without = {token.id for token in self.added.values()}
        self._whole = _derive(tokenizer)
        self._models = {
            place: _derive(tokenizer, without, place)
            for place in (FIRST, BEHIND, INSIDE)
        }

    def whole(self, text: str) -> Iterator[Span]:
        return _spans(self._whole, text)

    def piece(self, text: str, place: str) -> Iterator[Span]:
        return _spans(self._models[place], text)


def _spans(model, text) -> Iterator[Span]:
    encoded = model.encode(text, add_special_tokens=False)
    for number, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
        yield number, start, stop


def _derive(tokenizer, without=frozenset(), place=FIRST):
    """The same model with offsets of whole tokens, and without some added ones."""
    import tokenizers

    model = json.loads(tokenizer.parsing.to_str())
    model["added_tokens"] = [x for x in model["added_tokens"] if x["id"] not in without]
    model["post_processor"] = None  # it cuts white space off the offsets
    if place != FIRST:
        schemes = ("first",) if place == BEHIND else ("first", "always")
        _prefix_nothing(model.get("pre_tokenizer"), schemes)
    if place == INSIDE:
        _prefix_nothing(model.get("normalizer"), schemes)
    return tokenizers.Tokenizer.from_str(json.dumps(model))


def _prefix_nothing(step: Any, schemes: tuple[str, ...]) -> None:
    """A piece behind a token is not the first of its text."""
    if isinstance(step, dict):
        if step.get("prepend_scheme") in schemes:
            step["prepend_scheme"] = "never"
        if "always" in schemes:
            if "add_prefix_space" in step:
                step["add_prefix_space"] = False
            if step.get("type") == "Prepend":
                step["prepend"] = ""
        for each in (*step.get("pretokenizers", ()), *step.get("normalizers", ())):
            _prefix_nothing(each, schemes)


class _SentencePiece:
    def __init__(self, tokenizer: sentence_pieces.SentencePiece):
        self._tokenizer, processor = tokenizer, tokenizer.processor
        control = {
            name: special_tokens.Added(number, special=True)
            for name, number in tokenizer.names.items()
        }
        for number, kind in enumerate(_kinds(tokenizer.data)):
            if kind == _USER_DEFINED:
                name = processor.id_to_piece(number)
                control[name] = special_tokens.Added(number, special=False)
        control |= tokenizer.added
        self.added = {
            name: token
            for name, token in control.items()
            if name.strip().strip(sentence_pieces.SPACE)
        }

    def whole(self, text: str) -> None:
        """Its tokens are those between the added ones, nothing else."""

    def piece(self, text: str, place: str) -> Iterator[Span]:
        return iter(self._tokenizer.spans(text, place == FIRST, place == INSIDE))


def _kinds(model: bytes) -> Iterator[int]:
    """The type of each piece of a sentencepiece_model.proto, in their order."""
    for field, piece in _fields(model):
        if field == 1:
            yield dict(_fields(piece)).get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer: whole numbers and bytes; None of others."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        value: Any = None
        if key & 7 == 0:
            value, at = _number(data, at)
        elif key & 7 == 2:
            size, at = _number(data, at)
            value = data[at : at + size]
        yield key >> 3, value
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
