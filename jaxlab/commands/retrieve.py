"""`jaxlab retrieve index|search|refit|evaluate`."""

import argparse
import pathlib

import numpy as np

from jaxlab.commands import devices, output
from jaxlab.core import errors, process, progress
from jaxlab.retrieval import formats, metrics, rerank
from jaxlab.systems import encoder_files
from jaxlab.systems.refit import comparison, corpus_index, report


def run(args: argparse.Namespace) -> None:
    """Runs one action."""
    actions = {"index": _index, "search": _search, "refit": _refit}
    if args.action == "evaluate":
        process.start()
        return _evaluate(args)
    with devices.using(args.mesh) as mesh:
        return actions[args.action](args, mesh)


def _index(args, mesh) -> None:
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
    watch, queries = progress.Clock(), _queries(args)
    opened = _opened(args, mesh)
    found = corpus_index.vectors(
        opened.encoder, list(queries.values()), watch.meter("texts")
    )
    scores, ids = opened.index.search(found.vectors, args.k)
    if args.run:
        formats.write_run(args.run, metrics.as_run([*queries], scores, ids))
        watch.say(f"{args.run}: {len(queries)} queries, {ids.shape[1]} documents each")
        return
    texts = dict(zip(opened.corpus.ids, opened.corpus.passages(), strict=True))
    for text, some, values in zip(queries.values(), ids, scores, strict=True):
        print(text)
        for each, value in zip(some, values, strict=True):
            print(f"  {value:7.4f}  {each}  {' '.join(texts[each].split())[:80]}")


def _refit(args, mesh) -> None:
    watch, workdir = progress.Clock(), pathlib.Path(args.workdir)
    settings = comparison.Settings(
        args.rows, args.k, args.depth, args.rate, args.updates, args.max_drift
    )
    texts, qrels = _asked(args)
    opened = _opened(args, mesh)
    index, corpus = opened.index, opened.corpus
    asked = list(texts.values())
    workdir.mkdir(parents=True, exist_ok=True)
    vectors = corpus_index.vectors(
        opened.encoder, asked, watch.meter("queries")
    ).vectors
    reranker = _reranker(args, asked, vectors, opened, mesh, watch)
    queries = comparison.Queries([*texts], asked, vectors, qrels)
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


def _asked(args) -> tuple[dict[str, str], dict | None]:
    """Texts of the queries that are judged, where there are judgments, and those."""
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


def _reranker(args, asked, vectors, opened, mesh, watch) -> rerank.Remembered:
    """The cross-encoder; what it says is kept in WORKDIR/scores.bin."""
    prior = args.prior
    if prior is None:
        prior = encoder_files.prior(args.reranker)
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
    return rerank.Remembered(
        score,
        pathlib.Path(args.workdir) / "scores.bin",
        made_from=corpus_index.identity(models, prior, args.length, asked, passages),
        progress=watch.meter("pairs reranked"),
    )


def _evaluate(args) -> None:
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
        for name, found in evaluations.items():
            formats.write_results(folder / f"{pathlib.Path(name).name}.tsv", found)


def _queries(args) -> dict[str, str]:
    queries = formats.read_queries(args.queries) if args.queries else {}
    queries |= {f"query-{i}": text for i, text in enumerate(getattr(args, "query", []))}
    if not queries:
        raise errors.UserError("no queries; give --queries FILE or --query TEXT")
    return queries


def _opened(args, mesh) -> corpus_index.Opened:
    return corpus_index.open_index(
        args.index, encoder=args.encoder, corpora=args.corpus, mesh=mesh
    )
