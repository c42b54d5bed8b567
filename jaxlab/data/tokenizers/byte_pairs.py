"""Byte-level BPE: a `tokenizer.json`, run by the `tokenizers` library.

*Deviation* from the library: special tokens that a text spells out are ordinary
characters unless `special` is asked for (see `tokenizer`), so two models are kept, of
which the second is made when it is first needed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlab.core import errors
from jaxlab.data.tokenizers import special_tokens

# Classes that take a tokenizer.json as it is, whatever add_prefix_space says.
_AS_IT_IS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
# Classes whose tokenizer_config.json outranks the normalizer of the tokenizer.json.
_OF_BERT = ("BertTokenizer", "BertTokenizerFast")
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """A `tokenizer.json`, run by the `tokenizers` library."""

    plain: Any  # spelled-out special tokens are ordinary text
    vocab_size: int
    special_tokens: special_tokens.SpecialTokens
    fingerprint: str
    path: pathlib.Path  # for messages
    data: bytes = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_bytes(
        cls, data: bytes, config: Mapping[str, Any], path: pathlib.Path
    ) -> "BytePairs":
        """From the content of a tokenizer.json."""
        plain = _read(data, config, path)
        plain.encode_special_tokens = True
        special = special_tokens.find(plain.token_to_id, config, path)
        size = max(plain.get_vocab().values()) + 1
        fingerprint = hashlib.sha256(data).hexdigest()
        return cls(plain, size, special, fingerprint, path, data, config)

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
    def parsing(self) -> Any:
        """The library's tokenizer, which reads spelled-out tokens as such."""
        return _read(self.data, self.config, self.path)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `tokenizer.Tokenizer`."""
        model = self.parsing if special else self.plain
        with self.explain_failure():
            return model.encode(text, add_special_tokens=False).ids

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """See `tokenizer.Tokenizer`."""
        model = self.parsing if special else self.plain
        with self.explain_failure():
            encoded = model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    @contextlib.contextmanager
    def explain_failure(self) -> Iterator[None]:
        """Turns what the library raises, or panics with, into one line."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, errors.UserError) or not is_failure(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise errors.UserError(
                f"{self.path} cannot encode this text ({reason:.200}); take the "
                "tokenizer from where the model is published"
            ) from None

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """See `tokenizer.Tokenizer`."""
        ids = [int(i) for i in ids]
        if not special:
            drop = {self.bos_id, self.eos_id, self.pad_id}
            ids = [i for i in ids if i not in drop]
        with self.explain_failure():
            return self.plain.decode(ids, skip_special_tokens=not special)

    def save(self, folder: str | pathlib.Path) -> None:
        """See `tokenizer.Tokenizer`."""
        special_tokens.write_files(
            pathlib.Path(folder),
            ("tokenizer.json", self.data),
            self.special_tokens,
            self.config,
            "PreTrainedTokenizerFast",
        )


def is_failure(error: BaseException) -> bool:
    """Whether an error is the library's own: a bare Exception, or a panic of Rust."""
    is_panic = type(error).__name__ == "PanicException"  # no Exception
    return is_panic or isinstance(error, Exception)


def _read(data: bytes, config: Mapping[str, Any], path: pathlib.Path) -> Any:
    """A tokenizer.json with what the files beside it say, as transformers reads it."""
    import tokenizers

    model = tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
    model.no_truncation()
    model.no_padding()
    known = {token.content for token in model.get_added_tokens_decoder().values()}
    added = special_tokens.added_tokens(config)
    for text, token in sorted(added.items(), key=lambda item: item[1].id):
        if text in known:
            continue
        flags = {**token._asdict(), "normalized": not token.special}
        del flags["id"]
        model.add_tokens([tokenizers.AddedToken(text, **flags)])
        if model.token_to_id(text) != token.id:
            raise errors.UserError(
                f"{path} gives {text!r} the id {model.token_to_id(text)}, the files "
                f"beside it {token.id}; restore them from a copy"
            )
    prefix, kind = config.get("add_prefix_space"), config.get("tokenizer_class")
    is_byte_level = isinstance(model.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel)
    if is_byte_level and isinstance(prefix, bool) and kind not in _AS_IT_IS:
        model.pre_tokenizer.add_prefix_space = prefix
    if kind in _OF_BERT and isinstance(
        model.normalizer, tokenizers.normalizers.BertNormalizer
    ):
        for key, name in _BERT_SETTINGS.items():
            if isinstance(config.get(key), bool):
                setattr(model.normalizer, name, config[key])
    return model
