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

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxlab.core import errors
from jaxlab.data.templates import traced, vocabularies
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib


class Token(NamedTuple):
    """A token of a text: its id and the characters that it is of."""

    id: int
    start: int
    stop: int
    is_control: bool = False


class Encoder:
    """Encodes traced texts.

    Args:
        tokenizer: as `tokenizers.load` gives it.
        allowed: added tokens that an assistant's contents may use.
    """

    def __init__(self, tokenizer: tokenizer_lib.Tokenizer, allowed: Sequence[str] = ()):
        self._vocabulary = vocabularies.of_tokenizer(tokenizer)
        self._added = {text: token.id for text, token in self._vocabulary.added.items()}
        self._allowed = frozenset(allowed)
        self._ids = frozenset(self._added.values())
        self._order = sorted(self._added, key=len, reverse=True)
        patterns = (self._vocabulary.added[text].pattern(text) for text in self._order)
        self._pattern = re.compile("|".join(patterns)) if self._order else None

    @property
    def added(self) -> Mapping[str, int]:
        """Text -> id of the control tokens."""
        return self._added

    def encode(
        self, text: traced.Traced, assistants: Iterable[int] = ()
    ) -> list[Token]:
        """The tokens of a text.

        Args:
            text: as a template renders it.
            assistants: numbers of the messages that answer.
        """
        answers = frozenset(assistants)
        if (spans := self._vocabulary.whole(str.__str__(text))) is not None:
            whole = [*self._tokens(spans, 0)]
            controls = (token for token in whole if token.is_control)
            if all(self._may_be(text, token, answers) for token in controls):
                return whole
        tokens, start = [], 0
        for match in self._find(text, answers):
            tokens += self._encode_piece(text, start, match.start)
            tokens.append(match)
            start = match.stop
        return tokens + self._encode_piece(text, start, len(text))

    def _tokens(self, spans, offset) -> Iterator[Token]:
        for number, start, stop in spans:
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
            number = self._added[match[0].strip()]
            token = Token(number, match.start(), match.end(), True)
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
        for spelled in self._order:
            token = Token(self._added[spelled], start, start + len(spelled), True)
            if text.startswith(spelled, start) and self._may_be(text, token, answers):
                return token
        return None

    def _encode_piece(self, text, start, stop, place="") -> list[Token]:
        if start == stop:
            return []
        place = place or (vocabularies.BEHIND if start else vocabularies.FIRST)
        spans = self._vocabulary.piece(str.__str__(text[start:stop]), place)
        tokens = [*self._tokens(spans, start)]
        for token in tokens:
            if token.is_control:  # a vocabulary may hold the marker as a word, too
                middle = token.start + 1
                if middle >= stop:
                    raise errors.UserError(
                        f"a message spells {str.__str__(text[start:stop])!r}, a "
                        "control token that has no other spelling; take it out"
                    )
                head = self._encode_piece(text, start, middle, place)
                rest = self._encode_piece(text, middle, stop, vocabularies.INSIDE)
                return head + rest
        return tokens
