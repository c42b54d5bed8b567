"""Losses per document: what every proxy gives, so that all can be resampled alike.

Nats and tokens are summed by document, in float64 on the host. A document may have
several rows (windows of a long text), in one batch or in several: rows with the same
number in `batch["document"]` belong together. Without that key every row is a document.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core import errors

# What the host reads of a batch and no model does (`data.held_out.eval_batches`).
HOST_ONLY = ("document", "text_bytes")


class DocumentLosses(NamedTuple):
    """Summed losses of K mixtures (or models) on D documents of one evaluation set.

    Attributes:
        nats: f64[K, D], the sum of -log p over a document's tokens.
        tokens: f64[D], how many tokens counted; all positive.
    """

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Nats a token, f64[K].

        >>> DocumentLosses(np.array([[2.0, 4.0]]), np.array([1.0, 2.0])).loss.tolist()
        [2.0]
        """
        return self.nats.sum(axis=1) / self.tokens.sum()


class Collector:
    """Sums rows into documents, batch by batch."""

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
        """Documents in the order of their numbers; those without a token left out.

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
        _, starts = np.unique(document[order], return_index=True)
        return DocumentLosses(
            np.add.reduceat(nats[:, order], starts, axis=1),
            np.add.reduceat(tokens[counted][order], starts),
        )


def numbers(batch: Mapping[str, Any], rows: int, first: int) -> np.ndarray:
    """The document of each row; without numbers, `first`, `first + 1`, ..."""
    if "document" in batch:
        return np.asarray(batch["document"], np.int64)
    return np.arange(first, first + rows)


def for_model(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without what only the host reads."""
    return {name: value for name, value in batch.items() if name not in HOST_ONLY}
