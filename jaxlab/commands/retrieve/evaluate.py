"""`jaxlab retrieve evaluate`: metrics of TREC runs."""

import argparse
import pathlib
import sys

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
    inputs.add_keep_identical(parser, ", unless it is judged")
    arguments_lib.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the metrics of every run, and how they differ from the first."""
    from jaxlab.core import process
    from jaxlab.core import report as report_lib
    from jaxlab.retrieval import formats, metrics, own_documents
    from jaxlab.systems.refit import report

    process.start()
    qrels = inputs.read_judgments(args)
    names = _names(args.runs)
    evaluations = {}
    for name, path in zip(names, args.runs, strict=True):
        run = formats.read_run(path)
        if not args.keep_identical:
            run, count = own_documents.leave_out(run, qrels)
            if count:
                print(f"{name}: {own_documents.say(count)}", file=sys.stderr)
        evaluations[name] = metrics.evaluate(qrels, run, args.metrics)
    output.table(*report.evaluation_cells(evaluations))
    differences = report.against_first(evaluations)
    for name, by_metric in differences.items():
        for metric, found in by_metric.items():
            said = report.spell_difference(found)
            output.line(f"{name} less {names[0]}, {metric}: {said}")
    if args.json:
        numbers = report.evaluation_numbers(evaluations, differences)
        report_lib.write_json(args.json, numbers)
    if args.out:
        folder = pathlib.Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        for name, evaluation in evaluations.items():
            formats.write_results(folder / f"{name}.tsv", evaluation)


def _names(paths: list[str]) -> list[str]:
    """A name for each run, and for its file: of its path as much as tells them apart.

    >>> _names(["a.trec"]), _names(["x/a.trec", "y/a.trec"]), _names(["a", "./a"])
    (['a'], ['x_a', 'y_a'], ['a', 'a-2'])
    """
    parts = [pathlib.Path(path).absolute().with_suffix("").parts for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["_".join(part[-count:]).replace("/", "") for part in parts]
        if len({*names}) == len(names):
            return names
    names = [part[-1] for part in parts]  # one path comes twice
    return [
        name if name not in names[:i] else f"{name}-{names[:i].count(name) + 1}"
        for i, name in enumerate(names)
    ]
