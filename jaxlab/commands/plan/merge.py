"""`jaxlab plan --merge`: whether a merge fits, and what the compiler makes of it."""

import argparse
import json
import pathlib
from typing import Any

import ml_collections

from jaxlab import plan as planning
from jaxlab.commands import output
from jaxlab.commands.plan import compiled as compiled_lib
from jaxlab.commands.plan import tables
from jaxlab.core import errors
from jaxlab.plan import merging

GIB = 2**30
_OF_STEPS = ("search", "tokens", "price", "plot")


def run(
    args: argparse.Namespace,
    config: ml_collections.ConfigDict,
    shape: planning.Shape,
    topology: planning.Topology,
    sizes: dict[str, int],
) -> int:
    """Plans, prints, writes; 1 where the merge does not fit into memory.

    Raises:
        UserError: an argument that only a training step has, and as `merging.estimate`.
    """
    for name in _OF_STEPS:
        if getattr(args, name):
            raise errors.UserError(f"--{name} is of a training step, not of --merge")
    plan = merging.estimate(args.merge, args.models, shape, topology, sizes)
    compiled = None
    if args.aot:
        from jaxlab.systems.planning import merges  # imports jax

        compiled = merges.compile_merge(config, plan)
    _show(args.config, plan, compiled)
    if args.json:
        text = json.dumps(_numbers(plan, compiled), indent=1) + "\n"
        pathlib.Path(args.json).write_text(text, "utf-8")
    return 0 if (plan if compiled is None else compiled).fits else 1


def _show(name: str, plan: merging.Merge, compiled: Any) -> None:
    base = " and a base" if plan.trees > plan.models else ""
    where = f"{plan.topology.name}, {tables.mesh_name(plan)}"
    print(f"{plan.method} of {plan.models} models{base} of {name} on {where}")
    print(f"{plan.shape.params:,} parameters in f32\n")
    read = plan.trees * plan.tree_bytes
    rows = [["models read", f"{read / GIB:.2f} GiB"]]
    rows += [["together", f"{plan.memory / GIB:.2f} GiB"]]
    head = ["on a chip", "arithmetic"]
    if compiled is not None:
        head += ["compiled"]
        for row, size in zip(
            rows, (compiled.argument_bytes, compiled.peak_bytes), strict=True
        ):
            row += [f"{size / GIB:.2f} GiB"]
    output.table(head, rows)
    print(f"\nreading and writing that takes {1000 * plan.seconds:.1f} ms")
    if compiled is not None:
        compiled_lib.show_collectives(compiled, plan)
        print(compiled_lib.verdict(compiled))
        return
    if not plan.fits:
        room = plan.topology.chip.hbm_bytes / GIB
        print(
            f"it does not fit: {plan.memory / GIB:.2f} of {room:.2f} GiB; use more "
            "chips, or stream the files: jaxlab merge RECIPE"
        )


def _numbers(plan: merging.Merge, compiled: Any) -> dict[str, Any]:
    numbers = {
        "merge": plan.method,
        "models": plan.models,
        "mesh": plan.mesh,
        "memory_bytes": plan.memory,
        "seconds": plan.seconds,
        "fits": plan.fits,
    }
    if compiled is not None:
        numbers |= {"compiled": compiled.to_json(), "fits": compiled.fits}
    return numbers
