"""What a bi-encoder finds for training queries: hard negatives, and who is held out.

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
from jaxlab.data.examples import ranked_lists
from jaxlab.retrieval import encode, formats
from jaxlab.systems.refit import corpus_index

_FIELDS = ("folder", "name", "split")


class Mined(NamedTuple):
    """One retrieval set, searched.

    Attributes:
        name: of the set, for reports.
        ids, passages: of the documents, by row.
        queries: id -> text.
        qrels: query id -> document id -> judgment.
        rows: query id -> i64[depth], documents that were found, best first.
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
        kept = {*self.queries} - {*self.held_out}
        return [
            x for x in self.queries if x in kept and max(self.qrels[x].values()) > 0
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
) -> Mined:
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

    Raises:
        UserError: an unknown field, or a set that cannot be read.
    """
    if {*entry} - {*_FIELDS} or "folder" not in entry:
        raise errors.UserError(
            f"data.sets has {dict(entry)}; a set has a folder, and may have a name and "
            "a split"
        )
    source, stem = pathlib.Path(entry["folder"]), entry.get("name", "")
    split = entry.get("split", "train")
    read = formats.read_beir(source, split=split, name=stem)
    name = f"{source.name}.{stem}" if stem else source.name
    passages = read.corpus.passages()
    index = _index(folder / name, read.corpus.ids, passages, path, encoder, length)
    vectors = encode.embed_texts(
        encoder.model.apply,
        encoder.params,
        encoder.tokenizer,
        list(read.queries.values()),
        length=length,
    ).vectors
    rows = index.search_rows(vectors, depth)[1].astype(np.int64)
    row = {x: i for i, x in enumerate(read.corpus.ids)}
    scores = {}
    for query, vector, found in zip(read.queries, vectors, rows, strict=True):
        scored = [*{*found.tolist(), *(row[x] for x in read.qrels[query])}]
        values = index.take(np.array(scored)) @ vector
        scores[query] = dict(zip(scored, values.tolist(), strict=True))
    return Mined(
        name,
        read.corpus.ids,
        passages,
        read.queries,
        read.qrels,
        dict(zip(read.queries, rows, strict=True)),
        scores,
        tuple(x for x in read.queries if _is_held_out(read.qrels[x], held_out, seed)),
    )


def judged(
    sets: Sequence[Mined], depth: int, prior: float = 0.0
) -> ranked_lists.Judged:
    """The queries of all sets that are trained on; negatives are among the first found.

    Args:
        sets: one that is repeated counts as often.
        depth: of what was found, how many.
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
            found = [x for x in each.rows[query][:depth].tolist() if x not in grades]
            data.queries.append(each.queries[query])
            data.relevant.append({offset + x: float(g) for x, g in grades.items()})
            data.negatives.append([offset + x for x in found])
            scores = each.scores[query].items()
            data.prior.append({offset + x: prior * score for x, score in scores})
    return data if prior else data._replace(prior=())


def _index(folder, ids, passages, path, encoder, length) -> retrieval.Index:
    """The finished index of just these texts, or one that is made now."""
    made_from = {
        "encoder": corpus_index.model_sha256(str(path)),
        "length": length,
        "corpus": corpus_index.identity(passages),
    }
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
            passages[done:],
            length=length,
        )
        return (window.vectors for window in windows)

    return retrieval.Index.build(folder, batches, ids, made_from=made_from)


def _is_held_out(judgments: Mapping[str, int], share: float, seed: int) -> bool:
    """Whether the first relevant document's hash is below the share."""
    relevant = min((x for x, grade in judgments.items() if grade > 0), default="")
    digest = hashlib.sha256(f"{seed}:{relevant}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
