"""`jaxlab ablate report`: a pool's ranking, and its check, as a page and as JSON."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import errors, json_text

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


_CHECKED = "checked.json"  # what the last report trained, for one that trains nothing


def run(args: argparse.Namespace) -> None:
    """Writes POOL/report.html and POOL/report.json."""
    from jaxlab import ablation
    from jaxlab.core import process, progress, report
    from jaxlab.data import prepared
    from jaxlab.systems.data_ablation import mixtures as mixtures_lib
    from jaxlab.systems.data_ablation import recipe as recipe_lib
    from jaxlab.systems.data_ablation import report as report_lib
    from jaxlab.systems.data_ablation import results
    from jaxlab.systems.data_ablation import study as study_lib

    process.start()
    pool, watch = pathlib.Path(args.pool), progress.Clock()
    recipe = recipe_lib.read(pool)
    recipe.base.mesh.update(args.mesh or {})
    options, to_check = _options(args, pool)
    study = study_lib.Study(recipe, candidates=args.candidates, **options)
    names = [unit.name for unit in ablation.pool_folder.members(pool)]
    corpus = prepared.open_folder(pool / "data")
    study_lib.check(study, names, corpus)
    if to_check is None:
        to_check = mixtures_lib.choose(names, study.trained, study.seed, study.largest)
    targets = len(corpus.held_out)
    total = study_lib.judging_steps(study, len(names), to_check, targets)
    plan = progress.Stages(total, watch.progress)
    outcome = study_lib.judge(study, pool, plan, to_check=to_check, say=watch.say)
    if args.trained:
        report.write_json(pool / _CHECKED, {"options": options, "mixtures": to_check})
    seconds = {**outcome.seconds, "total": watch.elapsed()}
    with watch.announce("writing the report"):
        report_lib.write(pool, outcome, seconds)
    for line in results.headlines(outcome):
        watch.say(line)
    watch.say(f"report: {pool / 'report.html'}")


def _options(args: argparse.Namespace, pool: pathlib.Path) -> tuple[dict, list | None]:
    """(fields of the Study, mixtures that are trained already or None)."""
    if args.trained:
        names = (
            "trained", "repeated", "repeats", "searched", "budget", "largest",
        )  # fmt: skip
        return {name: getattr(args, name) for name in names}, None
    if args.searched or args.repeated:
        raise errors.UserError(
            "--searched and --repeated train models; give --trained N"
        )
    fix = "remove it, and train the mixtures again with --trained N"
    before = json_text.read_object(pool / _CHECKED, fix, ("options", "mixtures"))
    if before is None:
        return {"trained": 0}, []
    # The choices of the searches are left out: in a larger pool they are others.
    return before["options"] | {"searched": ()}, before["mixtures"]
