"""`jaxlab retrieve refit`: queries that learn from a reranker, compared."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.retrieve import inputs
from jaxlab.core import errors

SUMMARY = "Answer with feedback from a reranker, and compare"
DETAILS = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the index, the queries, the reranker, and the settings of feedback."""
    parser.add_argument("workdir", metavar="WORKDIR", help="gets runs and report")
    parser.add_argument("--index", required=True, metavar="INDEX")
    inputs.add_first_stage(parser)
    inputs.add_queries(parser, required=True)
    parser.add_argument(
        "--reranker", required=True, metavar="MODEL",
        help="a cross-encoder: a Hugging Face folder with one label, or a run of "
        "configs/refit.py:cross_encoder",
    )  # fmt: skip
    inputs.add_qrels(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many queries, drawn by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--k", type=int, default=100, metavar="N",
        help="documents that are read in a round, and the depth of recall",
    )  # fmt: skip
    parser.add_argument(
        "--depth", type=int, metavar="N", help="of runs, K or more; default: K"
    )
    parser.add_argument("--updates", type=int, default=100, metavar="N")
    parser.add_argument(
        "--rate", type=float, default=0.005, help="relative to the query's coordinates"
    )
    parser.add_argument(
        "--max-drift", type=float, metavar="X", help="bound on 1 - cos with the start"
    )
    parser.add_argument(
        "--rows", type=arguments_lib.names, default=(), metavar="A,B",
        help="of the comparison, e.g. refit,rerank; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--length", type=int, metavar="TOKENS", help="per pair; default: 128"
    )
    parser.add_argument(
        "--prior",
        type=float,
        metavar="X",
        help="of the retriever's score in the reranker's; default: its config's",
    )
    inputs.add_keep_identical(parser, ", unless --qrels judge it")
    inputs.add_moved(parser)


def run(args: argparse.Namespace) -> None:
    """Compares rankings with and without feedback; writes runs and a report."""
    from jaxlab.commands import devices

    with devices.using(args.mesh) as mesh:
        _compare(args, mesh)


def _compare(args: argparse.Namespace, mesh) -> None:
    from jaxlab.core import progress
    from jaxlab.retrieval import bm25, own_documents
    from jaxlab.systems.refit import comparison, corpus_index, report

    watch, workdir = progress.Clock(), pathlib.Path(args.workdir)
    if args.first_stage == "bm25":
        bm25.library()  # or say so before anything is loaded
    settings = comparison.Settings(
        args.rows, args.k, args.depth, args.rate, args.updates, args.max_drift
    )
    texts, qrels = _read_asked(args)
    with watch.announce("opening the index, its texts and its encoder"):
        opened = inputs.open_index(args, mesh)
    index, corpus = opened.index, opened.corpus
    asked = list(texts.values())
    workdir.mkdir(parents=True, exist_ok=True)
    own = None
    if not args.keep_identical:
        own = own_documents.find([*texts], index.ids, qrels)
    if own is not None:
        watch.say(own_documents.say((own >= 0).sum()))
    vectors = corpus_index.vectors(
        opened.encoder, asked, watch.meter("queries")
    ).vectors
    reranker = _reranker(args, asked, vectors, opened, mesh, watch)
    candidates = None
    if args.first_stage == "bm25":
        words = bm25.Bm25(corpus.passages())
        candidates = words.candidates(asked, settings.candidates)
    queries = comparison.Queries([*texts], asked, vectors, qrels, candidates, own)
    with watch.announce("answering"):
        outcomes = comparison.compare(
            index, queries, reranker, settings, workdir, done=watch.progress
        )
    curves = None
    if qrels is not None:
        watch.say("recall by updates and by documents of feedback")
        with watch.announce("curves"):
            curves = comparison.curves(index, queries, reranker, settings)
    title = f"Does feedback from a reranker find more? ({pathlib.Path(args.index)})"
    with watch.announce("writing the report"):
        report.write(
            workdir, title, outcomes, queries, corpus, settings, curves, watch.elapsed()
        )
    differences = {} if qrels is None else comparison.differences(outcomes, settings)
    output.line(report.finding(outcomes, differences, settings, len(corpus.ids)))
    output.table(*report.cells(outcomes, differences, settings))
    output.line(f"report: {workdir / 'report.html'}")


def _read_asked(args) -> tuple[dict[str, str], dict | None]:
    """Texts of the queries that are judged, where there are judgments, and those."""
    import numpy as np

    texts, qrels = inputs.read_queries(args), None
    if args.qrels:
        qrels = inputs.read_judgments(args)
        texts = {query: text for query, text in texts.items() if query in qrels}
        if not texts:
            raise errors.UserError(f"{args.qrels} judges none of {args.queries}")
    if args.limit is not None and args.limit < 1:
        raise errors.UserError(f"--limit {args.limit}; use 1 or more")
    if args.limit is not None and args.limit < len(texts):
        drawn = np.random.default_rng(args.seed).permutation(len(texts))[: args.limit]
        names = [*texts]
        texts = {names[i]: texts[names[i]] for i in sorted(drawn)}
    return texts, None if qrels is None else {query: qrels[query] for query in texts}


def _reranker(args, asked, vectors, opened, mesh, watch):
    """The cross-encoder; its scores are kept in WORKDIR/scores.bin."""
    from jaxlab.retrieval import rerank
    from jaxlab.systems.refit import cross_encoder, model_digests

    prior = args.prior
    if prior is None:
        prior = cross_encoder.prior_of(args.reranker)
    passages = opened.corpus.passages()
    length = cross_encoder.LENGTH if args.length is None else args.length
    score = cross_encoder.reranker(
        args.reranker,
        asked,
        passages,
        length=args.length,
        prior=prior,
        retriever=(opened.index, vectors),
        mesh=mesh,
        progress=watch.meter("pairs of this round scored"),
    )
    models = [
        model_digests.model_sha256(args.reranker),
        opened.index.made_from["encoder"],
    ]
    if prior and opened.encoder.config.of_texts:  # the vectors depend on these too
        models.append(opened.encoder.config.of_texts)
    return rerank.CachedReranker(
        score,
        pathlib.Path(args.workdir) / "scores.bin",
        made_from=model_digests.identity(models, prior, length, asked, passages),
        progress=watch.meter("pairs reranked"),
    )
