"""A reranker's scores, cached: no pair of query and document is scored twice.

A reranker is any function of equally long arrays

    score(queries i64[P], rows i64[P]) -> f32[P]            higher is better

of query numbers and row numbers of an index. `CachedReranker` is one again: it asks for
what it does not know, keeps the answers with what each cost, and in a file if it is
given one, so that a run which was killed goes on, and methods that are compared pay for
the same pair once and are charged for it each.
"""

import pathlib
import time
from collections.abc import Callable

import numpy as np

from jaxlab.core import errors, folders
from jaxlab.core import progress as progress_lib

Reranker = Callable[[np.ndarray, np.ndarray], np.ndarray]

_RECORD = np.dtype(
    [("query", "<i8"), ("row", "<i8"), ("score", "<f4"), ("seconds", "<f4")]
)
_MAGIC = b"jaxlab scores 1\n"


class CachedReranker:
    """A reranker that scores each pair once and keeps the score.

    Args:
        score: the reranker itself.
        path: of the file that keeps the answers; None keeps them in memory only.
        made_from: what the answers depend on (models, texts), at most one line; a file
            of something else is refused.
        at_once: pairs that are asked for in one call, and kept together.
        progress: called with (pairs done, pairs of this call).

    Attributes:
        pairs: how many pairs were asked for, known ones included.
        seconds: what those cost when they were scored.

    Raises:
        UserError: not a file of scores, or one of something else.
    """

    def __init__(
        self,
        score: Reranker,
        path: str | pathlib.Path | None = None,
        *,
        made_from: str = "",
        at_once: int = 4096,
        progress: progress_lib.Progress | None = None,
    ):
        self._score, self._at_once, self._progress = score, at_once, progress
        self._known: dict[tuple[int, int], tuple[float, float]] = {}
        self._path = None if path is None else pathlib.Path(path)
        self.pairs, self.seconds = 0, 0.0
        if self._path is not None:
            self._resume(_MAGIC + made_from.encode() + b"\n")

    def __call__(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """f32[P]; only pairs that are not known reach the reranker, each once."""
        pairs = list(
            zip(np.asarray(queries).tolist(), np.asarray(rows).tolist(), strict=True)
        )
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        for start in range(0, len(new), self._at_once):
            self._ask(new[start : start + self._at_once])
            if self._progress is not None:
                self._progress(min(start + self._at_once, len(new)), len(new))
        answers = np.array([self._known[pair] for pair in pairs], np.float64)
        scores, seconds = answers.reshape(-1, 2).T
        self.pairs += len(pairs)
        self.seconds += float(seconds.sum())
        return scores.astype(np.float32)

    def _ask(self, pairs) -> None:
        queries, rows = np.array(pairs, np.int64).T
        started = time.perf_counter()
        scores = np.asarray(self._score(queries, rows), np.float32)
        each = (time.perf_counter() - started) / len(pairs)
        if scores.shape != (len(pairs),):
            raise errors.UserError(
                f"the reranker returned shape {scores.shape} for {len(pairs)} pairs; "
                "return one score per pair"
            )
        records = np.zeros(len(pairs), _RECORD)
        records["query"], records["row"] = queries, rows
        records["score"], records["seconds"] = scores, each
        if self._path is not None:
            with open(self._path, "ab") as file:
                file.write(records.tobytes())
        self._remember(records)

    def _remember(self, records) -> None:
        columns = [records[name].tolist() for name in records.dtype.names]
        for query, row, score, seconds in zip(*columns, strict=True):
            self._known[query, row] = score, seconds

    def _resume(self, header: bytes) -> None:
        folders.refuse_link(self._path, "remove it or use another folder")
        if not self._path.exists():
            self._path.write_bytes(header)
            return
        content = self._path.read_bytes()
        if not content.startswith(header):
            raise errors.UserError(
                f"{self._path} has the scores of other models or texts; remove it or "
                "use another folder"
            )
        whole = (len(content) - len(header)) // _RECORD.itemsize
        end = len(header) + whole * _RECORD.itemsize
        if end < len(content):  # killed while it wrote
            with open(self._path, "r+b") as file:
                file.truncate(end)
        self._remember(np.frombuffer(content[len(header) : end], _RECORD))
