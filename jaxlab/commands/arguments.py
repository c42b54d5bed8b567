"""What the grammars of several verbs share: parsers, kinds of values, --mesh.

Only the standard library is imported here, as in `commands/grammar.py`.
"""

import argparse
import difflib
import re
from typing import Any, NoReturn

MODEL = "a run directory, or a Hugging Face folder (OLMo 1-3, Llama 2-3.1)"


class UsageError(Exception):
    """A command line that does not follow the grammar: a line that begins `jaxlab`."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a verb; it raises UsageError where argparse would exit."""
    return _finished(
        argparse.ArgumentParser(
            name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )


def parser_of(
    actions: Any, name: str, summary: str, details: str = ""
) -> argparse.ArgumentParser:
    """The parser of an action of a verb."""
    return _finished(
        actions.add_parser(
            name,
            help=summary,
            description=f"{summary}.\n\n{details}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
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
    found = tuple(text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not like A,B")
    return found


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
    if near and near[0] != wrong[1]:  # an example in the text may have it
        return f"{message}; did you mean {near[0]}?"
    return f"{message}; see {parser.prog} --help"
