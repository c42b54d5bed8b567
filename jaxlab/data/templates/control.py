"""Which characters of a rendered text are control tokens, and the ids of all of it.

A token that a tokenizer adds to its vocabulary, flagged special or not, is one only
where every character of it was written by the template (or by an answer, where that
token is allowed to answers). The text between two of them is encoded in one piece, by
the same tokenizer without its added tokens.

Where a conversation spells no such token that is what transformers' apply_chat_template
gives, and there the tokenizer as it stands makes the ids.

*Deviation*: added tokens of white space alone (GPT-NeoX, OLMo) are text: they begin and
end nothing, and models have read texts with them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.core import errors
from jaxlab.data.templates import traced
from jaxlab.data.tokenizers import byte_pairs


class Token(NamedTuple):
    """A token of a text: its id and the characters that it is of."""

    id: int
    start: int
    stop: int
    is_control: bool = False


class Encoder:
    """Encodes traced texts.

    Args:
        tokenizer: byte pairs, as `tokenizers.load` gives them.
        allowed: added tokens that an assistant's contents may use.
    """

    def __init__(self, tokenizer: byte_pairs.BytePairs, allowed: Sequence[str] = ()):
        added = tokenizer.parsing.get_added_tokens_decoder()
        self._added = {t.content: (i, t) for i, t in added.items() if t.content.strip()}
        self._allowed = frozenset(allowed)
        self._ids = frozenset(number for number, _ in self._added.values())
        self._whole = _derive(tokenizer)
        self._first = _derive(tokenizer, without=self._ids)
        self._later = _derive(tokenizer, without=self._ids, is_first=False)
        order = sorted(self._added, key=len, reverse=True)
        patterns = (_pattern(text, self._added[text][1]) for text in order)
        self._pattern = re.compile("|".join(patterns)) if order else None

    @property
    def added(self) -> Mapping[str, int]:
        """Text -> id of the control tokens."""
        return {text: number for text, (number, _) in self._added.items()}

    def encode(
        self, text: traced.Traced, assistants: Iterable[int] = ()
    ) -> list[Token]:
        """The tokens of a text.

        Args:
            text: as a template renders it.
            assistants: numbers of the messages that answer.
        """
        answers = frozenset(assistants)
        whole = [*self._tokens(self._whole, text, 0)]
        if all(
            self._may_be(text, token, answers) for token in whole if token.is_control
        ):
            return whole
        tokens, start = [], 0
        for match in self._find(text, answers):
            tokens += self._encode_piece(text, start, match.start)
            tokens.append(match)
            start = match.stop
        return tokens + self._encode_piece(text, start, len(text))

    def _tokens(self, model, text, offset) -> Iterator[Token]:
        encoded = model.encode(str.__str__(text), add_special_tokens=False)
        for number, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            yield Token(number, offset + start, offset + stop, number in self._ids)

    def _may_be(self, text, token, answers) -> bool:
        """Whether a control token's characters are all of those who may write it."""
        # It may take white space along.
        spelled = text[token.start : token.stop].strip()
        if all(map(traced.is_own, spelled.marks)):
            return True
        if str.__str__(spelled) not in self._allowed:
            return False
        return all(traced.message_of(mark) in answers for mark in spelled.marks)

    def _find(self, text, answers) -> Iterator[Token]:
        """Control tokens, leftmost and longest, among those that may be."""
        start = 0
        while self._pattern and (match := self._pattern.search(text, start)):
            token = Token(
                self._added[match[0].strip()][0], match.start(), match.end(), True
            )
            if self._may_be(text, token, answers):
                yield token
                start = match.end()
                continue
            shorter = self._find_at(text, match.start(), answers)
            if shorter is not None:
                yield shorter
            start = shorter.stop if shorter else match.start() + 1

    def _find_at(self, text, start, answers):
        """A shorter token that begins at the same place."""
        for spelled in sorted(self._added, key=len, reverse=True):
            token = Token(self._added[spelled][0], start, start + len(spelled), True)
            if text.startswith(spelled, start) and self._may_be(text, token, answers):
                return token
        return None

    def _encode_piece(self, text, start, stop) -> list[Token]:
        if start == stop:
            return []
        model = self._later if start else self._first
        tokens = [*self._tokens(model, text[start:stop], start)]
        for token in tokens:
            if token.is_control:  # a vocabulary may hold the marker as a word, too
                middle = token.start + 1
                if middle >= stop:
                    raise errors.UserError(
                        f"a message spells {str.__str__(text[start:stop])!r}, a "
                        "control token that has no other spelling; take it out"
                    )
                return self._encode_piece(text, start, middle) + self._encode_piece(
                    text, middle, stop
                )
        return tokens


def _pattern(text: str, token: Any) -> str:
    word = re.escape(text)
    if token.single_word:
        word = rf"(?<!\w){word}(?!\w)"
    return r"\s*" * token.lstrip + word + r"\s*" * token.rstrip


def _derive(tokenizer, *, without=frozenset(), is_first=True):
    """The same model with offsets of whole tokens, and without some added ones."""
    import tokenizers

    model = json.loads(tokenizer.parsing.to_str())
    model["added_tokens"] = [x for x in model["added_tokens"] if x["id"] not in without]
    model["post_processor"] = None  # it cuts white space off the offsets
    if not is_first:
        _prefix_nothing(model.get("pre_tokenizer"))
    return tokenizers.Tokenizer.from_str(json.dumps(model))


def _prefix_nothing(step: Any) -> None:
    """A piece behind a token is not the first of its text."""
    if isinstance(step, dict):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
        for each in step.get("pretokenizers", ()):
            _prefix_nothing(each)
