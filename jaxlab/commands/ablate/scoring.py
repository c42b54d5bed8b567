"""What `ablate rank` and `ablate search` take alike: how targets are scored."""

import argparse

from jaxlab.commands import arguments as arguments_lib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of batches, --json and --mesh."""
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
    arguments_lib.add_mesh(parser)
