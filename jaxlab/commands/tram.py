"""`jaxlab tram domains|languages`: optimizers compared where nothing was trained."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.systems import sizes

SUMMARY = "Compare optimizers by what a model does where it was not trained"
DETAILS = """\
SGD, Adam, SAM, ASAM, Fisher-SAM, TRPO, R3F, MESA and TRAM fine-tune one model on one
domain; each is tuned on the same small grid by the source's held-out text, then run
with several seeds and looked at on all other domains (Sherborne et al. 2023,
arXiv:2310.03646). WORKDIR/report.html and report.json have the tables. For example:

  jaxlab tram domains runs/tram --data embedded --source legal --size quick
  jaxlab tram domains runs/tram --data TEXT --source law --model runs/base
  jaxlab tram languages runs/tram --data SIB200 --model runs/base"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the two protocols."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="PROTOCOL")
    domains = arguments_lib.add_action(
        actions, "domains", "Perplexity on domains that were not fine-tuned on"
    )
    _add_shared(domains, "text, a subfolder or NAME.jsonl per domain, or embedded")
    domains.add_argument("--source", required=True, metavar="DOMAIN")
    domains.add_argument(
        "--model", default="", metavar="RUN", help="to start from; default: train one"
    )
    domains.add_argument(
        "--size", choices=[*sizes.SIZES], default="small", help="of that model"
    )
    domains.add_argument(
        "--pretrain", type=arguments_lib.names, default=(), metavar="A,B",
        help="domains of that model; default: all but the source",
    )  # fmt: skip
    languages = arguments_lib.add_action(
        actions, "languages", "Accuracy in languages that were not fine-tuned on"
    )
    _add_shared(languages, "LANG.SPLIT.tsv as SIB-200's, or SPLIT.LANG.tsv as PAWS-X's")
    languages.add_argument("--source", default="", metavar="LANG", help="e.g. eng_Latn")
    languages.add_argument(
        "--model", required=True, metavar="RUN", help="to start from"
    )
    languages.add_argument(
        "--length", type=int, metavar="TOKENS", help="per row; default: 128"
    )


def _add_shared(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--data", required=True, metavar="DIR", help=data)
    parser.add_argument(
        "--targets", type=arguments_lib.names, default=(), metavar="A,B",
        help="that are looked at; default: all but the source",
    )  # fmt: skip
    parser.add_argument(
        "--optimizers", type=arguments_lib.names, default=(), metavar="A,B",
        help="rows of configs/tram.py; default: all but sgd and r4f",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=6, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="updates of a run")
    parser.add_argument("--rate", type=float, help="about which the grid lies")
    parser.add_argument(
        "--rates", type=arguments_lib.numbers("0.5,1"), metavar="X,Y",
        help="the grid, multiples of --rate; default: 0.5,1,2",
    )  # fmt: skip
    parser.add_argument(
        "--no-tuning", action="store_true", help="every paper's value at --rate"
    )


def run(args: argparse.Namespace) -> None:
    """Runs or resumes a comparison, writes its report, and prints the table."""
    from jaxlab.core import process, progress
    from jaxlab.systems.tram import domains, languages, report
    from jaxlab.systems.tram import study as study_lib

    process.start()
    workdir, watch = pathlib.Path(args.workdir), progress.Clock()
    study = study_lib.Study(
        rows=args.optimizers or study_lib.compared_rows(),
        seeds=args.seeds,
        rates=tuple(args.rates or study_lib.RATES),
        tune=not args.no_tuning,
    )
    study_lib.check(study)
    shared = {"targets": args.targets, "steps": args.steps, "rate": args.rate}
    if args.action == "domains":
        protocol = domains.protocol(
            args.data, args.source, workdir, model=args.model, size=args.size,
            pretrained_on=args.pretrain, **shared,
        )  # fmt: skip
        title = f"Fine-tuned on {protocol.source}: which optimizer keeps the rest?"
    else:
        protocol = languages.protocol(
            args.data, args.source, workdir, model=args.model, length=args.length,
            **shared,
        )  # fmt: skip
        title = f"Fine-tuned in {protocol.source}: which optimizer serves the others?"
    runs = study_lib.run(
        study,
        protocol,
        workdir,
        done=lambda name, count, total: watch.progress(name, count / total),
    )
    with watch.announce("writing the report"):
        table = report.write(
            workdir, runs, protocol, title, watch.elapsed(), tuned=study.tune
        )
    print(report.finding(table, protocol, tuned=study.tune))
    output.table(*report.cells(table, protocol))
    for line in report.verdicts(table, protocol):
        print(line)
    print(f"report: {workdir / 'report.html'}")
