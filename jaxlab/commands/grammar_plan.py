"""The arguments of `jaxlab plan`; standard library only, as `commands/grammar.py`."""

import argparse

from jaxlab.commands import arguments

SUMMARY = "Memory, time and cost of a training step on TPUs that are not here"
DETAILS = """\
By arithmetic, within a second; with --aot the true step is compiled by XLA:TPU for
these chips, which takes a minute and `pip install jaxlab[plan]`, and no TPU. The exit
code is 0 where the step fits into memory, 1 where it does not. Every key of the config
is a flag, as of `jaxlab train`. For example:

  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:16x16
  jaxlab plan --config=configs/olmo.py:7b --topology=v5p:4x4x8 --search --price=4.2
  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:16x16 --slices=2 --aot
  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:4x4 --mesh=fsdp=16 \\
    --merge=ties --models=3 --aot"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is planned, where, and what is written."""
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:GRID",
        help="v4:4x4x4, v5e:16x16, v5p:4x8x8, v6e:16x16 ...",
    )  # fmt: skip
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N",
        help="such topologies, joined by the data centre's network",
    )  # fmt: skip
    arguments.add_mesh(
        parser, "e.g. data=16,fsdp=16; one may be -1; default: the config's"
    )
    parser.add_argument(
        "--search", action="store_true",
        help="try meshes, remat policies and microbatches; plan the best",
    )  # fmt: skip
    parser.add_argument(
        "--aot", action="store_true", help="compile the step, ahead of time"
    )
    parser.add_argument(
        "--tokens", type=float, metavar="D", help="of the run; default: the config's"
    )
    parser.add_argument(
        "--price", type=float, metavar="P", help="of a chip-hour, in any currency"
    )
    parser.add_argument(
        "--merge", metavar="METHOD", help="plan a merge instead: linear, ties ..."
    )
    parser.add_argument(
        "--models", type=int, default=2, metavar="N", help="that --merge merges: 2"
    )
    parser.add_argument("--json", metavar="OUT", help="also write the numbers there")
    parser.add_argument("--plot", metavar="OUT.png", help="also draw bars there")
