"""SentencePiece models: reading published ones, training small ones in memory.

SentencePiece (Kudo and Richardson, 2018, arXiv:1808.06226) writes spaces as U+2581.
*Deviation*: with models that we train, a real U+2581 in a text is spelled in byte
tokens, so that it comes back as itself.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlab.core import errors
from jaxlab.data.tokenizers import special_tokens

# A protocol buffer behind a model: its normalizer_spec has another add_dummy_prefix.
_DUMMY_PREFIX = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model, with tokens added beyond it where a folder lists them."""

    processor: Any
    vocab_size: int
    special_tokens: special_tokens.SpecialTokens
    fingerprint: str
    names: Mapping[str, int] = dataclasses.field(repr=False)  # control and added ones
    added: Mapping[str, special_tokens.Added] = dataclasses.field(repr=False)
    data: bytes = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_bytes(
        cls, data: bytes, config: Mapping[str, Any], path: pathlib.Path
    ) -> "SentencePiece":
        """From the content of a .model file."""
        import sentencepiece

        prefix = _DUMMY_PREFIX.get(config.get("add_prefix_space"), b"")
        processor = sentencepiece.SentencePieceProcessor(model_proto=data + prefix)
        size = processor.vocab_size()
        added = special_tokens.added_tokens(config)
        names = {
            processor.id_to_piece(i): i for i in range(size) if processor.is_control(i)
        } | {text: token.id for text, token in added.items()}
        known = names | {processor.id_to_piece(processor.unk_id()): processor.unk_id()}

        def id_of(name: str) -> int | None:
            return known.get(name)

        special = special_tokens.find(id_of, config, path)
        size = max(size, *(number + 1 for number in names.values()), 0)
        fingerprint = hashlib.sha256(data).hexdigest()
        return cls(processor, size, special, fingerprint, names, added, data, config)

    @property
    def bos_id(self) -> int | None:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.bos and self.special_tokens.bos[0]

    @property
    def adds_bos(self) -> bool:
        """See `tokenizer.Tokenizer`."""
        return special_tokens.adds_bos(self.config)

    @property
    def eos_id(self) -> int:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.eos[0]

    @property
    def pad_id(self) -> int:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.pad[0]

    @functools.cached_property
    def _patterns(self) -> dict[bool, re.Pattern | None]:
        """Tokens that a text may spell, longest first; True: special ones too."""
        return {special: self._pattern(special) for special in (False, True)}

    def _pattern(self, special: bool) -> re.Pattern | None:
        control = special_tokens.Added(0, special=True)
        found = [
            self.added.get(text, control).pattern(text)
            for text in sorted(self.names, key=len, reverse=True)
            if special or not self.added.get(text, control).special
        ]
        return re.compile("|".join(found)) if found else None

    @functools.cached_property
    def _inner(self) -> Any:
        """Encodes what stands behind a token: with no space in front if not legacy."""
        return self._bare if self.config.get("legacy") is False else self.processor

    @functools.cached_property
    def _bare(self) -> Any:
        """Encodes what no space is put in front of."""
        import sentencepiece

        data = self.data + _DUMMY_PREFIX[False]
        return sentencepiece.SentencePieceProcessor(model_proto=data)

    @functools.cached_property
    def _prefixed(self) -> bool:
        """Whether the model puts a space before every text, as Llama's does."""
        return self.processor.encode("a", out_type=str)[0].startswith(SPACE)

    @functools.cached_property
    def _space_ids(self) -> list[int] | None:
        """Byte tokens of U+2581; None where the published model cannot spell it."""
        ids = [self.processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        return None if self._prefixed or self.processor.unk_id() in ids else ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `tokenizer.Tokenizer`."""
        pattern = self._patterns[special]
        if pattern is None:
            return self._encode_text(text, self.processor)
        ids, start = [], 0
        for match in pattern.finditer(text):
            ids += self._encode_part(text[start : match.start()], not start)
            ids.append(self.names[match[0]] if match[0] in self.names else
                       self.names[match[0].strip()])  # fmt: skip
            start = match.end()
        return ids + self._encode_part(text[start:], not start)

    def _encode_part(self, text: str, is_first: bool) -> list[int]:
        if not text:
            return []
        return self._encode_text(text, self.processor if is_first else self._inner)

    def _encode_text(self, text: str, processor: Any) -> list[int]:
        """A text without tokens; a real U+2581 as bytes."""
        if SPACE not in text or not self._space_ids:
            return processor.encode(text)
        ids = []
        for number, part in enumerate(text.split(SPACE)):
            ids += (self._space_ids if number else []) + processor.encode(part)
        return ids

    def spans(
        self, text: str, is_first: bool = True, is_inside: bool = False
    ) -> list[tuple[int, int, int]]:
        """(id, start, stop) of the tokens of a text, whatever tokens it spells.

        A character's bytes are each of the whole character. A space is put in front
        behind a token only where the folder says legacy, as transformers 5 does (what
        says nothing was legacy before, and is in `encode`).

        Args:
            text: without added tokens.
            is_first: no token stands before it.
            is_inside: it goes on in the middle of a word.
        """
        has_prefix = is_first or self.config.get("legacy") is True
        processor = self.processor if has_prefix and not is_inside else self._bare
        spans, at = [], 0
        for number, part in enumerate(text.split(SPACE) if self._space_ids else [text]):
            if number:
                spans += [(i, at, at + 1) for i in self._space_ids]
                at += 1
            spans += [(i, at + a, at + b) for i, a, b in _spans(processor, part)]
            at += len(part)
        return spans

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """See `tokenizer.Tokenizer`."""
        if self._patterns[special] or any(SPACE in text for text in texts):
            return [self.encode(text, special=special) for text in texts]
        return self.processor.encode(list(texts), num_threads=-1)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """See `tokenizer.Tokenizer`."""
        name_of = {number: name for name, number in self.names.items()}
        texts = {token.id for token in self.added.values() if not token.special}
        size = self.processor.vocab_size()
        parts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if i in texts or (special and i in name_of):
                parts += [self.processor.decode(run), name_of[i]]
                run = []
            elif i not in name_of and 0 <= i < size:
                run.append(i)
        return "".join(parts) + self.processor.decode(run)

    def save(self, folder: str | pathlib.Path) -> None:
        """See `tokenizer.Tokenizer`."""
        plain = {} if self._prefixed else {"add_prefix_space": False, "legacy": False}
        special_tokens.write_files(
            pathlib.Path(folder),
            ("tokenizer.model", self.data),
            self.special_tokens,
            plain | dict(self.config),
            "LlamaTokenizer",
        )


def _spans(processor, text: str) -> list[tuple[int, int, int]]:
    """(id, start, stop) of what a processor makes of a text."""
    # Offsets are of characters; of bytes where there is no immutable proto any more.
    encode = getattr(processor, "encode_as_immutable_proto", None)
    pieces = (encode or processor.encode_as_proto)(text).pieces
    sizes = (1 if encode else len(character.encode()) for character in text)
    ends = itertools.accumulate(sizes, initial=0)
    place = {end: number for number, end in enumerate(ends)}
    spans, stop = [], None
    for piece in reversed(pieces):  # all but the last byte of a character are of none
        if piece.begin < piece.end or stop is None:
            stop = place[piece.end]
        spans.append((piece.id, place[piece.begin], stop))
    return spans[::-1]


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    seed: int = 0,
    model_type: str = "bpe",
    max_bytes: int = 50_000_000,
) -> SentencePiece:
    """Trains a SentencePiece model in memory; any text round-trips exactly.

    Identity normalisation, no prefix space, white space kept, digits apart, newline a
    token of its own, bytes for characters that are rare or unseen. Ids: 0 <unk>,
    1 <pad>, 2 </s>, then newline and the 256 bytes. There is no <s>: as in OLMo, what
    stands before a document is the end of another.

    Args:
        texts: documents.
        vocab_size: all ids, the 260 above included.
        seed: chooses the texts that are used beyond `max_bytes`.
        model_type: "bpe" or "unigram".
        max_bytes: text to train on at most.

    Raises:
        UserError: no text, or a vocabulary too large or too small for it (names the
            limit).
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts, seed, max_bytes),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,  # indentation
            split_digits=True,
            user_defined_symbols=["\n"],
            character_coverage=0.9995,
            unk_id=0,
            pad_id=1,
            pad_piece="<pad>",
            eos_id=2,
            bos_id=-1,
            max_sentence_length=1 << 16,
            num_threads=1,  # unigram sums floats in thread order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise errors.UserError(_training_error(str(error), vocab_size)) from None
    return SentencePiece.from_bytes(model.getvalue(), {}, pathlib.Path("<trained>"))


def _training_lines(texts: Iterable[str], seed: int, max_bytes: int) -> Iterable[str]:
    texts = list(texts)
    if sum(map(len, texts)) > max_bytes:
        prefix = str(seed).encode()
        texts.sort(key=lambda text: hashlib.blake2b(prefix + text.encode()).digest())
    used = 0
    for text in texts:
        used += len(text.encode("utf-8"))
        if used > max_bytes and used > len(text.encode("utf-8")):
            return
        for line in text.split("\n"):  # newline is its own token: nothing spans it
            for start in range(0, len(line), 4096):
                yield line[start : start + 4096]


def _training_error(message: str, vocab_size: int) -> str:
    if found := re.search(r"too high.*<= (\d+)", message):
        return (
            f"vocab_size {vocab_size} is too large for this text: give more text, or "
            f"use at most {found[1]} (--vocab-size, --config.data.vocab_size)"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size {vocab_size} is too small; use at least {found[1]}"
    if "sentences_.empty" in message:
        return "no text to train a tokenizer on; give documents"
    return f"SentencePiece could not be trained: {message.splitlines()[0]}"
