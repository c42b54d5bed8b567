"""`jaxlab ablate rank`: all mixtures of the experts, best predicted first."""

import argparse
import functools
import math
from typing import Any

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.ablate import scoring

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
        type=arguments_lib.named("NAME=MODEL"),
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
    from jaxlab.commands.ablate import opened as opened_lib
    from jaxlab.core import progress, report

    watch, results = progress.Clock(), {}
    with opened_lib.opening(args, args.target) as opened:
        pool = opened.subject.pool
        mixtures = pool.mixtures(args.max_size, weighting=args.weighting)
        for target, batches in opened.evaluation.items():
            meter = functools.partial(_meter, watch, target)
            results[target] = _ranked(
                opened.subject, mixtures, batches, args.proxy, meter
            )
            _print(target, results[target], args)
    if args.json:
        found = {
            "ranking": {name: result["rows"] for name, result in results.items()},
            "seed_perplexity": {n: result["seed"] for n, result in results.items()},
            "best_single": {n: result["best_single"] for n, result in results.items()},
            "proxy": args.proxy,
            "weighting": args.weighting,
        }
        report.write_json(args.json, found | opened.origin)


def _ranked(
    subject: Any,
    mixtures: list[dict[str, float]],
    batches: list,
    proxy: str,
    meter: Any,
) -> dict[str, Any]:
    """One target: rows as in report.json, the seed model, the best single expert."""
    import numpy as np

    from jaxlab import ablation
    from jaxlab.systems.data_ablation import experts, predictions
    from jaxlab.systems.data_ablation import results as results_lib

    logps = predictions.expert_logps(subject, batches, meter("experts' predictions"))
    ensemble = predictions.ensemble_losses(subject, mixtures, logps)
    alone = [{name: 1.0} for name in subject.pool.names]
    losses = predictions.ensemble_losses(subject, alone, logps).loss.tolist()
    individual = dict(zip(subject.pool.names, losses, strict=True))
    means = (subject.pool.weights(mixtures) @ np.array(losses)).astype(np.float32)
    chosen = ensemble
    if proxy == "merged":
        chosen = predictions.merged_losses(
            subject, mixtures, batches, meter("merged mixtures")
        )
    names = [experts.name_of(mixture) for mixture in mixtures]
    best = min(individual, key=lambda name: np.nan_to_num(individual[name], nan=np.inf))
    seed = predictions.seed_loss(subject, batches)
    return {
        "rows": results_lib.ranking_rows(
            ablation.rank(mixtures, chosen),
            dict(zip(names, np.exp(ensemble.loss).tolist(), strict=True)),
            dict(zip(names, np.exp(means).tolist(), strict=True)),
            {},
        ),
        "seed": None if seed is None else math.exp(seed),
        "best_single": {"expert": best, "perplexity": math.exp(individual[best])},
    }


def _meter(watch: Any, target: str, what: str) -> Any:
    return watch.meter(f"{target}: batches of {what}")


def _print(target: str, result: dict[str, Any], args: argparse.Namespace) -> None:
    rows = result["rows"]
    by = {"merged": "merged models", "ensemble": "the ensemble"}[args.proxy]
    print(f"\n{target}: {len(rows)} mixtures, best predicted first, by {by}")
    head = ["mixture", "predicted perplexity", "95% interval", "P(best)", "ensemble"]
    output.table([*head, "mean of members"], map(_cells, rows[: args.top]))
    if result["seed"] is not None:
        print(f"the seed model: {result['seed']:,.2f}")
    single = result["best_single"]
    print(f"the best single expert: {single['expert']}, {single['perplexity']:,.2f}")


def _cells(row: dict[str, Any]) -> list[str]:
    from jaxlab.systems.data_ablation import experts

    interval, best = row["interval"], row["best_probability"]
    return [
        experts.name_of(row["mixture"]),
        f"{row['predicted_perplexity']:,.2f}",
        "" if None in interval else "{:,.2f} to {:,.2f}".format(*interval),
        "" if best is None else f"{best:.0%}",
        f"{row['ensemble_perplexity']:,.2f}",
        f"{row['mean_of_members_perplexity']:,.2f}",
    ]
