"""`jaxlab ablate pool|rank|search|report`: data mixtures predicted by merging."""

import argparse

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands.ablate import pool, rank, report, search

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

ACTIONS = {"pool": pool, "rank": rank, "search": search, "report": report}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    arguments_lib.add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    ACTIONS[args.action].run(args)
