"""The grammar of the command line: the verbs, and the arguments of each.

Only the standard library is imported here: help and mistakes answer at once.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_MODEL = "a run directory, or a Hugging Face folder (OLMo 1-3, Llama 2-3.1)"


class UsageError(Exception):
    """A command line that does not follow the grammar: a line that begins `jaxlab`."""


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
    parser = _parser(f"jaxlab {verb}", f"{summary}.\n\n{details}".strip())
    parser.set_defaults(verbose=False)
    add_arguments(parser)
    if verb == "train":  # its flags are the config's keys: see core/config.py
        args, args.flags = parser.parse_known_args(argv)
        return args
    return parser.parse_args(argv)


def overview() -> str:
    """What `jaxlab --help` prints."""
    lines = [f"  {verb:<10}{summary}" for verb, (summary, *_) in VERBS.items()]
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
    _add_mesh(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line")
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
    _add_mesh(parser)


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=_MODEL)
    parser.add_argument("-o", "--out", required=True, help="a new Hugging Face folder")
    parser.add_argument(
        "--weights", type=_numbers, help="e.g. 0.7,0.3; divided by their sum"
    )
    _add_dtype(parser)
    _add_mesh(parser)


def _ablate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--experts", nargs="+", required=True, type=_named, metavar="NAME=MODEL"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="NAME|DIR",
        help="held-out sets of the experts' runs, or text; default: all held-out sets",
    )
    parser.add_argument(
        "--seed-model", metavar="MODEL", help="what the experts were branched from"
    )
    parser.add_argument("--max-size", type=int, help="experts in a mixture at most")
    parser.add_argument("--length", type=int, help="tokens of a row; default: model's")
    parser.add_argument("--batch-size", type=int, default=8, metavar="ROWS")
    parser.add_argument("--max-batches", type=int, default=32, help="a target")
    parser.add_argument("--top", type=int, default=10, help="mixtures shown a target")
    parser.add_argument("--json", metavar="OUT", help="also write all of it there")
    _add_mesh(parser)


def _convert(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("out", metavar="OUT", help="a new Hugging Face folder")
    _add_dtype(parser)
    _add_mesh(parser)


def _data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = _parser_of(actions, "prepare", "Text to token files and held-out sets")
    prepare.add_argument(
        "source", help="a folder (a subfolder or NAME.jsonl a domain), or embedded"
    )
    prepare.add_argument("out", metavar="OUT", help="folder of the token files")
    tokenizer = prepare.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="PATH", default="")
    tokenizer.add_argument(
        "--vocab-size", type=int, metavar="N", help="of a tokenizer trained on the text"
    )
    prepare.add_argument(
        "--held-out", type=float, default=0.05, metavar="F", help="share of documents"
    )
    inspect = _parser_of(actions, "inspect", "Which documents a training step read")
    inspect.add_argument("--workdir", required=True, metavar="RUN")
    inspect.add_argument("--step", type=int, required=True, metavar="N", help="from 0")
    inspect.add_argument("--text", action="store_true", help="show the beginnings")


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
        "Average models into one",
        "All models are held in memory and must be alike: same architecture and\n"
        "tokenizer. Other methods and checkpoints larger than memory come later.",
        _merge,
    ),
    "ablate": (
        "Rank data mixtures by their experts' averages, training none",
        "Each expert was trained on one domain from one common model (Na et al. 2024,\n"
        "arXiv:2410.15661). Every subset is merged and evaluated on each target.",
        _ablate,
    ),
    "convert": (
        "Write a model as a Hugging Face folder, with its tokenizer",
        "From a run directory, or from another Hugging Face folder to change dtype.",
        _convert,
    ),
    "data": ("Prepare text, or look up what a step read", "", _data),
    "demo": ("A whole data ablation on real text, within minutes", "", _demo),
}


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a run")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="where the folder has none of its own"
    )


def _add_mesh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mesh",
        type=_sizes,
        metavar="AXIS=N,...",
        help="share the model among all devices, e.g. fsdp=8; default: one device",
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32"
    )


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return _finished(
        argparse.ArgumentParser(
            name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )


def _parser_of(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    return _finished(
        actions.add_parser(
            name, help=summary, description=f"{summary}.", allow_abbrev=False
        )
    )


def _finished(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log what is done",
    )

    def refuse(message: str) -> NoReturn:  # argparse would print usage and a line
        raise UsageError(f"{parser.prog}: {_with_nearest(message, parser)}")

    parser.error = refuse
    return parser


def _with_nearest(message: str, parser: argparse.ArgumentParser) -> str:
    wrong = re.match(r"unrecognized arguments: (-[\w-]+)", message)
    options = re.findall(r"(?<!\w)--?[a-z][\w-]*", parser.format_help())
    near = wrong and difflib.get_close_matches(wrong[1], options, n=1)
    if near:
        return f"{message}; did you mean {near[0]}?"
    return f"{message}; see {parser.prog} --help"


def _named(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL")
    return name, path


def _sizes(text: str) -> dict[str, int]:
    try:
        return {
            axis: int(size) for axis, size in (p.split("=") for p in text.split(","))
        }
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like fsdp=8") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.7,0.3") from None
