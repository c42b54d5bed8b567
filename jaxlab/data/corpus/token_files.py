"""Token files: a domain's documents as one flat array of token ids on disk.

The layout is OLMo's (Groeneveld et al., 2024, arXiv:2402.00838; written by Dolma's
`dolma tokens`), so files made there open here and the other way round:

    NAME.npy      token ids, little-endian uint16 (vocabulary <= 65536) or uint32, with
                  NO header in spite of the suffix: np.memmap reads it, np.load does not
    NAME.csv.gz   start,end,id,src,loc of every document, no header line
    NAME.json     ours: dtype, counts, tokenizer fingerprint, sha256 of NAME.npy
    NAME.bytes    ours: uint32 UTF-8 bytes of every document, for bits per byte

Every document ends with the end-of-text token, which is part of its span; none begins
with one. *Deviations*: documents are not shuffled on the way (the loader shuffles
rows) and their text is not stripped; a document is never cut, and no token is lost at
a file's end as in OLMo's `prepare_memmap_dataset.py`.
"""

import csv
import dataclasses
import functools
import gzip
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from jaxlab.core import errors, json_text, value_types

SUFFIXES = (".csv.gz", ".bytes", ".npy", ".json")  # in the order they are renamed in
_WIDTH_TOKENS = 1 << 12
_SCAN_TOKENS = 1 << 24  # a foreign file is searched for end-of-text tokens in pieces


# Characters of a table, which is packed: in a line, in all, more with more tokens.
_MOST_NAME, _MOST_NAMES, _NAMES_PER_TOKEN = 1 << 20, 1 << 28, 64

_INFO = {
    **dict.fromkeys(("tokens", "documents", "bytes", "words"), value_types.COUNT),
    **dict.fromkeys(("eos_id", "vocab_size"), value_types.TOKEN_ID.or_null()),
    "pad_id": value_types.TOKEN_ID,
    **dict.fromkeys(("dtype", "sha256", "tokenizer"), value_types.TEXT),
}

_log = logging.getLogger(__name__)


class Span(NamedTuple):
    """One document of a token file: tokens[start:stop], the end token included."""

    index: int
    start: int
    stop: int
    id: str
    source: str


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """A token file on disk; made by `write_tokens` or `TokenFile.open`.

    Attributes:
        path: NAME.npy.
        dtype: uint16 or uint32, little-endian.
        size: number of tokens.
        info: what NAME.json says; {} for a foreign file.
        eos_id: the token that ends a document, or None where unknown.
        vocab_size: one more than the largest id there may be, or None where unknown.
    """

    path: pathlib.Path
    dtype: np.dtype
    size: int
    info: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    eos_id: int | None = None
    vocab_size: int | None = None

    @classmethod
    def open(
        cls,
        path: str | pathlib.Path,
        dtype: Any = None,
        *,
        eos_id: int | None = None,
        vocab_size: int | None = None,
    ) -> "TokenFile":
        """Opens NAME or NAME.npy.

        Args:
            path: NAME or NAME.npy.
            dtype: needed only without NAME.json, e.g. "uint16" for OLMo 1's files.
            eos_id: needed only without NAME.json: it separates the documents.
            vocab_size: of the tokenizer, for `check_ids`; without NAME.json.

        Raises:
            UserError: missing, empty or truncated file; no dtype, or another than the
                file's; a NumPy header.
        """
        path = npy(path)
        size_bytes = _size_bytes(path)
        info = _read_info(path)
        given = None if dtype is None else _read_dtype(dtype)
        if info and given is not None and _read_dtype(info["dtype"]) != given:
            raise errors.UserError(f"{path} holds {info['dtype']}, not {dtype}")
        if not info and given is None:
            raise errors.UserError(
                f"{path} has no {beside(path, '.json').name} beside it; pass dtype, "
                "e.g. uint16 for OLMo 1 or uint32 for OLMo 2 "
                "(--config.data.files_dtype)"
            )
        kind = _read_dtype(info["dtype"]) if info else given
        tokens, rest = divmod(size_bytes, kind.itemsize)
        if rest or tokens != info.get("tokens", tokens):
            raise errors.UserError(
                f"{path} is truncated: {size_bytes} bytes of {kind} but "
                f"{info.get('tokens', 'a whole number of')} tokens; prepare it again"
            )
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise errors.UserError(
                    f"{path} has a NumPy header; token files are headerless: rewrite "
                    "it with numpy.load(...).tofile(...)"
                )
        file = cls(
            path,
            kind,
            tokens,
            info,
            info.get("eos_id", eos_id),
            info.get("vocab_size", vocab_size),
        )
        if not info:
            _check_width(file)
        return file

    @property
    def name(self) -> str:
        """The file's name without `.npy`."""
        return self.path.name.removesuffix(".npy")

    @property
    def tokens(self) -> np.ndarray:
        """uint[size]: the tokens, mapped from disk.

        Checks the file's size each time, since touching a mapped page that is no longer
        on disk ends the process without a message.

        Raises:
            UserError: the file was removed or truncated since it was opened.
        """
        if _size_bytes(self.path) != self.size * self.dtype.itemsize:
            raise errors.UserError(
                f"{self.path} changed size while in use; restore it and resume the run"
            )
        return self._memmap

    def check_ids(self, tokens: np.ndarray) -> None:
        """Refuses tokens of this file that its tokenizer does not have.

        Raises:
            UserError: the largest of them is beyond the vocabulary.
        """
        if self.vocab_size is not None and tokens.size:
            largest = int(tokens.max())
            if largest >= self.vocab_size:
                raise errors.UserError(
                    f"{self.path} holds the token {largest}, beyond the vocabulary of "
                    f"{self.vocab_size}: another tokenizer or dtype made it; see "
                    "--config.data.tokenizer and --config.data.files_dtype"
                )

    @functools.cached_property
    def _memmap(self) -> np.ndarray:
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.size,))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """i64[documents]: where each document ends; it starts where the last ended."""
        return self._table[0]

    @functools.cached_property
    def document_bytes(self) -> np.ndarray | None:
        """u32[documents]: UTF-8 bytes of each document, or None where unknown."""
        path = beside(self.path, ".bytes")
        if not path.exists():
            return None
        count = path.stat().st_size // 4
        if count != len(self.ends):
            raise errors.UserError(
                f"{path} counts {count} documents, {self.path.name} has "
                f"{len(self.ends)}; prepare them again"
            )
        return np.fromfile(path, dtype="<u4")

    def document_at(self, offset: int) -> Span:
        """The document that holds the token at `offset`."""
        if not 0 <= offset < self.size:
            raise IndexError(f"offset {offset} outside {self.path} of {self.size}")
        return self.span(int(np.searchsorted(self.ends, offset, side="right")))

    def span(self, index: int) -> Span:
        """The document numbered `index`."""
        ends, names = self._table
        start = int(ends[index - 1]) if index else 0
        identity, source = names[index] if names else (f"{self.name}:{index}", "")
        return Span(index, start, int(ends[index]), identity, source)

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Where documents end, and their (id, source)."""
        path = beside(self.path, ".csv.gz")
        if not path.exists():
            return _ends_by_token(self.tokens, self.eos_id, self.path), []
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                rows = list(_rows(file, self.size))
            starts = np.array([int(row[0]) for row in rows], np.int64)
            ends = np.array([int(row[1]) for row in rows], np.int64)
            whole = len(ends) and starts[0] == 0 and ends[-1] == self.size
            if whole and (starts[1:] == ends[:-1]).all():
                return ends, [(row[2], row[3]) for row in rows]
        except (ValueError, OverflowError, IndexError, csv.Error) as error:
            _log.debug("%s: %s", path, error)
        except (OSError, EOFError, zlib.error) as error:
            if getattr(error, "errno", None):
                raise
            raise errors.UserError(
                f"{path} is damaged ({error}); prepare {self.path.name} again"
            ) from None
        raise errors.UserError(
            f"{path} does not describe {self.path.name} ({self.size} tokens); "
            "remove it or prepare both again"
        )


def _rows(file: IO[str], tokens: int) -> Iterator[list[str]]:
    """The table's columns; of a packed file, no more than the tokens can have."""
    room = _MOST_NAMES + _NAMES_PER_TOKEN * tokens
    read = functools.partial(file.readline, _MOST_NAME)
    within = _within(iter(read, ""), room)
    for number, row in enumerate(csv.reader(within), start=1):
        if number > tokens:
            raise ValueError("more documents than tokens")
        yield row[:4]


