"""`jaxlab demo`: the data ablation of `systems/data_ablation/demo.py`."""

import argparse

SUMMARY = "A whole data ablation on real text, within minutes"
DETAILS = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how long it may take, the text, and the folder."""
    parser.add_argument(
        "--quick", action="store_true", help="a smaller one, in some three minutes"
    )
    parser.add_argument("--data", metavar="DIR", help="text, one subfolder per domain")
    parser.add_argument("--workdir", default="runs/demo", metavar="DIR")


def run(args: argparse.Namespace) -> None:
    """Runs or continues the demo in its workdir."""
    from jaxlab.systems.data_ablation import demo

    demo.main(quick=args.quick, data=args.data, workdir=args.workdir)
