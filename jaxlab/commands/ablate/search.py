"""`jaxlab ablate search`: the best mixture for one target or several, by method."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from jaxlab.ablation import method_names
from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.commands.ablate import scoring
from jaxlab.core import errors

if TYPE_CHECKING:
    from jaxlab import ablation

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
        type=_target_and_weight,
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


def _target_and_weight(text: str) -> tuple[str, float]:
    """T or T=WEIGHT; a path may have = in it."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def run(args: argparse.Namespace) -> None:
    """Prints what each method chose, and the Pareto front if that is asked for."""
    from jaxlab.core import progress, report
    from jaxlab.systems.data_ablation import choices

    query = choices.Query(
        weights=_weights(args),
        methods=tuple(_METHODS.values())
        if args.method == "all"
        else (_METHODS[args.method],),
        must=tuple(args.must),
        forbid=tuple(args.forbid),
        max_size=args.max_size,
        cap=args.cap,
        pareto=args.pareto,
    )
    watch = progress.Clock()
    with (
        scoring.open_experts(args, query.weights) as (subject, evaluation),
        progress.announce("searching", progress.remark),
    ):
        result = choices.search(query, subject, evaluation, watch.meter)
    _print(result.by_method, list(evaluation))
    if result.front is not None:
        _print_front(result.front, list(evaluation))
    if args.json:
        content = {"targets": result.weights, "limits": _limits_shown(args)}
        content["found"] = {name: _row(each) for name, each in result.by_method.items()}
        content["pool"] = args.pool
        if result.front is not None:
            content["front"] = result.front
        report.write_json(args.json, content)


def _weights(args: argparse.Namespace) -> dict[str, float]:
    """Target -> how much it counts."""
    weights = dict(args.target)
    if len(weights) < len(args.target):
        raise errors.UserError("a target is given twice; give each once")
    if args.pareto and len(weights) < 2:
        raise errors.UserError("--pareto needs two or more targets")
    return weights


def _limits_shown(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("max_size", "must", "forbid", "cap")}


def _row(choice: "ablation.Found") -> dict[str, Any]:
    return {
        "mixture": choice.mixture,
        "predicted_loss": choice.predicted_loss,
        "predicted_perplexity": {t: math.exp(x) for t, x in choice.by_target.items()},
        "evaluations": choice.evaluations,
        "gap": choice.gap,
    }


def _print(by_method: dict[str, "ablation.Found"], targets: list[str]) -> None:
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
            for method, each in by_method.items()
        ],
    )
    print(
        "by: what predicts; evaluations: passes over the targets; gap: nats per token"
    )
    print("that the best weights of all may be better by, where a method knows it")


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
