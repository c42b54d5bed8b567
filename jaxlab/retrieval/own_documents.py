"""A query's own document: the one that has its id, in sets whose queries are documents.

ArguAna and Quora find each query first. BEIR and MTEB (`ignore_identical_ids`) leave it
out by its id, and so does every search, feedback, mining and measure here.
*Deviation*: a document that is judged for its query stays, its id is a coincidence.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def find(
    queries: Sequence[str], documents: Iterable[Any], qrels: Qrels | None = None
) -> np.ndarray | None:
    """The row of each query's own document, i64[Q], -1 of none; None: no query has one.

    >>> find(["a", "b", "c"], ["c", "a"], {"c": {"c": 1}})
    array([ 1, -1, -1])
    """
    row_of = {str(each): row for row, each in enumerate(documents)}
    judged = qrels or {}
    rows = np.array(
        [-1 if x in judged.get(x, {}) else row_of.get(x, -1) for x in queries], np.int64
    )
    return rows if (rows >= 0).any() else None


def leave_out(run: Run, qrels: Qrels | None = None) -> tuple[Run, int]:
    """A run without the queries' own documents, and how many those are.

    >>> leave_out({"q": {"q": 2.0, "a": 1.0}}, {"q": {"a": 1}})
    ({'q': {'a': 1.0}}, 1)
    """
    judged = qrels or {}
    own = {q for q, scores in run.items() if q in scores and q not in judged.get(q, {})}
    if not own:
        return run, 0
    kept = {
        query: {x: s for x, s in scores.items() if query not in own or x != query}
        for query, scores in run.items()
    }
    return kept, len(own)


def say(count: int) -> str:
    """The line that a command prints."""
    return (
        f"{count} queries have the identical id of a document, which is left out, as "
        "BEIR does; --keep-identical keeps it"
    )


def put_last(
    own: np.ndarray, scores: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rankings [Q, K] with the own documents i64[Q] behind all others: (scores, rows).

    >>> put_last(np.array([5, -1]), np.ones((2, 2)), np.array([[5, 2], [3, 4]]))[1]
    array([[2, 5],
           [3, 4]])
    """
    is_own = rows == own[:, None]
    lowest = scores.min(axis=1, keepdims=True) - 1
    order = np.argsort(is_own, axis=1, kind="stable")
    scores = np.where(is_own, lowest, scores).astype(scores.dtype)
    return tuple(np.take_along_axis(x, order, axis=1) for x in (scores, rows))


class Searches:
    """Searches of an index that leave out each query's own document.

    Args:
        index: an `Index`.
        own: of `find`; None: nothing is left out.
        candidates: first documents from elsewhere; None: the index's nearest.
    """

    def __init__(self, index: Any, own: np.ndarray | None = None, candidates=None):
        self._index, self._own, self._candidates = index, own, candidates

    def limit(self, count: int) -> int:
        """How many of `count` documents every query can be given without its own."""
        most = len(self._index) - (self._own is not None)
        return min(count, max(most, 1))

    def first(
        self, queries: np.ndarray, count: int, start: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """`nearest`, or the first of the candidates where there are some.

        Raises:
            UserError: there are fewer candidates.
        """
        candidates = self._candidates
        if candidates is None:
            return self.nearest(queries, count, start)
        wanted = count + (self._own is not None)
        if candidates.rows.shape[1] < min(wanted, len(self._index)):
            raise errors.UserError(
                f"{candidates.rows.shape[1]} candidates per query; give {wanted}"
            )
        some = slice(start, start + len(queries))
        rows, scores = (np.asarray(x)[some] for x in candidates[:2])
        return self._cut(scores, rows, count, start)

    def nearest(
        self, queries: np.ndarray, count: int, start: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), [Q, count], of queries that begin at number `start`.

        Of an index that has no other documents left, the own one comes last.
        """
        wanted = count + (self._own is not None)
        scores, rows = self._index.search_rows(queries, wanted)
        return self._cut(scores, rows, count, start)

    def _cut(self, scores, rows, count, start):
        if self._own is not None:
            own = self._own[start : start + len(rows)]
            scores, rows = put_last(own, scores, rows)
        return scores[:, :count], rows[:, :count]