def _within(lines: Iterator[str], room: int) -> Iterator[str]:
    for line in lines:
        room -= len(line)
        if room < 0 or len(line) == _MOST_NAME:
            raise ValueError("longer names than tokens")
        yield line


def _ends_by_token(
    tokens: np.ndarray, eos_id: int | None, path: pathlib.Path
) -> np.ndarray:
    if eos_id is None:
        raise errors.UserError(
            f"{path} names no documents: it has no .csv.gz; pass eos_id, or name its "
            "tokenizer (--config.data.tokenizer)"
        )
    ends = [
        np.flatnonzero(tokens[start : start + _SCAN_TOKENS] == eos_id) + start + 1
        for start in range(0, len(tokens), _SCAN_TOKENS)
    ]
    if not (len(ends[-1]) and ends[-1][-1] == len(tokens)):
        ends.append(np.array([len(tokens)]))  # the last document is cut short
    return np.concatenate(ends).astype(np.int64)


def _read_dtype(dtype: Any) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.kind != "u" or kind.newbyteorder("<").str != kind.str:
        raise errors.UserError(
            f"token dtype {dtype} is not unsigned and little-endian; use uint16 or "
            "uint32"
        )
    return kind


def _check_width(file: TokenFile) -> None:
    """Refuses a file of uint32 that is read as uint16: every second token is 0 or 1."""
    first = file.tokens[:_WIDTH_TOKENS]
    if file.dtype.itemsize != 2 or len(first) < 64:
        return
    if first[1::2].max() <= 1 < first[0::2].max():
        raise errors.UserError(
            f"{file.path} looks like uint32, not uint16: every second token is 0 or 1; "
            "set --config.data.files_dtype=uint32"
        )


def npy(path: str | pathlib.Path) -> pathlib.Path:
    """NAME or NAME.npy -> NAME.npy."""
    text = os.fspath(path)
    return pathlib.Path(text if text.endswith(".npy") else text + ".npy")


def beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    """NAME.npy -> NAME + suffix."""
    return path.with_name(path.name.removesuffix(".npy") + suffix)


def _size_bytes(path: pathlib.Path) -> int:
    try:
        size = os.stat(path).st_size
    except OSError:
        raise errors.UserError(
            f"{path} does not exist; make it with `jaxlab data prepare`"
        ) from None
    if size == 0:
        raise errors.UserError(f"{path} is empty (0 bytes); prepare it again")
    return size


def _read_info(path: pathlib.Path) -> dict[str, Any]:
    fix = f"prepare {path.name} again"
    file = beside(path, ".json")
    info = json_text.read_object(file, fix, keys=("dtype",)) or {}
    value_types.check(info, _INFO, file=str(file))
    return info
