"""Writing token files: documents in, NAME.npy and the files beside it out.

The layout is in `token_files`. The same documents and the same tokenizer give the same
bytes, whoever writes them: there is no time, no host and no folder in them.

    documents -> encode_documents -> side_of(document) -> a TokenWriter per side

`write_tokens` has one side; a domain with held-out documents has two, a shard too.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from jaxlab.core import errors, folders
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_log = logging.getLogger(__name__)

_BATCH_BYTES = 1 << 20  # text encoded at once: bounds memory, feeds encode_batch


def write_tokens(
    documents: Iterable[documents_lib.Document],
    tokenizer: tokenizer_lib.Tokenizer,
    prefix: str | os.PathLike,
) -> token_files.TokenFile:
    """Encodes documents into PREFIX.npy and the files beside it; see `write_files`."""
    return write_files(documents, tokenizer, {"": prefix}, lambda document: "")[""]


def write_files(
    documents: Iterable[documents_lib.Document],
    tokenizer: tokenizer_lib.Tokenizer,
    prefixes: Mapping[str, str | os.PathLike],
    side_of: Callable[[documents_lib.Document], str],
) -> dict[str, token_files.TokenFile]:
    """Encodes documents into a token file per side.

    Text is encoded about a megabyte at a time, so memory stays bounded. Documents
    without text (empty or white space) are left out and counted in the log. Files
    appear under their names only when all are complete, PREFIX.json last.

    Args:
        documents: of all sides, in order.
        tokenizer: encodes the text.
        prefixes: side -> where PREFIX.npy and the files beside it go.
        side_of: the side of a document that has text; called once for each, in order.

    Raises:
        UserError: no document with text for a side.
    """
    files = {side: _paths(prefix) for side, prefix in prefixes.items()}
    for own in files.values():
        own[".npy"].parent.mkdir(parents=True, exist_ok=True)
    parts = {
        side: {suffix: folders.temporary_name(path) for suffix, path in own.items()}
        for side, own in files.items()
    }
    try:
        infos = write_sides(documents, tokenizer, parts, side_of)
        for side, info in infos.items():
            path = files[side][".npy"]
            if not info["documents"]:
                raise errors.UserError(
                    f"no document with text for {path}; add documents"
                )
            text = json.dumps(info, indent=1) + "\n"
            parts[side][".json"].write_text(text, "utf-8")
        for side, own in files.items():
            folders.publish({parts[side][suffix]: own[suffix] for suffix in own})
    finally:
        for own in parts.values():
            for part in own.values():
                part.unlink(missing_ok=True)
    return {
        side: token_files.TokenFile.open(own[".npy"]) for side, own in files.items()
    }


def write_sides(
    documents: Iterable[documents_lib.Document],
    tokenizer: tokenizer_lib.Tokenizer,
    paths: Mapping[str, Mapping[str, pathlib.Path]],
    side_of: Callable[[documents_lib.Document], str],
    name: str = "",
) -> dict[str, dict[str, Any]]:
    """Encodes documents into the files of `.npy`, `.bytes` and `.csv.gz` of each side.

    Args:
        documents, tokenizer, side_of: as of `write_files`.
        paths: side -> suffix -> path.
        name: of the documents, in the log.

    Returns:
        Side -> what its NAME.json says.
    """
    with contextlib.ExitStack() as stack:
        writers = {
            side: stack.enter_context(TokenWriter(own, tokenizer))
            for side, own in paths.items()
        }
        for batch, ids in encode_documents(documents, tokenizer, name):
            by_side: dict[str, tuple[list, list]] = {side: ([], []) for side in paths}
            for document, own_ids in zip(batch, ids, strict=True):
                own_documents, all_ids = by_side[side_of(document)]
                own_documents.append(document)
                all_ids.append(own_ids)
            for side, (own_documents, all_ids) in by_side.items():
                writers[side].add(own_documents, all_ids)
    return {side: writer.info() for side, writer in writers.items()}


def encode_documents(
    documents: Iterable[documents_lib.Document],
    tokenizer: tokenizer_lib.Tokenizer,
    name: str = "",
) -> Iterator[tuple[list[documents_lib.Document], list[list[int]]]]:
    """Documents and their ids, about a megabyte of text at a time.

    Documents without text (empty or white space) are left out and counted in the log,
    under `name`, or else under the domain of the last one.
    """
    skipped = 0
    for batch in _batches(documents):
        name = name or batch[-1].domain
        with_text = [document for document in batch if document.text.strip()]
        skipped += len(batch) - len(with_text)
        if with_text:
            texts = [document.text for document in with_text]
            yield with_text, tokenizer.encode_batch(texts)
    if skipped:
        _log.warning("%s: left out %d empty documents", name, skipped)


class TokenWriter:
    """Writes one token file and its table, in a `with` block; `info` is its NAME.json.

    Args:
        paths: where the files of `.npy`, `.bytes` and `.csv.gz` go.
        tokenizer: whose ids are written; it gives the width of them and the last of
            every document.
    """

    def __init__(
        self, paths: Mapping[str, pathlib.Path], tokenizer: tokenizer_lib.Tokenizer
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
        self, documents: Sequence[documents_lib.Document], ids: Sequence[list[int]]
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


def _paths(prefix: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Suffix -> path of a token file, in the order in which they appear."""
    path = token_files.npy(prefix)
    return {suffix: token_files.beside(path, suffix) for suffix in token_files.SUFFIXES}


def _batches(
    documents: Iterable[documents_lib.Document],
) -> Iterator[list[documents_lib.Document]]:
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
        errors="backslashreplace",  # ids and file names may be no UTF-8
        newline="",
    )
