"""Queries with relevant documents and hard negatives, and the batches made of them.

    Lists       a query and K candidates, one of them relevant       cross-encoders
    Contrasts   a query, a relevant document, H hard negatives       bi-encoders

Batches are a pure function of (seed, step): draw n of a run is position n mod N of
epoch n // N, each epoch in an order of its own, so that every query comes once per
epoch; its relevant document and its negatives are drawn anew each time. Rows are cut
and padded to lengths that are set, so that nothing is compiled twice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import mixture
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

NOTHING = -1  # in place of a document, where a query has too few negatives


class Judged(NamedTuple):
    """What there is to learn from; documents are known by their number.

    Attributes:
        queries: N texts.
        documents: texts, of all queries.
        relevant: of each query: document -> grade, above 0.
        negatives: of each query: documents that are taken to be irrelevant.
        prior: of each query: document -> what is added to their score, e.g. the
            bi-encoder's; () adds nothing.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[Mapping[int, float]]
    negatives: Sequence[Sequence[int]]
    prior: Sequence[Mapping[int, float]] = ()

    def sha256(self) -> str:
        """Of everything."""
        relevant = [sorted(grades.items()) for grades in self.relevant]
        negatives = [[int(x) for x in some] for some in self.negatives]
        parts = [list(self.queries), list(self.documents), relevant, negatives]
        parts += [sorted(scores.items()) for scores in self.prior]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Draw(NamedTuple):
    """One query as a batch holds it: its number, a relevant document, negatives."""

    query: int
    documents: list[int]  # the relevant one first; NOTHING fills up


def draws(data: Judged, seed: int, start: int, stop: int, negatives: int) -> list[Draw]:
    """Draws `start` to `stop` of a run, whoever asks and however often.

    Args:
        data: the queries.
        seed: of the run's order.
        start, stop: numbers of draws.
        negatives: how many a query gets, without repetition.
    """
    count, chosen = len(data.queries), []
    for number in range(start, stop):
        epoch, position = divmod(number, count)
        query = int(mixture.permutation(count, seed, epoch)[position])
        random = np.random.default_rng([seed, epoch, query])
        relevant = int(random.choice(sorted(data.relevant[query])))
        pool = np.asarray(data.negatives[query], int)
        some = random.permutation(pool)[:negatives].tolist()
        fill = [NOTHING] * (negatives - len(some))
        chosen.append(Draw(query, [relevant, *some, *fill]))
    return chosen


