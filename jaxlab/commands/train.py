"""`jaxlab train`: the same as `python -m jaxlab.train`."""

import argparse

from jaxlab import train


def run(args: argparse.Namespace) -> int:
    """Hands the config's flags on."""
    return train.main(args.flags)
