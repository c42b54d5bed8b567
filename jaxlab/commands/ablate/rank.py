"""`jaxlab ablate rank`: all mixtures of the experts, best predicted first."""

import argparse
from typing import TYPE_CHECKING, Any

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.ablate import scoring

if TYPE_CHECKING:
    from jaxlab.systems.data_ablation import ranking

SUMMARY = "Rank all mixtures for each target"
DETAILS = """\
Merges every mixture of a pool's experts, or of --experts, and evaluates it on each
target; shows beside it the ensemble of the members' predictions and the mean of their
own losses, which needs no merging. POOL/cache keeps what was computed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the experts, the targets, and what ranks."""
    parser.add_argument("pool", nargs="?", metavar="POOL", help="or give --experts")
    parser.add_argument(
        "--experts",
        nargs="+",
        type=arguments_lib.name_and_value("NAME=MODEL"),
        metavar="NAME=MODEL",
        help=arguments_lib.MODEL,
    )
    parser.add_argument(
        "--seed-model", metavar="MODEL", help="what --experts were branched from"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="NAME|DIR",
        help="held-out sets of the pool or of the experts' runs, or text; default: all "
        "held-out sets",
    )
    parser.add_argument(
        "--proxy",
        choices=("merged", "ensemble"),
        default="merged",
        help="what ranks: merged models (default), or the ensemble, which merges none",
    )
    parser.add_argument(
        "--max-size", type=int, metavar="N", help="experts in a mixture; default: all"
    )
    parser.add_argument(
        "--weighting",
        choices=("macro", "micro", "tokens"),
        default="macro",
        help="of members: sources alike (default), base units alike, or by tokens of "
        "their partitions",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="mixtures shown; default: 10"
    )
    scoring.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the ranking of every target, with what it has to beat."""
    from jaxlab.core import progress, report
    from jaxlab.systems.data_ablation import ranking

    watch, results = progress.Clock(), {}
    with scoring.open_experts(args, args.target) as (subject, evaluation):
        mixtures = subject.pool.mixtures(args.max_size, weighting=args.weighting)
        for target, batches in evaluation.items():
            with progress.announce(f"{target}: ranking", progress.remark):
                results[target] = ranking.rank_target(
                    subject, mixtures, target, batches, args.proxy, watch.meter
                )
            _print(target, results[target], args.proxy, args.top)
    if args.json:
        by_target = {
            "ranking": {name: result.rows for name, result in results.items()},
            "seed_perplexity": {name: result.seed for name, result in results.items()},
            "best_single": {name: r.best_single for name, r in results.items()},
        }
        settings = {"proxy": args.proxy, "weighting": args.weighting}
        origin = {"pool": args.pool}
        if args.experts:
            origin = {"experts": dict(args.experts)}
        report.write_json(args.json, by_target | settings | origin)


def _print(target: str, result: "ranking.Ranking", proxy: str, top: int) -> None:
    by = {"merged": "merged models", "ensemble": "the ensemble"}[proxy]
    print(f"\n{target}: {len(result.rows)} mixtures, best predicted first, by {by}")
    head = ["mixture", "predicted perplexity", "95% interval", "P(best)", "ensemble"]
    output.table([*head, "mean of members"], map(_cells, result.rows[:top]))
    if result.seed is not None:
        print(f"the seed model: {result.seed:,.2f}")
    single = result.best_single
    print(f"the best single expert: {single['expert']}, {single['perplexity']:,.2f}")
    print(f"resampled for intervals and P(best): {result.rows[0]['resampled']}")


def _cells(row: dict[str, Any]) -> list[str]:
    from jaxlab.systems.data_ablation import experts

    interval, best = row["interval"], row["best_probability"]
    none = row["resampled"].replace("nothing: ", "none: ")
    return [
        experts.name_of(row["mixture"]),
        f"{row['predicted_perplexity']:,.2f}",
        none if None in interval else "{:,.2f} to {:,.2f}".format(*interval),
        none if best is None else f"{best:.0%}",
        f"{row['ensemble_perplexity']:,.2f}",
        f"{row['mean_of_members_perplexity']:,.2f}",
    ]
