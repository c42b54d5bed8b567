"""Many token files that read as one: a domain of `jaxlab data tokenize`.

Documents and tokens are numbered through, so a loader makes the same batches as from
one file of the same documents. Shards are opened when a row of theirs is read, the last
few stay open; before that only their sizes are looked at.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors, json_text, paths
from jaxlab.data.corpus import token_files
from jaxlab.data.shards import plan

_OPEN = 64  # shards: a mapped file costs address space, its documents' names memory


@dataclasses.dataclass(frozen=True, eq=False)
class TokenShards:
    """The same as a `token_files.TokenFile`, over several of them.

    Attributes:
        path: the domain's folder.
        files: NAME.npy of each shard that has documents, in order.
        infos: what NAME.json says of each.
    """

    path: pathlib.Path
    files: Sequence[pathlib.Path]
    infos: Sequence[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """As one file's, but that `sha256` is of the shards' checksums."""
        total = dict(self.infos[0])
        for key in ("tokens", "documents", "bytes", "words"):
            total[key] = sum(info[key] for info in self.infos)
        parts = "".join(info["sha256"] for info in self.infos)
        return total | {"sha256": hashlib.sha256(parts.encode()).hexdigest()}

    @property
    def dtype(self) -> np.dtype:
        """uint16 or uint32, little-endian."""
        return np.dtype(self.info["dtype"]).newbyteorder("<")

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        return self.info["eos_id"]

    def check_ids(self, tokens: np.ndarray) -> None:
        """Nothing: whoever wrote the shards knew the vocabulary."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.info["tokens"]

    @property
    def tokens(self) -> "_Tokens":
        """uint[size]: slices of it are arrays."""
        return _Tokens(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """uint[stop - start]: a range of tokens, which may cross shards."""
        parts = []
        shard = int(np.searchsorted(self._token_ends, start, side="right"))
        while start < stop:
            first = self._first_token(shard)
            end = min(stop, int(self._token_ends[shard]))
            parts.append(self._shard(shard).tokens[start - first : end - first])
            start, shard = end, shard + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """i64[documents]: where each document ends; reads the table of every shard."""
        return np.concatenate(
            [
                token_files.TokenFile.open(path).ends + self._first_token(shard)
                for shard, path in enumerate(self.files)
            ]
        )

    @functools.cached_property
    def document_bytes(self) -> np.ndarray:
        """u32[documents]: UTF-8 bytes of each document."""
        return np.concatenate([_document_bytes(path) for path in self.files])

    def document_at(self, offset: int) -> token_files.Span:
        """The document that holds the token at `offset`."""
        if not 0 <= offset < self.size:
            raise IndexError(f"offset {offset} outside {self.path} of {self.size}")
        shard = int(np.searchsorted(self._token_ends, offset, side="right"))
        span = self._shard(shard).document_at(offset - self._first_token(shard))
        return self._numbered_through(span, shard)

    def span(self, index: int) -> token_files.Span:
        """The document numbered `index`."""
        shard = int(np.searchsorted(self._document_ends, index, side="right"))
        first = int(self._document_ends[shard - 1]) if shard else 0
        return self._numbered_through(self._shard(shard).span(index - first), shard)

    def _numbered_through(self, span: token_files.Span, shard: int) -> token_files.Span:
        documents = int(self._document_ends[shard - 1]) if shard else 0
        tokens = self._first_token(shard)
        return span._replace(
            index=span.index + documents,
            start=span.start + tokens,
            stop=span.stop + tokens,
        )

    @functools.cached_property
    def _token_ends(self) -> np.ndarray:
        return np.cumsum([info["tokens"] for info in self.infos], dtype=np.int64)

    @functools.cached_property
    def _document_ends(self) -> np.ndarray:
        return np.cumsum([info["documents"] for info in self.infos], dtype=np.int64)

    def _first_token(self, shard: int) -> int:
        return int(self._token_ends[shard - 1]) if shard else 0

    def _shard(self, shard: int) -> token_files.TokenFile:
        return self._open(self.files[shard])

    @functools.cached_property
    def _open(self) -> Any:
        return functools.lru_cache(maxsize=_OPEN)(token_files.TokenFile.open)


class _Tokens:
    """Tokens by index and slice, as NumPy's; the whole is never in memory."""

    def __init__(self, shards: TokenShards):
        self._shards = shards

    def __len__(self) -> int:
        return self._shards.size

    def __getitem__(self, key: int | slice) -> Any:
        indices = range(len(self))[key]
        if not isinstance(indices, range):
            return self._shards.read(indices, indices + 1)[0]
        if indices.step != 1:
            raise IndexError("tokens of shards are read in steps of 1")
        return self._shards.read(indices.start, indices.stop)


def open_folder(
    folder: pathlib.Path,
) -> tuple[dict[str, TokenShards], dict[str, TokenShards]]:
    """The training and the held-out side of every domain of a finished folder.

    Raises:
        UserError: a shard is missing or truncated.
    """
    path = folder / plan.MANIFEST
    manifest = json_text.read_object(path, plan.FIX, plan.KEYS)
    with json_text.as_written(path, plan.FIX):
        train = _open_side(folder, manifest, "train", "")
        return train, _open_side(folder, manifest, "held_out", plan.HELD_OUT)


def _open_side(folder, manifest, key: str, suffix: str) -> dict[str, TokenShards]:
    side = {}
    for domain, totals in manifest["domains"].items():
        records = [r for r in manifest["shards"] if r["domain"] == domain]
        records = [r for r in records if r.get(key, {}).get("documents")]
        if key in totals:
            own = f"{domain}{suffix}"
            names = [f"{own}/{record['shard']}.npy" for record in records]
            files = [paths.inside(folder, n, folder / plan.MANIFEST) for n in names]
            _check_sizes(folder, files, records)
            side[domain] = TokenShards(folder / own, files, [r[key] for r in records])
    return side


def _check_sizes(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    records: Sequence[dict[str, Any]],
) -> None:
    for file, record in zip(files, records, strict=True):
        size = record["files"][file.relative_to(folder).as_posix()]["bytes"]
        if not file.is_file() or file.stat().st_size != size:
            raise errors.UserError(
                f"{file} is missing or truncated; remove {plan.MANIFEST} beside "
                "it and start `jaxlab data tokenize` again"
            )


def _document_bytes(path: pathlib.Path) -> np.ndarray:
    return np.fromfile(token_files.beside(path, ".bytes"), dtype="<u4")
