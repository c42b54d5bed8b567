"""The grammar of the command line: the verbs, and the arguments of each.

Only the standard library is imported here: help and mistakes answer at once.
"""

import argparse
import difflib
import re
from collections.abc import Sequence

from jaxlab.commands import (
    arguments,
    grammar_ablate,
    grammar_checkpoint,
    grammar_data,
    grammar_plan,
    grammar_retrieve,
    grammar_tram,
)

UsageError = arguments.UsageError


def parse(verb: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb.

    Raises:
        UsageError: with the nearest verb or option for a misspelt one.
        SystemExit: after --help.
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(VERBS)}"
        raise UsageError(f"jaxlab: unknown verb {verb!r}; {hint}")
    summary, details, add_arguments = VERBS[verb]
    parser = arguments.parser(f"jaxlab {verb}", f"{summary}.\n\n{details}".strip())
    parser.set_defaults(verbose=False)
    add_arguments(parser)
    if verb == "train":  # its flags are the config's keys: see core/config.py
        args, args.flags = parser.parse_known_args(argv)
        return args
    if verb == "plan":  # so are those of its flags that begin so
        flags = [word for word in argv if re.match("--(no)?config[.]", word)]
        args = parser.parse_args([word for word in argv if word not in flags])
        args.flags = flags
        return args
    if verb == "data" and "--" in argv:  # what follows is for Beam
        cut = list(argv).index("--")
        args = parser.parse_args(argv[:cut])
        args.runner_options = list(argv[cut + 1 :])
        if not getattr(args, "runner", None):
            raise UsageError("jaxlab data: what follows -- is for a --runner; add one")
        return args
    return parser.parse_args(argv)


def overview() -> str:
    """What `jaxlab --help` prints."""
    lines = [f"  {verb:<12}{summary}" for verb, (summary, *_) in VERBS.items()]
    more = "`jaxlab VERB --help` says more; `-v` after a verb logs what it does."
    return "\n".join(["usage: jaxlab VERB [ARGUMENTS]", "", *lines, "", more])


def _train(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "jaxlab train --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]"
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--data",
        metavar="DIR|FILE|embedded",
        help="text (a subfolder or NAME.jsonl a domain), one file, or a folder of "
        "`jaxlab data prepare`; default: the run's own held-out text",
    )
    parser.add_argument("--length", type=int, help="tokens of a row; default: model's")
    parser.add_argument("--batch-size", type=int, default=8, metavar="ROWS")
    parser.add_argument("--max-batches", type=int, help="a domain; default: all")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers there")
    arguments.add_mesh(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    parser.add_argument(
        "--chat", action="store_true", help="ask as a user does: of a tuned model"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 always takes the likeliest"
    )
    parser.add_argument("--top-k", type=int, help="draw from the K likeliest only")
    parser.add_argument(
        "--top-p", type=float, help="draw from the likeliest that sum to P only"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--batch-size", type=int, default=16, metavar="ROWS")
    arguments.add_mesh(parser)


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RECIPE|MODEL",
        help="a recipe (.yaml, or an earlier merge's merge.json); or "
        f"{arguments.MODEL}, two or more, to average",
    )
    parser.add_argument("-o", "--out", required=True, help="a new folder")
    parser.add_argument(
        "--weights", type=_numbers, help="e.g. 0.7,0.3; divided by their sum"
    )
    parser.add_argument(
        "--format",
        choices=("hf", "orbax"),
        help="a Hugging Face folder (default), or a run directory",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the result; default: that of the models",
    )
    parser.add_argument(
        "--memory",
        type=_bytes,
        default=64 * 2**20,
        metavar="SIZE",
        help="held at most, besides the program; default 64MB",
    )
    parser.add_argument(
        "--shard-size", type=_bytes, metavar="SIZE", help="of a file; default 5GB"
    )
    parser.add_argument(
        "--sha256", action="store_true", help="record SHA-256 and not CRC-32"
    )
    arguments.add_mesh(parser)


def _convert(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("out", metavar="OUT", help="a new Hugging Face folder")
    _add_dtype(parser)
    arguments.add_mesh(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--data", metavar="DIR", help="text, a subfolder a domain")
    parser.add_argument("--workdir", default="runs/demo", metavar="DIR")


VERBS = {
    "train": (
        "Train what a config describes, or resume it",
        "Every key of the config is a flag: --config.optim.learning_rate=3e-4. A\n"
        "stopped run continues, bit for bit, with the same command. For example:\n\n"
        "  jaxlab train --config=configs/olmo.py:tiny --workdir=runs/tiny",
        _train,
    ),
    "evaluate": ("Perplexity of a model on held-out text, by domain", "", _evaluate),
    "generate": ("Continue prompts", "", _generate),
    "merge": (
        "Merge models into one, streaming, by a recipe or as an average",
        "Recipes are those of mergekit: linear, task_arithmetic, slerp, nuslerp,\n"
        "multislerp, karcher, model_stock, ties, dare, breadcrumbs, della, sce.\n"
        "Checkpoints may be larger than memory. merge.json in the result says what\n"
        "was merged, and is a recipe that makes the same bytes again. For example:\n\n"
        "  jaxlab merge general math -o merged --weights 0.7,0.3\n"
        "  jaxlab merge recipe.yaml -o merged --memory 256MB",
        _merge,
    ),
    "ablate": (
        grammar_ablate.SUMMARY,
        grammar_ablate.DETAILS,
        grammar_ablate.add_arguments,
    ),
    "retrieve": (
        grammar_retrieve.SUMMARY,
        grammar_retrieve.DETAILS,
        grammar_retrieve.add_arguments,
    ),
    "tram": (grammar_tram.SUMMARY, grammar_tram.DETAILS, grammar_tram.add_arguments),
    "plan": (grammar_plan.SUMMARY, grammar_plan.DETAILS, grammar_plan.add_arguments),
    "convert": (
        "Write a model as a Hugging Face folder, with its tokenizer",
        "From a run directory, or from another Hugging Face folder to change dtype.",
        _convert,
    ),
    "checkpoint": (
        grammar_checkpoint.SUMMARY,
        grammar_checkpoint.DETAILS,
        grammar_checkpoint.add_arguments,
    ),
    "data": (grammar_data.SUMMARY, grammar_data.DETAILS, grammar_data.add_arguments),
    "demo": ("A whole data ablation on real text, within minutes", "", _demo),
}


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=arguments.MODEL)
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a run")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="where the folder has none of its own"
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32"
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 256MB")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.7,0.3") from None
