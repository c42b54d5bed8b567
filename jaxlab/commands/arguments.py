"""Arguments that several verbs share: parsers, MODEL, --dtype, --mesh, kinds of values.

Only the standard library is imported here, as in every file that has arguments.
"""

import argparse
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

MODEL = (
    "a run directory, a Hugging Face folder (OLMo 1-3, Llama 2-3.1), or a llama's GGUF "
    "file"
)
DTYPES = ("float32", "bfloat16", "float16")


class UsageError(Exception):
    """A command line that cannot be parsed; its message is a line from `jaxlab` on."""


class Parser(argparse.ArgumentParser):
    """The parser of a verb or an action: raises mistakes, says defaults, has -v."""

    def __init__(self, *args, **kwargs):
        super().__init__(
            *args,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log what is done",
        )

    def add_argument(self, *args, **kwargs):
        """Adds an argument whose help ends with its default, if it has not said it."""
        action = super().add_argument(*args, **kwargs)
        text, default = action.help or "", action.default
        if isinstance(default, list | tuple):
            default = ",".join(map(str, default))
        is_none = default is None or default is False or default == ""
        if not (is_none or default is argparse.SUPPRESS or "default" in text):
            action.help = f"{text}; default: {default}".removeprefix("; ")
        return action

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, where argparse would print usage and a line, and exit."""
        raise UsageError(f"{self.prog}: {_with_nearest(message, self)}")


def add_actions(
    parser: argparse.ArgumentParser,
    actions: Mapping[str, Any],
    metavar: str = "ACTION",
) -> None:
    """Adds the actions of a verb whose files have SUMMARY, DETAILS and arguments().

    Args:
        parser: of the verb; `args.action` will be the chosen name.
        actions: name -> module of the action.
        metavar: what --help calls an action.
    """
    added = parser.add_subparsers(dest="action", required=True, metavar=metavar)
    for name, module in actions.items():
        module.arguments(add_action(added, name, module.SUMMARY, module.DETAILS))


def add_action(
    actions: Any, name: str, summary: str, details: str = ""
) -> argparse.ArgumentParser:
    """The parser of one action of a verb, added to its `add_subparsers`."""
    description = f"{summary}.\n\n{details}".strip()
    return actions.add_parser(name, help=summary, description=description)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, --step, --average and --tokenizer."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a run")
    parser.add_argument(
        "--average",
        action="store_true",
        help="the moving average of a run's parameters, which optim.ema keeps",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="where the folder has none of its own"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, float32 by default."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument(
        "--json",
        metavar="OUT",
        help="also write the numbers there; -: to stdout, and all else to stderr",
    )


def add_mesh(
    parser: argparse.ArgumentParser,
    text: str = "share the model among all devices, e.g. fsdp=8; default: one device",
) -> None:
    """Adds --mesh."""
    parser.add_argument("--mesh", type=sizes, metavar="AXIS=N,...", help=text)


def sizes(text: str) -> dict[str, int]:
    """fsdp=8,data=2 by axis."""
    try:
        return {
            axis: int(size) for axis, size in (p.split("=") for p in text.split(","))
        }
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like fsdp=8") from None


def names(text: str) -> tuple[str, ...]:
    """A,B as names."""
    words = tuple(text.split(","))
    if not all(words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text!r} is not like A,B")
    return words


def name_and_value(form: str) -> Callable[[str], tuple[str, str]]:
    """What reads NAME=VALUE as a pair; `form` is how --help writes it."""

    def read(text: str) -> tuple[str, str]:
        name, _, value = text.partition("=")
        if not (name and value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {form}")
        return name, value

    return read


def numbers(like: str) -> Callable[[str], list[float]]:
    """What reads X,Y as numbers; `like` is the example that a mistake is shown."""

    def read(text: str) -> list[float]:
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            message = f"{text!r} is not like {like}"
            raise argparse.ArgumentTypeError(message) from None

    return read


def byte_count(text: str) -> int:
    """256MB as a number of bytes; k, M, G, T are powers of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 256MB")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


def _with_nearest(message: str, parser: argparse.ArgumentParser) -> str:
    wrong = re.match(r"unrecognized arguments: (-[\w-]+)", message)
    options = re.findall(r"(?<!\w)--?[a-z][\w-]*", parser.format_help())
    near = wrong and difflib.get_close_matches(wrong[1], options, n=1)
    if near and near[0] != wrong[1]:  # an example in the text may have it
        return f"{message}; did you mean {near[0]}?"
    return f"{message}; see {parser.prog} --help"
