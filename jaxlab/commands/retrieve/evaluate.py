"""`jaxlab retrieve evaluate`: metrics of TREC runs."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.retrieve import inputs

SUMMARY = "Measure runs"
DETAILS = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the runs, the judgments and the metrics."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="TREC runs")
    inputs.add_qrels(parser, required=True)
    parser.add_argument(
        "--metrics", type=arguments_lib.names, metavar="A,B",
        default=("ndcg@10", "recall@100", "mrr@10", "map@100"),
        help="recall@k, ndcg@k, mrr@k, map@k",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write values by query there")


def run(args: argparse.Namespace) -> None:
    """Prints the metrics of every run, and how they differ from the first."""
    from jaxlab.core import process
    from jaxlab.retrieval import formats, metrics
    from jaxlab.systems.refit import report

    process.start()
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
            file = name.strip("/").replace(
                "/", "_"
            )  # paths, where names are not unique
            formats.write_results(folder / f"{file}.tsv", evaluation)
