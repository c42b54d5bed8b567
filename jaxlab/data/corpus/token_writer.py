"""Writing token files: documents in, NAME.npy and the files beside it out.

The layout is in `token_files`. The same documents and the same tokenizer give the same
bytes, whoever writes them: there is no time, no host and no folder in them.
"""

import csv
import gzip
import hashlib
import io
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from jaxlab.data.corpus import documents as documents_
from jaxlab.data.tokenizers import tokenizer as tokenizer_

log = logging.getLogger(__name__)

_BATCH_BYTES = 1 << 20  # text encoded at once: bounds memory, feeds encode_batch


def encoded(
    documents: Iterable[documents_.Document],
    tokenizer: tokenizer_.Tokenizer,
    place: str | pathlib.Path,
) -> Iterator[tuple[list[documents_.Document], list[list[int]]]]:
    """Documents and their ids, about a megabyte of text at a time.

    Documents without text (empty or white space) are left out and counted in the log,
    under the name of `place`.
    """
    skipped = 0
    for batch in _batches(documents):
        kept = [document for document in batch if document.text.strip()]
        skipped += len(batch) - len(kept)
        if kept:
            yield kept, tokenizer.encode_batch([document.text for document in kept])
    if skipped:
        log.warning("%s: left out %d empty documents", place, skipped)


class TokenWriter:
    """Writes one token file and its table, in a `with` block; `info` is its NAME.json.

    Args:
        paths: where the files of `.npy`, `.bytes` and `.csv.gz` go.
        tokenizer: whose ids are written; it gives the width of them and the last of
            every document.
    """

    def __init__(
        self, paths: Mapping[str, pathlib.Path], tokenizer: tokenizer_.Tokenizer
    ):
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
        self._tokenizer, self._digest = tokenizer, hashlib.sha256()
        self._counts = dict.fromkeys(("tokens", "documents", "bytes", "words"), 0)
        self._tokens = paths[".npy"].open("wb")
        self._bytes = paths[".bytes"].open("wb")
        self._raw_table = paths[".csv.gz"].open("wb")
        self._table = _text_gzip(self._raw_table)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *exception) -> None:
        for file in (self._table, self._raw_table, self._bytes, self._tokens):
            file.close()

    def add(
        self, documents: Sequence[documents_.Document], ids: Sequence[list[int]]
    ) -> None:
        """Adds documents, of which none is empty, and the ids of each."""
        eos = [self._tokenizer.eos_id]
        flat = itertools.chain.from_iterable(part for own in ids for part in (own, eos))
        data = np.fromiter(flat, self._dtype, sum(map(len, ids)) + len(ids)).tobytes()
        self._digest.update(data)
        self._tokens.write(data)
        sizes = [len(document.text.encode("utf-8")) for document in documents]
        self._bytes.write(np.array(sizes, "<u4").tobytes())
        counts, rows = self._counts, []
        for document, own in zip(documents, ids, strict=True):
            start, number = counts["tokens"], counts["documents"]
            stop = start + len(own) + 1
            rows.append((start, stop, document.id, document.source, number))
            counts["tokens"], counts["documents"] = stop, number + 1
            counts["words"] += len(document.text.split())
        csv.writer(self._table).writerows(rows)
        counts["bytes"] += sum(sizes)

    def info(self) -> dict[str, Any]:
        """What NAME.json says of all that was added."""
        tokenizer = self._tokenizer
        return {
            "dtype": self._dtype.name,
            **self._counts,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "sha256": self._digest.hexdigest(),
        }


def _batches(
    documents: Iterable[documents_.Document],
) -> Iterator[list[documents_.Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _text_gzip(raw: IO[bytes]) -> io.TextIOWrapper:
    # No name and no time in the header: the same documents give the same bytes.
    return io.TextIOWrapper(
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0),
        encoding="utf-8",
        newline="",
    )
