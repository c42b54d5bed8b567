"""`jaxlab plan`: memory, time and cost of a training step, before there are chips."""

import argparse
import json
import math
import pathlib
from typing import Any

import ml_collections

from jaxlab import plan as planning
from jaxlab.commands.plan import compiled as compiled_lib
from jaxlab.commands.plan import merge, tables
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.plan import environment
from jaxlab.systems.planning import shapes

_FINALISTS = 3  # of a search, that are compiled until one fits


def run(args: argparse.Namespace) -> int:
    """Plans, prints, writes; 1 where the step does not fit into memory."""
    topology = planning.parse(args.topology, args.slices)
    if args.aot:
        environment.prepare(topology.chip.platform)  # before anything imports jax
    flags = [f"--config={args.config}", *args.flags, "--workdir=."]
    config, _ = config_lib.parse(flags)
    shape = shapes.shape(config)
    sizes = args.mesh or {**config.mesh.to_dict(), "slice": topology.slices}
    if args.merge:
        return merge.run(args, config, shape, topology, sizes)
    tokens = config.steps * shape.step_tokens if args.tokens is None else args.tokens
    for name, number in (("--tokens", tokens), ("--price", args.price or 0.0)):
        if not (math.isfinite(number) and number >= 0):
            raise errors.UserError(f"{name} {number} is no amount")
    if args.plot and pathlib.Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise errors.UserError(f"--plot {args.plot}: end it in .png, .svg or .pdf")
    plans = planning.best(shape, topology) if args.search else []
    if args.search:
        tables.show_search(plans)
    if not plans:
        plans = [planning.estimate(shape, topology, sizes)]
    chosen, compiled = plans[0], None
    if args.aot:
        chosen, compiled = _compiled(config, plans[:_FINALISTS])
    tables.show(args.config, chosen, tokens, args.price)
    if compiled is not None:
        compiled_lib.show(chosen, compiled)
    _write(args, chosen, compiled, tokens)
    return 0 if (chosen if compiled is None else compiled).fits else 1


def _compiled(config: ml_collections.ConfigDict, plans: list[planning.Plan]) -> tuple:
    """The first plan that the compiler says fits, or the last, and what it says."""
    from jaxlab.systems.planning import steps  # imports jax

    for plan in plans:
        compiled = steps.compile_config(
            shapes.change(config, plan), plan.topology, plan.mesh
        )
        if compiled.fits:
            break
    return plan, compiled


def _write(
    args: argparse.Namespace, plan: planning.Plan, compiled: Any, tokens: float
) -> None:
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
