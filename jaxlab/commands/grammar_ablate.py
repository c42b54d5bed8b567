"""The arguments of `jaxlab ablate`; standard library only, as `commands/grammar.py`."""

import argparse

from jaxlab.commands import arguments

# Of `ablation/methods.py` and `data_ablation/recipe.py`, which take jax to import.
METHODS = (
    "best-single", "enumerate", "greedy", "gradient", "enumerate-ensemble", "convex",
)  # fmt: skip
SIZES = ("quick", "small", "standard")

SUMMARY = "Predict how data mixtures would train, from experts merged"
DETAILS = """\
Each expert is trained on one partition of the data from one common seed model; the
average of experts predicts the model that would be trained on their mixture (Na et
al. 2024, arXiv:2410.15661). For example:

  jaxlab ablate pool runs/pool --data my_text,embedded --size quick
  jaxlab ablate rank runs/pool --target legal
  jaxlab ablate search runs/pool --target legal=2 python_source --pareto
  jaxlab ablate pool runs/pool --add more=my_more_text
  jaxlab ablate report runs/pool --trained 10"""

_POOL = """\
Trains a seed model and one expert a partition, all on as many tokens. Killed anywhere,
the same command finishes it. With --add nothing is trained again: each partition costs
one training run. Everything needed later is in POOL, the text may go."""
_RANK = """\
Merges every mixture of a pool's experts, or of --experts, and evaluates it on each
target; shows beside it the ensemble of the members' predictions and the mean of their
own losses, which needs no merging. POOL/cache keeps what was computed."""
_SEARCH = """\
best-single, enumerate, greedy: by losses of merged models. gradient: any weights, by
gradients through the merge. enumerate-ensemble, convex: by the ensemble of the experts'
predictions; convex finds the best weights of all, and says how far from it (gap)."""
_REPORT = """\
Ranking, correlations, regret of the searches, noise and costs, with plots. Nothing is
trained but with --trained; what was trained before is used again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _pool(
        arguments.parser_of(
            actions, "pool", "Train a pool of experts, finish one, or add to one", _POOL
        )
    )
    _rank(
        arguments.parser_of(actions, "rank", "Rank all mixtures for each target", _RANK)
    )
    _search(
        arguments.parser_of(
            actions, "search", "Search the best mixture for some targets", _SEARCH
        )
    )
    _report(
        arguments.parser_of(
            actions, "report", "Write POOL/report.html and POOL/report.json", _REPORT
        )
    )


def _pool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="its folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        metavar="SRC[,SRC]",
        help="folders of text (a subfolder or NAME.jsonl a partition), or embedded; or "
        "one folder of `jaxlab data prepare`",
    )
    what.add_argument(
        "--add",
        nargs="+",
        type=_partition,
        metavar="NAME=PATH",
        help="partitions to add: a folder or file of text, or a token file NAME.npy",
    )
    parser.add_argument(
        "--seed-model",
        metavar="RUN",
        help="a run directory to branch from: its model and tokenizer are the pool's; "
        "default: train one",
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        help="of the models: quick (2 layers of 64, minutes), small (4 of 128; the "
        "default), standard (6 of 256, 3000 steps of 8192 tokens for the seed model, "
        "150 a unit: wants an accelerator or patience)",
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="V", help="of the tokenizer; default: size's"
    )
    parser.add_argument(
        "--units", type=arguments.names, metavar="A,B",
        help="partitions that get an expert; the others are targets; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--seed-domains", type=arguments.names, metavar="A,B",
        help="partitions of the seed model, in equal shares; default: all, by size",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=int, metavar="N", help="partitions of each domain; default: 1"
    )
    parser.add_argument(
        "--unit-steps",
        type=int,
        metavar="N",
        help="updates of an expert; default: the size's (20, 40, 150), or a tenth of "
        "the seed model's",
    )
    parser.add_argument(
        "--unit-rate",
        type=float,
        metavar="R",
        help="their learning rate; default: the size's (4e-3, 2e-3, 1e-3), or a third "
        "of the seed model's peak",
    )
    arguments.add_mesh(parser, "default: all devices, each with rows of its own")


def _rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", nargs="?", metavar="POOL", help="or give --experts")
    parser.add_argument(
        "--experts", nargs="+", type=_model, metavar="NAME=MODEL", help=arguments.MODEL
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
    _add_scoring(parser)


def _search(parser: argparse.ArgumentParser) -> None:
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
        "--method", choices=(*METHODS, "all"), default="all", help="default: all"
    )
    parser.add_argument(
        "--max-size", type=int, metavar="N", help="experts in a mixture; default: all"
    )
    parser.add_argument(
        "--must", type=arguments.names, default=(), metavar="A,B",
        help="members that take part (gradient, convex: with 5%% or more)",
    )  # fmt: skip
    parser.add_argument(
        "--forbid", type=arguments.names, default=(), metavar="A,B",
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
    _add_scoring(parser)


def _report(parser: argparse.ArgumentParser) -> None:
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
        "--searched", type=arguments.names, default=(), metavar="T,...",
        help="targets for which the choice of every search is trained too",
    )  # fmt: skip
    parser.add_argument(
        "--budget",
        choices=("member", "mixture"),
        default="mixture",
        help="tokens of a mixture: one unit's (default), or one unit's a member, as in "
        "the paper",
    )
    parser.add_argument(
        "--largest", type=int, default=5, metavar="N",
        help="members of a mixture that is trained; default: 5",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=int, default=256, metavar="N",
        help="mixtures that are merged and scored at most; default: 256",
    )  # fmt: skip
    arguments.add_mesh(parser, "default: all devices, each with rows of its own")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length", type=int, metavar="N",
        help="tokens of a row; default: the pool's, or the model's",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, metavar="ROWS", help="default: the pool's, or 8"
    )
    parser.add_argument(
        "--max-batches", type=int, metavar="N",
        help="a target; default: as many as the pool's runs read, or 32",
    )  # fmt: skip
    parser.add_argument("--json", metavar="OUT", help="also write all of it there")
    arguments.add_mesh(parser)


def _model(text: str) -> tuple[str, str]:
    return _named(text, "NAME=MODEL")


def _partition(text: str) -> tuple[str, str]:
    return _named(text, "NAME=PATH")


def _named(text: str, form: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not {form}")
    return name, path


def _weighted(text: str) -> tuple[str, float]:
    """T or T=WEIGHT; a path may have = in it."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0
