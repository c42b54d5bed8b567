"""`jaxlab tram domains|languages`: optimizers compared where nothing was trained."""

import argparse
import pathlib

from jaxlab.commands import output
from jaxlab.core import process, progress
from jaxlab.systems.tram import domains, languages, report
from jaxlab.systems.tram import study as study_lib


def run(args: argparse.Namespace) -> None:
    """Runs or resumes a comparison, writes its report, and prints the table."""
    process.start()
    workdir, watch = pathlib.Path(args.workdir), progress.Clock()
    study = study_lib.Study(
        rows=args.optimizers or study_lib.compared_rows(),
        seeds=args.seeds,
        rates=args.rates or study_lib.RATES,
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
    table = report.write(workdir, runs, protocol, title, watch.elapsed())
    output.table(*report.cells(table, protocol))
    for line in report.verdicts(table, protocol):
        print(line)
    print(f"report: {workdir / 'report.html'}")
