"""texts.bin of an index: which text each of its vectors was made of.

8 bytes of the SHA-256 of each document, in the order of the rows; zeros where it is not
known, as of an index from before this file was written.
"""

import hashlib
import logging
import pathlib
from collections.abc import Sequence

from jaxlab.core import folders
from jaxlab.retrieval import formats

_FILE = "texts.bin"
_SIZE = 8
_UNKNOWN = bytes(_SIZE)

_log = logging.getLogger(__name__)


def write(
    folder: pathlib.Path, passages: Sequence[str], behind: Sequence[bytes] = ()
) -> None:
    """Writes the digests of all rows: those of `behind`, then those of the passages."""
    content = b"".join([*behind, *map(_digest, passages)])
    folders.write_bytes(folder / _FILE, content)


def read(folder: pathlib.Path, rows: int) -> list[bytes]:
    """The digest of each row."""
    file = folder / _FILE
    content = file.read_bytes() if file.is_file() else b""
    whole = content[: len(content) // _SIZE * _SIZE].ljust(rows * _SIZE, b"\0")
    return [whole[i * _SIZE : (i + 1) * _SIZE] for i in range(rows)]


def warn_of_changed(
    folder: pathlib.Path,
    ids: Sequence[str],
    digests: Sequence[bytes],
    corpus: formats.Corpus,
) -> None:
    """Says which documents of a corpus have another text than their vectors."""
    known = dict(zip(ids, digests, strict=True))
    pairs = zip(corpus.ids, corpus.passages(), strict=True)
    changed = [
        each
        for each, passage in pairs
        if known.get(each, _UNKNOWN) not in (_UNKNOWN, _digest(passage))
    ]
    if changed:
        _log.warning(
            "%s: %d documents have another text than when they were encoded, e.g. %r; "
            "their vectors are the old ones: build the index again to change them",
            folder,
            len(changed),
            changed[0],
        )


def _digest(passage: str) -> bytes:
    return hashlib.sha256(passage.encode("utf-8", "surrogatepass")).digest()[:_SIZE]