class Lists:
    """Batches of `objectives.listwise` and `pointwise`.

    `tokens` i32, `mask` bool, `token_types` i32 [B, K, L] of pairs (query, candidate);
    `grades` f32[B, K]; `where` bool[B, K], False where a candidate is lacking; `prior`
    f32[B, K] where the data has one.

    Args:
        data: at least one query.
        tokenizer: of a tokenizer.json.
        batch_size: B, queries of the global batch.
        candidates: K, the relevant one included; at least 2.
        length: L; the longer text of a pair is cut.
        seed: of the order and of all that is drawn.

    Attributes:
        rows: of the global batch, B.
    """

    def __init__(
        self,
        data: Judged,
        tokenizer: tokenizer_lib.Tokenizer,
        *,
        batch_size: int,
        candidates: int,
        length: int,
        seed: int = 0,
    ):
        _check(data, batch_size)
        if candidates < 2:
            raise errors.UserError(
                f"{candidates} candidates have no order; use 2 or more"
            )
        self.data, self.tokenizer, self.seed = data, tokenizer, seed
        self.rows, self.candidates, self.length = batch_size, candidates, length

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or some rows of it."""
        first, negatives = step * self.rows, self.candidates - 1
        drawn = draws(self.data, self.seed, first, first + self.rows, negatives)[rows]
        encoded = self._encode(
            [(each.query, x) for each in drawn for x in each.documents]
        )
        shape = (len(drawn), self.candidates)
        grades = np.zeros(shape, np.float32)
        grades[:, 0] = [self.data.relevant[x.query][x.documents[0]] for x in drawn]
        where = np.array([x.documents for x in drawn]).reshape(shape) != NOTHING
        batch = {**_rows(encoded, *shape), "grades": grades, "where": where}
        if self.data.prior:
            known = [{NOTHING: 0.0, **self.data.prior[x.query]} for x in drawn]
            prior = [
                [scores[document] for document in each.documents]
                for each, scores in zip(drawn, known, strict=True)
            ]
            batch["prior"] = np.array(prior, np.float32).reshape(shape)
        return batch

    def count_truncated(self) -> int:
        """Of how many queries the first relevant document does not fit whole."""
        return self._encode(_first_relevant(self.data)).truncated

    def _encode(self, chosen) -> text_rows.TextRows:
        queries, documents = zip(*chosen, strict=True)
        return text_rows.encode_pairs(
            self.tokenizer,
            [self.data.queries[x] for x in queries],
            [_text(self.data, x) for x in documents],
            self.length,
            cut="longest",
        )


class Contrasts:
    """Batches of `objectives.contrastive`.

    `tokens` i32, `mask` bool, `token_types` i32 [B, L] of queries; `document_tokens`
    and so on [B, 1 + H, M]; `is_negative` bool[B, B (1 + H)], False where a document of
    the batch is relevant to the query, or lacking.

    Args:
        data: at least one query.
        tokenizer: of a tokenizer.json.
        batch_size: B, queries of the global batch.
        negatives: H, hard ones per query.
        query_length, length: L and M, where texts are cut.
        seed: of the order and of all that is drawn.

    Attributes:
        rows: of the global batch, B.
    """

    def __init__(
        self,
        data: Judged,
        tokenizer: tokenizer_lib.Tokenizer,
        *,
        batch_size: int,
        negatives: int,
        query_length: int,
        length: int,
        seed: int = 0,
    ):
        _check(data, batch_size)
        if negatives < 0 or batch_size * (1 + negatives) < 2:
            raise errors.UserError(
                f"batch_size {batch_size} with {negatives} negatives has nothing to "
                "compare; use a batch_size of 2 or more"
            )
        self.data, self.tokenizer, self.seed = data, tokenizer, seed
        self.rows, self.negatives = batch_size, negatives
        self.query_length, self.length = query_length, length

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or some rows of it."""
        first = step * self.rows
        # Of the whole batch: every query is compared with all of its documents.
        drawn = draws(self.data, self.seed, first, first + self.rows, self.negatives)
        documents = [x for each in drawn for x in each.documents]
        drawn = drawn[rows]
        asked = text_rows.encode_texts(
            self.tokenizer,
            [self.data.queries[each.query] for each in drawn],
            self.query_length,
        )
        documents_rows = text_rows.encode_texts(
            self.tokenizer,
            [_text(self.data, x) for each in drawn for x in each.documents],
            self.length,
        )
        of_documents = _rows(documents_rows, len(drawn), 1 + self.negatives)
        is_negative = [
            [x != NOTHING and x not in self.data.relevant[y.query] for x in documents]
            for y in drawn
        ]
        return {
            **_rows(asked, len(drawn)),
            **{f"document_{name}": value for name, value in of_documents.items()},
            "is_negative": np.array(is_negative),
        }

    def count_truncated(self) -> int:
        """Of how many queries the first relevant document does not fit whole."""
        texts = [self.data.documents[x] for _, x in _first_relevant(self.data)]
        return text_rows.encode_texts(self.tokenizer, texts, self.length).truncated


def _check(data, batch_size) -> None:
    if batch_size < 1:
        raise errors.UserError(f"batch_size {batch_size} is too small; use >= 1")
    if not data.queries:
        raise errors.UserError("there is no query to train on; add some")
    if lacking := [i for i, grades in enumerate(data.relevant) if not grades]:
        raise errors.UserError(
            f"{data.queries[lacking[0]]!r} has no relevant document; leave it out"
        )


def _first_relevant(data) -> list[tuple[int, int]]:
    return [(i, min(grades)) for i, grades in enumerate(data.relevant)]


def _text(data, document) -> str:
    return "" if document == NOTHING else data.documents[document]


def _rows(encoded: text_rows.TextRows, *shape: int) -> dict[str, np.ndarray]:
    names = ("tokens", "mask", "token_types")
    arrays = zip(names, encoded[:3], strict=True)
    return {name: x.reshape(*shape, x.shape[-1]) for name, x in arrays}
