"""`jaxlab ablate report`: a pool's ranking, and its check, as a page and as JSON."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import errors

SUMMARY = "Write POOL/report.html and POOL/report.json"
DETAILS = """\
Ranking, correlations, regret of the searches, noise and costs, with plots. Nothing is
trained but with --trained; what was trained before is used again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the pool, and what is trained to check it."""
    parser.add_argument("pool", metavar="POOL", help="its folder")
    parser.add_argument(
        "--trained",
        type=int,
        default=0,
        metavar="N",
        help="train N mixtures to check the predictions; default: show those of the "
        "last report",
    )
    parser.add_argument(
        "--repeated", type=int, default=0, metavar="R",
        help="train R of them with other data orders too",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="K",
        help="this often in all; default: 3",
    )  # fmt: skip
    parser.add_argument(
        "--searched", type=arguments_lib.names, default=(), metavar="T,...",
        help="targets for which the choice of every search is trained too",
    )  # fmt: skip
    parser.add_argument(
        "--budget",
        choices=("member", "mixture"),
        default="mixture",
        help="tokens of a mixture: one unit's (default), or one unit's per member, as "
        "in the paper",
    )
    parser.add_argument(
        "--largest", type=int, default=5, metavar="N",
        help="members of a mixture that is trained; default: 5",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=int, default=256, metavar="N",
        help="mixtures that are merged and scored at most; default: 256",
    )  # fmt: skip
    arguments_lib.add_mesh(parser, "default: all devices, each with rows of its own")


_TRAINING = ("trained", "repeated", "repeats", "searched", "budget", "largest")


def run(args: argparse.Namespace) -> None:
    """Writes POOL/report.html and POOL/report.json."""
    from jaxlab.core import process, progress
    from jaxlab.systems.data_ablation import existing, results
    from jaxlab.systems.data_ablation import report as report_lib

    process.start()
    pool, watch = pathlib.Path(args.pool), progress.Clock()
    training = None
    if args.trained:
        training = {name: getattr(args, name) for name in _TRAINING}
    elif args.searched or args.repeated:
        raise errors.UserError(
            "--searched and --repeated train models; give --trained N"
        )
    outcome = existing.judge(
        pool,
        training,
        candidates=args.candidates,
        mesh_shape=args.mesh,
        say=watch.say,
        done=watch.progress,
    )
    seconds = {**outcome.seconds, "total": watch.elapsed()}
    with watch.announce("writing the report"):
        report_lib.write(pool, outcome, seconds)
    for line in results.headlines(outcome):
        watch.say(line)
    watch.say(f"report: {pool / 'report.html'}")
