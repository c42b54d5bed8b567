"""`jaxlab ablate search`: the best mixture for one target or several, by method."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from jaxlab.ablation import method_names
from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.ablate import scoring
from jaxlab.core import errors

SUMMARY = "Search the best mixture for some targets"
DETAILS = """\
best-single, enumerate, greedy: by losses of merged models. gradient: any weights, by
gradients through the merge. enumerate-ensemble, convex: by the ensemble of the experts'
predictions; convex finds the best weights of all, and says how far from it (gap)."""

# As an option takes them: enumerate-ensemble is "enumerate ensemble".
_METHODS = {name.replace(" ", "-"): name for name in method_names.METHODS}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the pool, the targets, the methods and their limits."""
    parser.add_argument("pool", metavar="POOL", help="its folder")
    parser.add_argument(
        "--target",
        nargs="+",
        required=True,
        type=_weighted,
        metavar="T[=WEIGHT]",
        help="held-out sets of the pool, or text; WEIGHT (default 1) is how much each "
        "counts",
    )
    parser.add_argument(
        "--method", choices=(*_METHODS, "all"), default="all", help="default: all"
    )
    parser.add_argument(
        "--max-size", type=int, metavar="N", help="experts in a mixture; default: all"
    )
    parser.add_argument(
        "--must", type=arguments_lib.names, default=(), metavar="A,B",
        help="members that take part (gradient, convex: with 5%% or more)",
    )  # fmt: skip
    parser.add_argument(
        "--forbid", type=arguments_lib.names, default=(), metavar="A,B",
        help="members that do not",
    )  # fmt: skip
    parser.add_argument(
        "--cap",
        type=float,
        metavar="TOKENS",
        help="on the tokens of the members' partitions together; gradient and convex: "
        "on their mean under the weights",
    )
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="also show which allowed mixtures no other beats on all targets",
    )
    scoring.add_arguments(parser)


def _weighted(text: str) -> tuple[str, float]:
    """T or T=WEIGHT; a path may have = in it."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def run(args: argparse.Namespace) -> None:
    """Prints what each method chose, and the Pareto front if that is asked for."""
    from jaxlab.ablation import methods as methods_lib
    from jaxlab.commands.ablate import opened as opened_lib
    from jaxlab.core import progress, report
    from jaxlab.systems.data_ablation import predictions

    weights = dict(args.target)
    if len(weights) < len(args.target):
        raise errors.UserError("a target is given twice; give each once")
    if args.pareto and len(weights) < 2:
        raise errors.UserError("--pareto needs two or more targets")
    methods = list(_METHODS.values())
    if args.method != "all":
        methods = [_METHODS[args.method]]
    watch = progress.Clock()
    with opened_lib.opening(args, list(weights)) as opened:
        subject, evaluation = opened.subject, opened.evaluation
        weights = _weights_of(weights, list(evaluation))
        within = _limits(args, subject.pool)
        every = args.pareto or "enumerate" in methods
        mixtures = within.subsets(subject.pool) if every else []
        logps, merged = {}, {}
        for target, batches in evaluation.items():
            if "ensemble" in [method_names.METHODS[m] for m in methods]:
                logps[target] = predictions.expert_logps(
                    subject, batches, watch.meter(f"{target}: batches of experts")
                )
            if every:
                merged[target] = predictions.merged_losses(
                    subject,
                    mixtures,
                    batches,
                    watch.meter(f"{target}: batches of merges"),
                ).loss
        found = {
            method: methods_lib.search_by(
                method,
                subject.pool,
                evaluation,
                logps,
                subject.losses_fn,
                within,
                target_weights=weights,
                known=(mixtures, merged) if every else None,
            )
            for method in methods
        }
    _print(found, list(evaluation))
    result = {
        "targets": weights,
        "limits": _limits_shown(args),
        "found": {},
    } | opened.origin
    result["found"] = {method: _row(each) for method, each in found.items()}
    if args.pareto:
        result["front"] = _front(mixtures, merged)
        _print_front(result["front"], list(evaluation))
    if args.json:
        report.write_json(args.json, result)


def _weights_of(wanted: dict[str, float], targets: list[str]) -> dict[str, float]:
    """The weights by the names that the targets got: a text is called by its domain."""
    if unknown := [name for name in wanted if name not in targets]:
        if len(wanted) != len(targets):
            raise errors.UserError(
                f"{', '.join(unknown)} holds several targets; give one file or domain"
            )
        return dict(zip(targets, wanted.values(), strict=True))
    return wanted


def _limits(args: argparse.Namespace, pool: Any) -> Any:
    from jaxlab import ablation

    costs = None
    if args.cap is not None:
        costs = dict(zip(pool.names, pool.tokens, strict=True))
    return ablation.Limits(
        must=tuple(args.must),
        forbid=tuple(args.forbid),
        max_size=args.max_size,
        costs=costs,
        cap=args.cap,
    )


def _limits_shown(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("max_size", "must", "forbid", "cap")}


def _row(found: Any) -> dict[str, Any]:
    return {
        "mixture": found.mixture,
        "predicted_loss": found.predicted_loss,
        "predicted_perplexity": {t: math.exp(x) for t, x in found.by_target.items()},
        "evaluations": found.evaluations,
        "gap": found.gap,
    }


def _front(mixtures: Sequence[dict], losses: dict[str, Any]) -> list[dict[str, Any]]:
    """The mixtures that none beats on every target, by the first target's loss."""
    import numpy as np

    from jaxlab import ablation

    table = np.stack(list(losses.values()), axis=1)
    places = np.flatnonzero(ablation.pareto_front(table))
    return [
        {
            "mixture": mixtures[k],
            "predicted_perplexity": {t: math.exp(x[k]) for t, x in losses.items()},
        }
        for k in sorted(places, key=lambda k: table[k, 0])
    ]


def _print(found: dict[str, Any], targets: list[str]) -> None:
    output.table(
        ["method", "by", *targets, "evaluations", "gap", "mixture"],
        [
            [
                method,
                method_names.METHODS[method],
                *(f"{math.exp(each.by_target[target]):,.2f}" for target in targets),
                f"{each.evaluations:.0f}",
                "" if each.gap is None else f"{each.gap:.1e}",
                _percentages(each.mixture),
            ]
            for method, each in found.items()
        ],
    )


def _print_front(front: list[dict[str, Any]], targets: list[str]) -> None:
    from jaxlab.systems.data_ablation import experts

    print(f"\n{len(front)} mixtures that none beats on all targets, by merged models")
    output.table(
        ["mixture", *targets],
        [
            [
                experts.name_of(row["mixture"]),
                *(f"{row['predicted_perplexity'][target]:,.2f}" for target in targets),
            ]
            for row in front
        ],
    )


def _percentages(mixture: dict[str, float]) -> str:
    ordered = sorted(mixture.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {weight:.0%}" for name, weight in ordered)
