"""`jaxlab plan`: memory, time and cost of a training step, before there are chips."""

import argparse
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import errors, folders

SUMMARY = "Memory, time and cost of a training step on TPUs that are not here"
DETAILS = """\
By arithmetic, within a second; with --aot the true step is compiled by XLA:TPU for
these chips, which takes a minute and the extra `plan`, and no TPU. The exit
code is 0 where the step fits into memory, 1 where it does not. Every key of the config
is a flag, as for `jaxlab train`. For example:

  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:16x16
  jaxlab plan --config=configs/olmo.py:7b --topology=v5p:4x4x8 --search --price=4.2
  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:16x16 --slices=2 --aot
  jaxlab plan --config=configs/olmo.py:7b --topology=v5e:4x4 --mesh=fsdp=16 \\
    --merge=ties --models=3 --aot"""

_FINALISTS = 3  # of a search, that are compiled until one fits


def arguments(parser: argparse.ArgumentParser) -> None:
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
    arguments_lib.add_mesh(
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
        "--price", type=float, metavar="P", help="per chip-hour, in any currency"
    )
    parser.add_argument(
        "--merge", metavar="METHOD", help="plan a merge instead: linear, ties ..."
    )
    parser.add_argument(
        "--models", type=int, default=2, metavar="N", help="that --merge merges"
    )
    arguments_lib.add_json(parser)
    parser.add_argument("--plot", metavar="OUT.png", help="also draw bars there")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Leaves the flags that set keys of the config as they are, in `args.flags`."""
    flags = [word for word in argv if re.match("--(no)?config[.]", word)]
    args = parser.parse_args([word for word in argv if word not in flags])
    args.flags = flags
    return args


def run(args: argparse.Namespace) -> int:
    """Plans, prints, writes; 1 where the step does not fit into memory."""
    from jaxlab import plan as planning
    from jaxlab.commands.plan import compiled as compiled_lib
    from jaxlab.commands.plan import merge, tables
    from jaxlab.core import config as config_lib
    from jaxlab.plan import environment
    from jaxlab.systems import short_runs
    from jaxlab.systems.planning import shapes

    topology = planning.parse(args.topology, args.slices)
    if args.aot:
        environment.prepare(topology.chip.platform)  # before anything imports jax
    flags = [f"--config={args.config}", *args.flags, "--workdir=."]
    config, _ = config_lib.parse(flags, short_runs.shorten_schedule)
    if args.flags or not config_lib.is_shipped(args.config):
        from jaxlab.systems import (
            checks,  # imports jax, which what ships can do without
        )

        checks.check(config)  # first: `train` gives the same answer
    shape = shapes.shape(config)
    sizes = args.mesh or {**config.mesh.to_dict(), "slice": topology.slices}
    if args.merge:
        return merge.run(args, config, shape, topology, sizes)
    tokens = config.steps * shape.step_tokens if args.tokens is None else args.tokens
    for name, number in (("--tokens", tokens), ("--price", args.price or 0.0)):
        if not (math.isfinite(number) and number >= 0):
            raise errors.UserError(f"{name} {number}; use 0 or more")
    if args.plot:
        folders.check_target("--plot", args.plot)
    if args.plot and pathlib.Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise errors.UserError(f"--plot {args.plot}: end it in .png, .svg or .pdf")
    plans = planning.best(shape, topology) if args.search else []
    if args.search:
        tables.show_search(plans)
    if not plans:
        plans = [planning.estimate(shape, topology, sizes)]
    chosen, compiled = plans[0], None
    if args.aot:
        chosen, compiled = _compile(config, plans[:_FINALISTS])
    tables.show(args.config, chosen, tokens, args.price)
    if compiled is not None:
        compiled_lib.show(chosen, compiled)
    _write(args, chosen, compiled, tokens)
    return 0 if (chosen if compiled is None else compiled).fits else 1


def _compile(config: Any, plans: list) -> tuple:
    """The first plan that the compiler says fits, or the last, and what it says."""
    from jaxlab.systems.planning import shapes, steps

    for plan in plans:
        compiled = steps.compile_config(
            shapes.change(config, plan), plan.topology, plan.mesh
        )
        if compiled.fits:
            break
    return plan, compiled


def _write(args: argparse.Namespace, plan: Any, compiled: Any, tokens: float) -> None:
    from jaxlab.commands.plan import tables

    if args.json:
        answer = plan.to_json() | tables.run_json(plan, tokens, args.price)
        if compiled is not None:
            answer["compiled"] = compiled.to_json()
            answer["fits"] = compiled.fits
        text = json.dumps(answer, indent=1) + "\n"
        pathlib.Path(args.json).write_text(text, "utf-8")
    if args.plot:
        peak = None if compiled is None else compiled.peak_bytes
        tables.draw(pathlib.Path(args.plot), plan, peak)
