"""BM25, a first stage by words, with the package bm25s (the extra jaxlab[bm25]).

    score(q, d) = sum over the terms of q:  idf tf / (tf + k1 (1 - b + b |d| / mean))
    idf = log(1 + (N - n + 0.5) / (n + 0.5))            n of N documents have the term

Robertson and Zaragoza 2009, *The probabilistic relevance framework: BM25 and beyond*,
in Lucene's form; the package: Lù 2024 (arXiv:2407.03618). k1 and b are Anserini's.

Terms are lower-cased runs of two or more letters or digits of any script, without
English stop words, unstemmed. Languages written without spaces, as Chinese and Thai,
are hardly cut into terms: use an encoder.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors, installation
from jaxlab.retrieval import feedback_loop, index_files


def library() -> Any:
    """The module bm25s.

    Raises:
        UserError: it is not installed.
    """
    try:
        import bm25s
    except ImportError:
        how = installation.how_to_add("bm25")
        raise errors.UserError(f"BM25 needs bm25s: {how}") from None
    return bm25s


class Bm25:
    """Documents by their terms, searched as an `Index` is.

    Args:
        texts: documents; one of them at least has a term.
        ids: N strings or N whole numbers, each once; None: the row numbers.
        k1: how soon a term's count saturates.
        b: how much long documents are discounted, 0 to 1.

    Raises:
        UserError: bm25s is not installed, no term in any document, or ids that do not
            fit.
    """

    def __init__(
        self,
        texts: Sequence[str],
        ids: Sequence[str | int] | None = None,
        *,
        k1: float = 0.9,
        b: float = 0.4,
    ):
        bm25s = library()
        if ids is not None and len(ids) != len(texts):
            raise errors.UserError(f"{len(ids)} ids for {len(texts)} texts")
        self.ids = np.arange(len(texts)) if ids is None else index_files.as_ids(ids)
        self._tokenize = bm25s.tokenize
        terms = self._terms(texts)
        if not any(terms):
            raise errors.UserError(f"none of {len(texts)} documents has a term")
        self._scorer = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._scorer.index(terms, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of each query.

        Args:
            queries: texts; one without a known term has scores of 0.
            k: at least 1. Of fewer documents all are returned.

        Returns:
            scores f32[Q, min(k, N)], largest first, and ids; equal scores are in row
            order.
        """
        if k < 1:
            raise errors.UserError(f"k {k}; use 1 or more")
        k = min(k, len(self.ids))
        scores = np.zeros((len(queries), k), np.float32)
        rows = np.tile(np.arange(k), (len(queries), 1))
        for query, terms in enumerate(self._terms(queries)):
            if terms:  # bm25s cannot score a query without any
                every = self._scorer.get_scores(terms)
                rows[query] = np.argsort(-every, kind="stable")[:k]
                scores[query] = every[rows[query]]
        return scores, self.ids[rows]

    def candidates(
        self, queries: Sequence[str], count: int
    ) -> feedback_loop.Candidates:
        """The first `count` documents of each query, for a loop of feedback.

        The texts are those of the index, in the order of its rows and without ids.

        Args:
            queries: texts.
            count: at most; those that share no term with a query come last, in row
                order.
        """
        started = time.perf_counter()
        scores, rows = self.search(queries, count)
        seconds = time.perf_counter() - started
        return feedback_loop.Candidates(rows.astype(np.int64), scores, seconds)

    def _terms(self, texts) -> list[list[str]]:
        if isinstance(texts, str):
            raise errors.UserError("texts is one string; give a list of them")
        if not texts:
            return []
        return self._tokenize(list(texts), return_ids=False, show_progress=False)
