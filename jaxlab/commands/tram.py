"""`jaxlab tram domains|languages`: optimizers compared where nothing was trained."""

import argparse
import pathlib

from jaxlab.commands import output
from jaxlab.core import process
from jaxlab.systems import clock, tram, tram_domains, tram_languages, tram_report


def run(args: argparse.Namespace) -> None:
    """Runs or resumes a comparison, writes its report, and prints the table."""
    process.start()
    workdir, watch = pathlib.Path(args.workdir), clock.Clock()
    study = tram.Study(
        rows=args.optimizers or tram.ROWS,
        seeds=args.seeds,
        rates=args.rates or tram.RATES,
        tune=not args.no_tuning,
    )
    tram.check(study)
    shared = {"targets": args.targets, "steps": args.steps, "rate": args.rate}
    if args.action == "domains":
        protocol = tram_domains.protocol(
            args.data, args.source, workdir, model=args.model, size=args.size,
            pretrained_on=args.pretrain, **shared,
        )  # fmt: skip
        title = f"Fine-tuned on {protocol.source}: which optimizer keeps the rest?"
    else:
        protocol = tram_languages.protocol(
            args.data, args.source, workdir, model=args.model, length=args.length,
            **shared,
        )  # fmt: skip
        title = f"Fine-tuned in {protocol.source}: which optimizer serves the others?"
    runs = tram.run(
        study,
        protocol,
        workdir,
        done=lambda name, count, total: watch.progress(name, count / total),
    )
    table = tram_report.write(workdir, runs, protocol, title, watch.elapsed())
    output.table(*tram_report.cells(table, protocol))
    for line in tram_report.verdicts(table, protocol):
        print(line)
    print(f"report: {workdir / 'report.html'}")
