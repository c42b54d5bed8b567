"""`jaxlab retrieve search`: the nearest documents, by vectors or by words."""

import argparse
import itertools

from jaxlab.commands import output
from jaxlab.commands.retrieve import inputs
from jaxlab.core import errors, folders

SUMMARY = "Find the nearest documents"
DETAILS = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is searched, and for what."""
    parser.add_argument(
        "index", nargs="?", metavar="INDEX", help="or, with bm25, give --corpus"
    )
    inputs.add_first_stage(parser)
    inputs.add_queries(parser)
    parser.add_argument("--query", action="append", default=[], metavar="TEXT")
    parser.add_argument(
        "--k", type=int, metavar="N",
        help="documents per query; default: 10, and 100 with --run",
    )  # fmt: skip
    parser.add_argument("--run", metavar="OUT", help="write a TREC run there")
    inputs.add_keep_identical(parser)
    inputs.add_moved(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the documents of every query, or writes them as a run."""
    from jaxlab.commands import devices
    from jaxlab.core import progress
    from jaxlab.retrieval import formats

    watch, queries = progress.Clock(), inputs.read_queries(args)
    if args.k is None:
        args.k = 100 if args.run else 10
    if args.k < 1:
        raise errors.UserError(f"--k {args.k}; use 1 or more")
    if args.run:  # before hours of search
        formats.check_columns(queries)
        folders.check_target("--run", args.run)
    search = {"encoder": _search_vectors, "bm25": _search_words}[args.first_stage]
    with (
        devices.using(args.mesh) as mesh,
        progress.announce("searching", progress.remark),
    ):
        run, corpus = search(args, queries, mesh, watch)
    if args.run:
        formats.write_run(args.run, run)
        most = max(map(len, run.values()), default=0)
        watch.say(f"{args.run}: {len(queries)} queries, {most} documents each")
        return
    passages = dict(zip(corpus.ids, corpus.passages(), strict=True))
    for query, text in queries.items():
        output.line(" ".join(text.split()))
        for each, score in run[query].items():
            passage = " ".join(passages[each].split())[:80]
            output.line(f"  {score:7.4f}  {each}  {passage}")


def _search_vectors(args, queries, mesh, watch):
    """(run, corpus) by the encoder of the index."""
    from jaxlab.retrieval import formats
    from jaxlab.systems.refit import corpus_index

    if args.index is None:
        raise errors.UserError(
            "name an INDEX, or search a --corpus by its words: --first-stage bm25"
        )
    opened = inputs.open_index(args, mesh)
    if args.run:
        formats.check_columns(map(str, opened.index.ids.tolist()))
    texts = list(queries.values())
    vectors = corpus_index.vectors(opened.encoder, texts, watch.meter("texts")).vectors
    ids = opened.index.ids
    run = _ask(args, queries, ids, lambda k: opened.index.search(vectors, k))
    return run, opened.corpus


def _search_words(args, queries, mesh, watch):
    """(run, corpus) by BM25; a document that shares no term is not found."""
    from jaxlab.retrieval import bm25, formats
    from jaxlab.systems.refit import corpus_index

    bm25.library()
    if args.index is not None:
        corpus = corpus_index.read_texts(args.index, corpora=args.corpus)
    elif args.corpus:
        corpus = formats.read_corpora(args.corpus)
    else:
        raise errors.UserError("no texts to search; name an INDEX, or --corpus FILE")
    watch.say(f"indexing the words of {len(corpus.ids)} documents")
    model = bm25.Bm25(corpus.passages(), corpus.ids)
    texts = list(queries.values())
    run = _ask(args, queries, corpus.ids, lambda k: model.search(texts, k))
    return {
        query: {each: score for each, score in documents.items() if score > 0}
        for query, documents in run.items()
    }, corpus


def _ask(args, queries, documents, search):
    """The run of `search`, k -> (scores, ids), without the queries' own documents."""
    from jaxlab.core import progress
    from jaxlab.retrieval import metrics, own_documents

    own = None if args.keep_identical else own_documents.find([*queries], documents)
    run = metrics.as_run([*queries], *search(args.k + (own is not None)))
    if own is None:
        return run
    progress.remark(own_documents.say((own >= 0).sum()))
    run, _ = own_documents.leave_out(run)
    return {
        query: dict(itertools.islice(documents.items(), args.k))
        for query, documents in run.items()
    }
