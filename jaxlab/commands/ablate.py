"""`jaxlab ablate pool|rank|search|report`: data mixtures predicted by merging."""

import argparse

from jaxlab.commands import ablate_pool, ablate_rank, ablate_report, ablate_search

_ACTIONS = {
    "pool": ablate_pool.run,
    "rank": ablate_rank.run,
    "search": ablate_search.run,
    "report": ablate_report.run,
}


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    _ACTIONS[args.action](args)
