"""Exact nearest neighbours by inner product, in memory or on disk.

    index = Index(vectors)                             row numbers are the ids
    scores, ids = index.search(queries, 10)            f32[Q, 10], ids[Q, 10]
    Index.build("folder", batches, ids)                once; goes on where it was killed
    index = Index.open("folder")                       maps the file, reads no vector

Scores are inner products in f32: cosines where encoder and queries are of unit length.
The index does not care what made the vectors. How the search works: `topk`; how files
look: `index_files`.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxlab.core import errors
from jaxlab.retrieval import index_files, topk

_LARGEST = float(np.finfo(np.float32).max) / 2  # of a sum, with room for its rounding


class Index:
    """Vectors that are searched exactly.

    Args:
        vectors: [N, dim], numbers; kept as bf16 if they are bf16, else as f32, and
            copied. N may be 0; duplicates and vectors of zeros are as any others.
        ids: N strings or N whole numbers, each once; None: the row numbers.
        mesh: over whose devices the rows are split; None is one device.

    Attributes:
        ids: [N], of int64 or `object`.
        made_from: what `build` was told of the vectors' origin.

    Raises:
        UserError: vectors that are not such an array, one that is not finite (names
            it), or ids that do not fit.

    >>> index = Index(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), ["a", "b", "c"])
    >>> scores, ids = index.search(np.array([[2.0, 1.0]]), 3)
    >>> scores.tolist(), ids.tolist()
    ([[2.0, 2.0, 1.0]], [['a', 'c', 'b']])
    """

    def __init__(
        self,
        vectors: Any,
        ids: Sequence[str | int] | None = None,
        *,
        mesh: Mesh | None = None,
    ):
        given = np.asarray(vectors)
        dtype = "bfloat16" if given.dtype == jnp.bfloat16 else "float32"
        # A copy: the device shares the memory, and the caller may write to his.
        rows = index_files.as_rows(np.array(given), dtype)
        if ids is not None and len(ids) != len(rows):
            raise errors.UserError(f"{len(ids)} ids for {len(rows)} vectors")
        checked = None if ids is None else index_files.as_ids(ids)
        self._set(
            index_files.Stored(rows, checked, index_files.largest(rows), {}), mesh
        )
        self._blocks = list(topk.place_blocks(rows, mesh))

    @classmethod
    def build(
        cls,
        folder: str | pathlib.Path,
        batches: index_files.Batches,
        ids: Sequence[str | int] | None = None,
        *,
        dtype: str = "float32",
        made_from: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ) -> "Index":
        """Writes an index batch by batch and opens it.

        A build that was interrupted goes on after its last complete batch if folder,
        ids, dtype and `made_from` are the same. One that was finished is made anew; the
        old one is there until the new one is complete.

        Args:
            folder: made where it is missing.
            batches: arrays [n, dim]; or a function of the number of rows that are
                already stored, which returns the rest, so that nothing is encoded
                twice. Of an iterable those rows are taken and left out.
            ids: of all rows; None: the row numbers.
            dtype: "float32" or "bfloat16", half the size.
            made_from: anything JSON that identifies the encoder and the texts.
            mesh: as for `Index`.

        Raises:
            UserError: as `Index`; vectors of several lengths; no vectors; not as many
                ids as vectors; an unfinished index of something else in `folder`.
        """
        index_files.build(folder, batches, ids, dtype=dtype, made_from=made_from)
        return cls.open(folder, mesh=mesh)

    @classmethod
    def append(
        cls,
        folder: str | pathlib.Path,
        batches: Iterable[np.ndarray],
        ids: Sequence[str | int] | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> "Index":
        """Adds rows to a finished index, all or none, and opens it.

        Args:
            folder: of the index. Those who have it open go on seeing the old rows.
            batches: arrays [n, dim].
            ids: of the new rows, where the index has ids.
            mesh: as for `Index`.

        Raises:
            UserError: as `build`; an id that the index has.
        """
        index_files.append(folder, batches, ids)
        return cls.open(folder, mesh=mesh)

    @classmethod
    def open(
        cls,
        folder: str | pathlib.Path,
        *,
        verify: bool = False,
        mesh: Mesh | None = None,
    ) -> "Index":
        """Maps an index; a search then streams through the file block by block.

        Args:
            folder: of `build`.
            verify: read all vectors and compare their checksum; that of the ids always
                is.
            mesh: as for `Index`.

        Raises:
            UserError: not an index, an unfinished or a damaged one.
        """
        index = cls.__new__(cls)
        index._set(index_files.read(folder, verify=verify), mesh)
        return index

    def _set(self, files: index_files.Stored, mesh: Mesh | None) -> None:
        self._vectors, self._largest, self._mesh = files.vectors, files.largest, mesh
        self.made_from = files.made_from
        self.ids = np.arange(len(files.vectors)) if files.ids is None else files.ids
        self._blocks: list | None = None  # None: placed anew at each search

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._vectors.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """What the vectors are stored as."""
        return self._vectors.dtype

    def search(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k vectors with the largest inner products with each query.

        Args:
            queries: [Q, dim], numbers, used as f32.
            k: at least 1. Of fewer vectors all are returned.

        Returns:
            scores f32[Q, min(k, N)], largest first, and the ids of those vectors; equal
            scores are in row order.

        Raises:
            UserError: queries that do not fit or are not finite, k < 1, or numbers so
                large that an inner product may overflow f32.
        """
        scores, rows = self.search_rows(queries, k)
        return scores, self.ids[rows]

    def search_rows(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` with row numbers, i32[Q, k], instead of ids: what `take` takes."""
        queries = self._check_queries(queries)
        if k < 1:
            raise errors.UserError(f"k {k}; use 1 or more")
        blocks = self._blocks
        if blocks is None:
            blocks = topk.place_blocks(self._vectors, self._mesh)
        return topk.top_k(queries, blocks, k, self._mesh)

    def take(self, rows: Any) -> np.ndarray:
        """Vectors by row number: f32[..., dim] of integers [...]."""
        return np.asarray(self._vectors[np.asarray(rows)], np.float32)

    def _check_queries(self, queries):
        given = np.shape(queries)
        if len(given) != 2 or given[1] != self.dim:
            raise errors.UserError(
                f"queries have shape {list(given)}; use [Q, {self.dim}]"
            )
        try:
            queries = index_files.as_rows(queries, "float32")
        except errors.UserError as error:
            raise errors.UserError(f"queries: {error}") from None
        bound = index_files.largest(queries) * self._largest * self.dim
        if bound > _LARGEST:
            raise errors.UserError(
                f"inner products may reach {bound:.1e}, too large for float32; divide "
                "the vectors or the queries by their lengths"
            )
        return queries
