"""One small interface over byte-level BPE (tokenizer.json) and SentencePiece models.

    tokenizer = load("olmo/")            # or a tokenizer.json[.gz], or a .model file
    ids = tokenizer.encode("some text")  # no special token is ever added
    tokenizer.decode(ids)                # the same text again

`decode(encode(text)) == text` for every text, with tokenizers made by
`sentence_pieces.train`; for published ones up to the normalisation that they prescribe
(OLMo 1: Unicode NFC; Llama's SentencePiece: U+2581 becomes a space).

*Deviation* from Hugging Face's tokenizers: a special token that is spelled out in a
text, as in this file: `<|endoftext|>`, is encoded as ordinary characters. Otherwise any
document could end itself. `encode(text, special=True)` is their behaviour, which chat
templates need.
"""

import pathlib
from collections.abc import Sequence
from typing import Protocol

from jaxlab.core import errors, links, missing_models, tokenizer_files
from jaxlab.data.tokenizers import byte_pairs, sentence_pieces, special_tokens


class Tokenizer(Protocol):
    """Text <-> token ids.

    Attributes:
        vocab_size: one more than the largest id.
        bos_id: what texts begin with; None where they begin bare, as OLMo's.
        adds_bos: False where the folder says that texts begin without it all the same.
        eos_id: what documents end with.
        pad_id: fills rows; never a label.
        fingerprint: sha256 of the model file, decompressed.
    """

    vocab_size: int
    bos_id: int | None
    adds_bos: bool
    eos_id: int
    pad_id: int
    fingerprint: str

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; `special` reads spelled-out special tokens as such."""
        ...

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """The same for many texts, on several threads."""
        ...

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of ids; `special` spells special tokens out instead of dropping them.

        Ids outside the vocabulary (padded embedding rows) are dropped.
        """
        ...

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the model and what `load` and transformers need beside it."""
        ...


def load(path: str | pathlib.Path) -> Tokenizer:
    """Loads a folder, a tokenizer.json (also .gz) or a SentencePiece .model.

    A folder is searched for tokenizer.json, tokenizer.json.gz, tokenizer.model. Special
    tokens follow `special_tokens.find`; configuration files count in a folder only.

    Raises:
        UserError: nothing to load, a damaged file, or no end-of-text token.
    """
    path, config = pathlib.Path(path), {}
    if path.is_dir():
        links.check(path)
        config = special_tokens.read_config(path)
        names = special_tokens.MODEL_FILES
        file = next((path / name for name in names if (path / name).exists()), None)
        if file is None:
            raise errors.UserError(f"{path} holds none of {', '.join(names)}; add one")
        path = file
    if not path.is_file():
        raise missing_models.explain_tokenizer(path)
    try:
        data = tokenizer_files.read(path)
        if path.name.endswith(".model"):
            return sentence_pieces.SentencePiece.from_bytes(data, config, path)
        return byte_pairs.BytePairs.from_bytes(data, config, path)
    except BaseException as error:  # tokenizers raises bare Exception, and panics
        is_of_the_disk = getattr(error, "errno", None) is not None
        if isinstance(error, errors.UserError) or is_of_the_disk:
            raise
        if not byte_pairs.is_failure(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise errors.UserError(
            f"{path} is not a tokenizer ({reason}); give a tokenizer.json or a "
            "SentencePiece .model"
        ) from None
