"""ReFIT with a reranker that needs no training: the words of query and document.

    jaxlab retrieve index INDEX --corpus CORPUS --encoder MODEL
    python tools/refit_words.py INDEX QUERIES QRELS OUT --k 50

The retriever is the encoder of the index; the reranker adds BM25 (needs '.[bm25]') to
--prior times the retriever's inner product. All pairs are scored in seconds, so that
hundreds of queries and any K can be compared, with all rows of
`jaxlab.systems.refit.comparison`; the page is OUT/report.html. Of QRELS without a test
part, `--half 0` answers every second query, to choose by, and `--half 1` the others.
"""

import argparse
import pathlib

import numpy as np

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import progress
from jaxlab.retrieval import bm25, formats, own_documents, rerank
from jaxlab.systems.refit import comparison, corpus_index, report


def main() -> None:
    """One table and one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("index", "queries", "qrels", "out"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--prior", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=comparison.Settings.learning_rate)
    parser.add_argument("--updates", type=int, default=comparison.Settings.num_updates)
    parser.add_argument("--limit", type=int, default=300, help="queries, the first")
    parser.add_argument("--half", type=int, choices=(0, 1), help="of the queries")
    parser.add_argument("--rows", type=lambda x: tuple(x.split(",")), default=())
    args = parser.parse_args()
    watch = progress.Clock()
    args.out.mkdir(parents=True, exist_ok=True)
    qrels = formats.read_qrels(args.qrels, has_split=True)
    texts = formats.read_queries(args.queries)
    ids = [x for x in texts if x in qrels]
    if args.half is not None:
        ids = ids[args.half :: 2]
    ids = ids[: args.limit]
    asked = [texts[x] for x in ids]
    settings = comparison.Settings(
        args.rows, args.k, learning_rate=args.rate, num_updates=args.updates
    )  # fmt: skip
    with mesh_lib.use(mesh_lib.make_mesh({"data": -1})):
        opened = corpus_index.open_index(args.index)
        index, corpus = opened.index, opened.corpus
        vectors = corpus_index.vectors(opened.encoder, asked).vectors
        judged = {x: qrels[x] for x in ids}
        own = own_documents.find(ids, index.ids, judged)
        queries = comparison.Queries(ids, asked, vectors, judged, own=own)
        known = score_words(corpus.passages(), asked)
        known += args.prior * vectors @ index.take(np.arange(len(index))).T
        reranker = rerank.CachedReranker(lambda query, row: known[query, row])
        outcomes = comparison.compare(index, queries, reranker, settings, args.out)
    title = f"Feedback from a reranker of words ({args.index})"
    report.write(
        args.out, title, outcomes, queries, corpus, settings, None, watch.elapsed()
    )
    print(report.spell_table(outcomes, settings))


def score_words(documents: list[str], queries: list[str]) -> np.ndarray:
    """BM25 of all pairs, f32[Q, N]."""
    scores, rows = bm25.Bm25(documents).search(queries, len(documents))
    every = np.empty_like(scores)
    np.put_along_axis(every, rows, scores, axis=1)
    return every


if __name__ == "__main__":
    main()
