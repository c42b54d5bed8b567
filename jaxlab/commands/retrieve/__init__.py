"""`jaxlab retrieve`: index a corpus, search it, refit queries, evaluate runs."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors

SUMMARY = "Search a corpus of texts, and learn from a reranker while answering"
DETAILS = """\
A bi-encoder makes an index of a corpus; a cross-encoder reranks what is found, and its
scores change the query before a second search (ReFIT: Reddy et al. 2023,
arXiv:2305.11744). --first-stage bm25 finds the first documents by their words instead:
a search then needs no encoder, and refit's second search is still the encoder's. Texts
are BEIR's: {"_id", "title", "text"} per line. For example:

  jaxlab retrieve index runs/index --corpus corpus.jsonl --encoder MODEL
  jaxlab retrieve search runs/index --query "what is a black hole" --k 5
  jaxlab retrieve search --first-stage bm25 --corpus corpus.jsonl \\
      --queries queries.jsonl --run bm25.trec
  jaxlab retrieve refit runs/out --index runs/index --queries queries.jsonl \\
      --qrels qrels/test.tsv --reranker CROSS_ENCODER
  jaxlab retrieve evaluate --qrels qrels/test.tsv a.trec b.trec"""

_ENCODER = (
    "a Hugging Face or sentence-transformers folder (BERT, RoBERTa, XLM-R), or a run "
    "of configs/refit.py"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_index(arguments_lib.add_action(actions, "index", "Encode a corpus"))
    _add_search(
        arguments_lib.add_action(actions, "search", "Find the nearest documents")
    )
    _add_refit(
        arguments_lib.add_action(
            actions, "refit", "Answer with feedback from a reranker, and compare"
        )
    )
    _add_evaluate(arguments_lib.add_action(actions, "evaluate", "Measure runs"))


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="a folder")
    parser.add_argument("--corpus", required=True, metavar="FILE", help=".jsonl[.gz]")
    parser.add_argument("--encoder", required=True, metavar="MODEL", help=_ENCODER)
    parser.add_argument(
        "--length", type=int, metavar="TOKENS", help="per row; default: the encoder's"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--append", action="store_true", help="add the documents that it lacks"
    )
    arguments_lib.add_mesh(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "index", nargs="?", metavar="INDEX", help="or, with bm25, give --corpus"
    )
    _add_first_stage(parser)
    _add_queries(parser)
    parser.add_argument("--query", action="append", default=[], metavar="TEXT")
    parser.add_argument("--k", type=int, default=100, metavar="N")
    parser.add_argument("--run", metavar="OUT", help="write a TREC run there")
    _add_moved(parser)


def _add_refit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="gets runs and report")
    parser.add_argument("--index", required=True, metavar="INDEX")
    _add_first_stage(parser)
    _add_queries(parser, required=True)
    parser.add_argument(
        "--reranker", required=True, metavar="MODEL", help="a cross-encoder; see above"
    )
    _add_qrels(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many queries, drawn by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=100, metavar="N", help="of feedback")
    parser.add_argument("--depth", type=int, default=100, metavar="N", help="of runs")
    parser.add_argument("--updates", type=int, default=100, metavar="N")
    parser.add_argument(
        "--rate", type=float, default=0.02, help="relative to the query's coordinates"
    )
    parser.add_argument(
        "--max-drift", type=float, metavar="X", help="bound on 1 - cos with the start"
    )
    parser.add_argument(
        "--rows", type=arguments_lib.names, default=(), metavar="A,B",
        help="of the comparison, e.g. refit,rerank; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--length", type=int, default=128, metavar="TOKENS", help="per pair"
    )
    parser.add_argument(
        "--prior",
        type=float,
        metavar="X",
        help="of the retriever's score in the reranker's; default: its config's",
    )
    _add_moved(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="TREC runs")
    _add_qrels(parser, required=True)
    parser.add_argument(
        "--metrics", type=arguments_lib.names, metavar="A,B",
        default=("ndcg@10", "recall@100", "mrr@10", "map@100"),
        help="recall@k, ndcg@k, mrr@k, map@k",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write values by query there")


def _add_first_stage(parser) -> None:
    parser.add_argument(
        "--first-stage",
        choices=("encoder", "bm25"),
        default="encoder",
        help="what finds the first documents: the index's encoder (default), or BM25, "
        "by their words (needs bm25s)",
    )


def _add_queries(parser, required=False) -> None:
    parser.add_argument(
        "--queries", required=required, metavar="FILE", help=".jsonl[.gz]"
    )


def _add_qrels(parser, required=False) -> None:
    parser.add_argument(
        "--qrels", required=required, metavar="FILE", help="judgments, BEIR's or TREC's"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of judgments with a column of that name"
    )


def _add_moved(parser) -> None:
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="FILE", help="if it was moved"
    )
    parser.add_argument(
        "--encoder", default="", metavar="MODEL", help="if it was moved"
    )
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Runs one action."""
    from jaxlab.commands import devices
    from jaxlab.core import process

    actions = {"index": _index, "search": _search, "refit": _refit}
    if args.action == "evaluate":
        process.start()
        return _evaluate(args)
    with devices.using(args.mesh) as mesh:
        return actions[args.action](args, mesh)


