"""Losses of windows of documents: what every proxy gives, to be resampled alike.

Nats and tokens are kept by row of a batch, in float64 on the host. A document may have
several rows (windows of a long text), in one batch or in several: rows with the same
number in `batch["document"]` belong together. Without that key every row is a document.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.stats import ratios

# What the host reads of a batch and no model does (`data.held_out.eval_batches`).
HOST_ONLY = ("document", "text_bytes")


class DocumentLosses(NamedTuple):
    """Summed losses of K mixtures (or models) on W windows of one evaluation set.

    Attributes:
        nats: f64[K, W], the sum of -log p over a window's tokens.
        tokens: f64[W], how many tokens counted; all positive.
        document: i64[W], 0 .. D-1 in order: windows of one document stand together.
            None where each is a document of its own.
    """

    nats: np.ndarray
    tokens: np.ndarray
    document: np.ndarray | None = None

    @property
    def loss(self) -> np.ndarray:
        """Nats a token, f64[K].

        >>> DocumentLosses(np.array([[2.0, 4.0]]), np.array([1.0, 2.0])).loss.tolist()
        [2.0]
        """
        return self.nats.sum(axis=1) / self.tokens.sum()

    def by_document(self) -> "DocumentLosses":
        """The same with one column per document.

        >>> windows = DocumentLosses(np.ones((1, 3)), np.ones(3), np.array([0, 0, 1]))
        >>> windows.by_document().nats.tolist()
        [[2.0, 1.0]]
        """
        if self.document is None:
            return self
        starts = np.unique(self.document, return_index=True)[1]
        return DocumentLosses(
            np.add.reduceat(self.nats, starts, axis=1),
            np.add.reduceat(self.tokens, starts),
        )

    def models(self, rows: Sequence[int] | np.ndarray | slice) -> "DocumentLosses":
        """Those of some of the K, in the order of `rows`."""
        return self._replace(nats=self.nats[rows])

    @property
    def resampled(self) -> str:
        """What an interval of these losses is over, in words; see `stats/ratios.py`.

        >>> DocumentLosses(np.ones((1, 2)), np.ones(2), np.zeros(2, int)).resampled
        '2 windows of the only document'
        """
        return ratios.describe(len(self.tokens), self.document)


class Collector:
    """Gathers rows, batch by batch."""

    def __init__(self):
        self._nats: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self._rows = 0

    def add(self, batch: Mapping[str, Any], nats: np.ndarray, tokens: np.ndarray):
        """Takes nats [K, B] and tokens [B]; or [K] and [], which have no documents."""
        nats, tokens = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
        if nats.ndim == 1:
            nats, tokens, document = nats[:, None], tokens.reshape(1), np.zeros(1, int)
        else:
            document = numbers(batch, len(tokens), self._rows)
        self._rows += len(tokens)
        self._nats.append(nats)
        self._tokens.append(tokens)
        self._documents.append(document)

    def result(self) -> DocumentLosses:
        """Rows in the order of their documents; those without a token left out.

        Raises:
            UserError: no batch was added, or no token counted.
        """
        if not self._nats:
            raise errors.UserError("no batches to evaluate on")
        tokens = np.concatenate(self._tokens)
        counted = tokens > 0
        if not counted.any():
            raise errors.UserError(
                "the batches hold no token that counts (all weights 0)"
            )
        document = np.concatenate(self._documents)[counted]
        nats = np.concatenate(self._nats, axis=1)[:, counted]
        order = np.argsort(document, kind="stable")
        _, document = np.unique(document[order], return_inverse=True)
        return DocumentLosses(nats[:, order], tokens[counted][order], document)


def numbers(batch: Mapping[str, Any], rows: int, first: int) -> np.ndarray:
    """The document of each row; without numbers, `first`, `first + 1`, ..."""
    if "document" in batch:
        return np.asarray(batch["document"], np.int64)
    return np.arange(first, first + rows)


def for_model(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without what only the host reads."""
    return {name: value for name, value in batch.items() if name not in HOST_ONLY}
