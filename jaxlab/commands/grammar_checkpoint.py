"""The arguments of `jaxlab checkpoint`; standard library, as `commands/grammar.py`."""

import argparse

from jaxlab.commands import arguments

SUMMARY = "List, verify or export the checkpoints of a run"
DETAILS = """\
RUN is a run directory, also one in a bucket. For example:

  jaxlab checkpoint ls runs/tiny
  jaxlab checkpoint verify gs://bucket/run --all
  jaxlab checkpoint export gs://bucket/run exported --dtype bfloat16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = arguments.parser_of(actions, "ls", "Which checkpoints a run has")
    verify = arguments.parser_of(
        actions,
        "verify",
        "Read checkpoints back and compare every leaf with its checksum",
        "The exit code is 1 where one is corrupt.",
    )
    export = arguments.parser_of(
        actions, "export", "Write the parameters as a Hugging Face folder"
    )
    for action in (listing, verify, export):
        action.add_argument("run", metavar="RUN")
    which = verify.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="default: the newest")
    which.add_argument("--all", action="store_true", help="every finished one")
    export.add_argument("out", metavar="OUT", help="a new folder")
    export.add_argument("--step", type=int, metavar="N", help="default: the newest")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32"
    )