def _index(args, mesh) -> None:
    from jaxlab.core import progress
    from jaxlab.systems.refit import corpus_index

    watch = progress.Clock()
    encoder = corpus_index.open_encoder(args.encoder, length=args.length, mesh=mesh)
    index, truncated = corpus_index.build(
        args.index, args.corpus, encoder, dtype=args.dtype, append=args.append,
        progress=watch.meter("documents"),
    )  # fmt: skip
    watch.say(
        f"{args.index}: {len(index)} documents of {index.dim} numbers; {truncated} of "
        f"those encoded now were cut at {encoder.length} tokens"
    )


def _search(args, mesh) -> None:
    from jaxlab.core import progress
    from jaxlab.retrieval import formats

    watch, queries = progress.Clock(), _queries(args)
    search = {"encoder": _search_vectors, "bm25": _search_words}[args.first_stage]
    run, corpus = search(args, queries, mesh, watch)
    if args.run:
        formats.write_run(args.run, run)
        most = max(map(len, run.values()), default=0)
        watch.say(f"{args.run}: {len(queries)} queries, {most} documents each")
        return
    passages = dict(zip(corpus.ids, corpus.passages(), strict=True))
    for query, text in queries.items():
        print(text)
        for each, score in run[query].items():
            print(f"  {score:7.4f}  {each}  {' '.join(passages[each].split())[:80]}")


def _search_vectors(args, queries, mesh, watch):
    """(run, corpus) by the encoder of the index."""
    from jaxlab.retrieval import metrics
    from jaxlab.systems.refit import corpus_index

    if args.index is None:
        raise errors.UserError(
            "name an INDEX, or search a --corpus by its words: --first-stage bm25"
        )
    opened = _open_index(args, mesh)
    texts = list(queries.values())
    vectors = corpus_index.vectors(opened.encoder, texts, watch.meter("texts")).vectors
    scores, ids = opened.index.search(vectors, args.k)
    return metrics.as_run([*queries], scores, ids), opened.corpus


def _search_words(args, queries, mesh, watch):
    """(run, corpus) by BM25; a document that shares no term is not found."""
    from jaxlab.retrieval import bm25, formats, metrics
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
    scores, ids = model.search(list(queries.values()), args.k)
    run = metrics.as_run([*queries], scores, ids)
    return {
        query: {each: score for each, score in documents.items() if score > 0}
        for query, documents in run.items()
    }, corpus


