"""`jaxlab demo`: the data ablation of `systems/data_ablation/demo.py`."""

import argparse

from jaxlab.systems.data_ablation import demo


def run(args: argparse.Namespace) -> None:
    """Runs or continues the demo in its workdir."""
    demo.main(quick=args.quick, data=args.data, workdir=args.workdir)
