"""Byte-level BPE: a `tokenizer.json`, run by the `tokenizers` library.

*Deviation* from the library: special tokens that a text spells out are ordinary
characters unless `special` is asked for (see `tokenizer`), so two models are kept, of
which the second is made when it is first needed.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.data.tokenizers import special_tokens


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """A `tokenizer.json`, run by the `tokenizers` library."""

    plain: Any  # spelled-out special tokens are ordinary text
    vocab_size: int
    special_tokens: special_tokens.SpecialTokens
    fingerprint: str
    data: bytes = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_bytes(
        cls, data: bytes, config: Mapping[str, Any], path: pathlib.Path
    ) -> "BytePairs":
        """From the content of a tokenizer.json."""
        import tokenizers

        plain = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        special = special_tokens.find(plain.token_to_id, config, path)
        size = max(plain.get_vocab().values()) + 1
        fingerprint = hashlib.sha256(data).hexdigest()
        return cls(plain, size, special, fingerprint, data, config)

    @property
    def bos_id(self) -> int | None:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.bos and self.special_tokens.bos[0]

    @property
    def eos_id(self) -> int:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.eos[0]

    @property
    def pad_id(self) -> int:
        """See `tokenizer.Tokenizer`."""
        return self.special_tokens.pad[0]

    @functools.cached_property
    def _parsing(self) -> Any:
        import tokenizers

        parsing = tokenizers.Tokenizer.from_str(self.data.decode("utf-8"))
        parsing.no_truncation()
        parsing.no_padding()
        return parsing

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `tokenizer.Tokenizer`."""
        model = self._parsing if special else self.plain
        return model.encode(text, add_special_tokens=False).ids

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """See `tokenizer.Tokenizer`."""
        model = self._parsing if special else self.plain
        encoded = model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """See `tokenizer.Tokenizer`."""
        ids = [int(i) for i in ids]
        if not special:
            drop = {self.bos_id, self.eos_id, self.pad_id}
            ids = [i for i in ids if i not in drop]
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