def _refit(args, mesh) -> None:
    from jaxlab.core import progress
    from jaxlab.retrieval import bm25
    from jaxlab.systems.refit import comparison, corpus_index, report

    watch, workdir = progress.Clock(), pathlib.Path(args.workdir)
    if args.first_stage == "bm25":
        bm25.library()  # or say so before anything is loaded
    settings = comparison.Settings(
        args.rows, args.k, args.depth, args.rate, args.updates, args.max_drift
    )
    texts, qrels = _read_asked(args)
    opened = _open_index(args, mesh)
    index, corpus = opened.index, opened.corpus
    asked = list(texts.values())
    workdir.mkdir(parents=True, exist_ok=True)
    vectors = corpus_index.vectors(
        opened.encoder, asked, watch.meter("queries")
    ).vectors
    reranker = _reranker(args, asked, vectors, opened, mesh, watch)
    candidates = None
    if args.first_stage == "bm25":
        candidates = corpus_index.bm25_candidates(
            bm25.Bm25(corpus.passages()), asked, settings.candidates
        )
    queries = comparison.Queries([*texts], asked, vectors, qrels, candidates)
    outcomes = comparison.compare(
        index, queries, reranker, settings, workdir, done=watch.progress
    )
    curves = None
    if qrels is not None:
        watch.say("recall by updates and by documents of feedback")
        curves = comparison.curves(index, queries, reranker, settings)
    title = f"Feedback from a reranker: {pathlib.Path(args.index).name}"
    report.write(
        workdir, title, outcomes, queries, corpus, settings, curves, watch.elapsed()
    )
    differences = {} if qrels is None else comparison.differences(outcomes, settings)
    output.table(*report.cells(outcomes, differences, settings))
    print(f"report: {workdir / 'report.html'}")


def _read_asked(args) -> tuple[dict[str, str], dict | None]:
    """Texts of the queries that are judged, where there are judgments, and those."""
    import numpy as np

    from jaxlab.retrieval import formats

    texts, qrels = _queries(args), None
    if args.qrels:
        qrels = formats.read_qrels(args.qrels, split=args.split)
        texts = {query: text for query, text in texts.items() if query in qrels}
        if not texts:
            raise errors.UserError(f"{args.qrels} judges none of {args.queries}")
    if args.limit and args.limit < len(texts):
        drawn = np.random.default_rng(args.seed).permutation(len(texts))[: args.limit]
        names = [*texts]
        texts = {names[i]: texts[names[i]] for i in sorted(drawn)}
    return texts, None if qrels is None else {query: qrels[query] for query in texts}


def _reranker(args, asked, vectors, opened, mesh, watch):
    """The cross-encoder; its scores are kept in WORKDIR/scores.bin."""
    from jaxlab.retrieval import rerank
    from jaxlab.systems.refit import corpus_index

    prior = args.prior
    if prior is None:
        prior = corpus_index.prior_of(args.reranker)
    passages = opened.corpus.passages()
    score = corpus_index.reranker(
        args.reranker,
        asked,
        passages,
        length=args.length,
        prior=prior,
        retriever=(opened.index, vectors),
        mesh=mesh,
    )
    models = [
        corpus_index.model_sha256(args.reranker),
        opened.index.made_from["encoder"],
    ]
    return rerank.CachedReranker(
        score,
        pathlib.Path(args.workdir) / "scores.bin",
        made_from=corpus_index.identity(models, prior, args.length, asked, passages),
        progress=watch.meter("pairs reranked"),
    )


def _evaluate(args) -> None:
    from jaxlab.retrieval import formats, metrics
    from jaxlab.systems.refit import report

    qrels = formats.read_qrels(args.qrels, split=args.split)
    names = [pathlib.Path(path).stem for path in args.runs]
    if len({*names}) < len(names):
        names = args.runs
    evaluations = {
        name: metrics.evaluate(qrels, formats.read_run(path), args.metrics)
        for name, path in zip(names, args.runs, strict=True)
    }
    output.table(*report.evaluation_cells(evaluations))
    for name, metric, interval in report.against_first(evaluations):
        print(f"{name} less {names[0]}, {metric}: {interval}")
    if args.out:
        folder = pathlib.Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        for name, evaluation in evaluations.items():
            formats.write_results(folder / f"{pathlib.Path(name).name}.tsv", evaluation)


def _queries(args) -> dict[str, str]:
    from jaxlab.retrieval import formats

    queries = formats.read_queries(args.queries) if args.queries else {}
    queries |= {f"query-{i}": text for i, text in enumerate(getattr(args, "query", []))}
    if not queries:
        raise errors.UserError("no queries; give --queries FILE or --query TEXT")
    return queries


def _open_index(args, mesh):
    from jaxlab.systems.refit import corpus_index

    return corpus_index.open_index(
        args.index, encoder=args.encoder, corpora=args.corpus, mesh=mesh
    )
