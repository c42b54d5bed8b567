"""Hard negatives: what a bi-encoder finds for training queries; held-out queries.

    a BEIR folder -> index of its documents -> best documents of every query
    found and not relevant                     hard negatives (Xiong et al. 2020,
                                               arXiv:2007.00808, here mined once)
    a share of the queries                     never trained on: they choose the run

Queries that share a relevant document are held out together, so that no held-out one is
answered by a document that training praised.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import load, retrieval
from jaxlab.core import errors
from jaxlab.core import progress as progress_lib
from jaxlab.data.examples import ranked_lists
from jaxlab.retrieval import encode, formats, own_documents
from jaxlab.systems.refit import model_digests

_FIELDS = ("folder", "name", "split")


class MinedSet(NamedTuple):
    """One retrieval set, searched.

    Attributes:
        name: of the set, for reports.
        ids, passages: of the documents, by row.
        queries: id -> text.
        qrels: query id -> document id -> judgment.
        rows: query id -> i64[depth], documents that were found, best first; without
            the query's own.
        scores: query id -> row -> the bi-encoder's score, of those and of the judged.
        held_out: ids of the queries that are not trained on.
    """

    name: str
    ids: list[str]
    passages: list[str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    rows: dict[str, np.ndarray]
    scores: dict[str, dict[int, float]]
    held_out: tuple[str, ...]

    @property
    def trained_on(self) -> list[str]:
        """Ids of the queries that are trained on: not held out, with an answer."""
        held_out = {*self.held_out}
        return [
            query
            for query in self.queries
            if query not in held_out and max(self.qrels[query].values()) > 0
        ]


def mine(
    entry: Mapping[str, Any],
    path: str | pathlib.Path,
    encoder: load.Loaded,
    folder: pathlib.Path,
    *,
    length: int,
    depth: int,
    held_out: float,
    seed: int,
    progress: progress_lib.Progress = lambda done, count: None,
) -> MinedSet:
    """Searches one set for all its queries.

    Args:
        entry: `folder` of a BEIR set, and optionally the `name` of its files and the
            `split` of its judgments ("train").
        path: where the encoder was loaded from; its files identify the index.
        encoder: the bi-encoder.
        folder: of indices; that of this set is made, continued or opened.
        length: tokens of the longest rows.
        depth: how many documents are found.
        held_out: share of the queries.
        seed: of who is held out.
        progress: called with (documents encoded, documents in all).

    Raises:
        UserError: an unknown field, or a set that cannot be read.
    """
    beir, name = _read_set(entry)
    corpus, queries = beir.corpus, beir.queries
    passages = corpus.passages()
    index = _index(folder / name, corpus.ids, passages, path, encoder, length, progress)
    vectors = encode.embed_texts(
        encoder.model.apply,
        encoder.params,
        encoder.tokenizer,
        map(encoder.config.query, queries.values()),
        length=length,
    ).vectors
    own = own_documents.find([*queries], corpus.ids, beir.qrels)
    search = own_documents.Searches(index, own)
    rows = search.nearest(vectors, search.limit(depth))[1].astype(np.int64)
    return MinedSet(
        name,
        corpus.ids,
        passages,
        queries,
        beir.qrels,
        dict(zip(queries, rows, strict=True)),
        _score_candidates(beir, index, vectors, rows),
        tuple(x for x in queries if is_held_out(beir.qrels[x], held_out, seed)),
    )


def _read_set(entry: Mapping[str, Any]) -> tuple[formats.Beir, str]:
    """A set of the config, and its name."""
    if {*entry} - {*_FIELDS} or "folder" not in entry:
        raise errors.UserError(
            f"data.sets has {dict(entry)}; a set has a folder, and may have a name and "
            "a split"
        )
    source, stem = pathlib.Path(entry["folder"]), entry.get("name", "")
    beir = formats.read_beir(source, split=entry.get("split", "train"), name=stem)
    return beir, f"{source.name}.{stem}" if stem else source.name


def _score_candidates(beir, index, vectors, rows) -> dict[str, dict[int, float]]:
    """Query id -> row -> score, of the documents found and of the judged ones."""
    row_of = {each: row for row, each in enumerate(beir.corpus.ids)}
    scores = {}
    for query, vector, nearest in zip(beir.queries, vectors, rows, strict=True):
        judged = (row_of[each] for each in beir.qrels[query])
        scored = [*{*nearest.tolist(), *judged}]
        values = index.take(np.array(scored)) @ vector
        scores[query] = dict(zip(scored, values.tolist(), strict=True))
    return scores


def training_lists(
    sets: Sequence[MinedSet], depth: int, prior: float = 0.0
) -> ranked_lists.Judged:
    """The queries of all sets that are trained on; negatives are among the first found.

    Args:
        sets: one that is repeated counts as often.
        depth: how many of the documents that were found.
        prior: weight of the bi-encoder's scores in those that are trained.
    """
    data = ranked_lists.Judged([], [], [], [], [])
    first: dict[str, int] = {}
    for each in sets:
        if each.name not in first:
            first[each.name] = len(data.documents)
            data.documents.extend(each.passages)
        offset, row = first[each.name], {x: i for i, x in enumerate(each.ids)}
        for query in each.trained_on:
            grades = {row[x]: g for x, g in each.qrels[query].items() if g > 0}
            nearest = each.rows[query][:depth].tolist()
            data.queries.append(each.queries[query])
            data.relevant.append({offset + x: float(g) for x, g in grades.items()})
            data.negatives.append([offset + x for x in nearest if x not in grades])
            scores = each.scores[query].items()
            data.prior.append({offset + x: prior * score for x, score in scores})
    return data if prior else data._replace(prior=())


def _index(folder, ids, passages, path, encoder, length, progress) -> retrieval.Index:
    """The finished index of just these texts, or one that is made now."""
    of_texts = {x: y for x, y in encoder.config.of_texts.items() if x != "query_prefix"}
    made_from = model_digests.made_from(path, length, of_texts)
    made_from = model_digests.as_recorded(folder, made_from)
    made_from["corpus"] = model_digests.identity(passages)
    try:
        index = retrieval.Index.open(folder)
    except errors.UserError:
        index = None  # not there, or not finished: building goes on
    if index is not None and index.made_from == made_from:
        return index

    def batches(done: int):
        windows = encode.embed_windows(
            encoder.model.apply,
            encoder.params,
            encoder.tokenizer,
            map(encoder.config.document, passages[done:]),
            length=length,
            progress=lambda count: progress(done + count, len(passages)),
        )
        return (window.vectors for window in windows)

    return retrieval.Index.build(folder, batches, ids, made_from=made_from)


def is_held_out(judgments: Mapping[str, int], share: float, seed: int) -> bool:
    """Whether the first relevant document's hash is below the share."""
    relevant = min((x for x, grade in judgments.items() if grade > 0), default="")
    digest = hashlib.sha256(f"{seed}:{relevant}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
