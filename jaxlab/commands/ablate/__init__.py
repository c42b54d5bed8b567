"""`jaxlab ablate pool|rank|search|report`: data mixtures predicted by merging."""

import argparse

from jaxlab.commands.ablate import pool, rank, report, search

_ACTIONS = {
    "pool": pool.run,
    "rank": rank.run,
    "search": search.run,
    "report": report.run,
}


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    _ACTIONS[args.action](args)
