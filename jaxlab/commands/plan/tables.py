"""How a plan is shown: tables, a picture of bars, and what the whole run takes."""

import pathlib
from typing import Any

from jaxlab import plan as planning
from jaxlab.commands import output

GIB = 2**30
_MEMORY = {
    "state": "parameters, optimizer",
    "gradients": "gradients",
    "weights": "weights to compute with",
    "activations": "saved activations",
    "working": "one layer, or the loss",
    "exchange": "between slices",
}


def show(
    name: str, plan: planning.Plan, tokens: float, price: float | None = None
) -> None:
    """Prints a plan.

    Args:
        name: of the config.
        plan: what is shown.
        tokens: of the whole run.
        price: per chip-hour, or None.
    """
    shape, topology = plan.shape, plan.topology
    slices = f", {topology.slices} slices" if topology.slices > 1 else ""
    parts = f" in {shape.micro_batches} parts" if shape.micro_batches > 1 else ""
    where = f"{topology.name}{slices}: {topology.chips} chips, {mesh_name(plan)}"
    print(f"{name} on {where}")
    print(
        f"{shape.params:,} parameters; {shape.rows} x {shape.length} tokens per step"
        f"{parts}; remat {shape.remat}\n"
    )
    _show_memory(plan)
    _show_flops(plan)
    _show_times(plan)
    _show_run(plan, tokens, price)
    for warning in planning.warnings(plan):
        print(f"warning: {warning}")
    if not plan.fits:
        print(_why_not(plan))


def mesh_name(plan: planning.Plan) -> str:
    """The axes that are more than one, e.g. data=16 fsdp=16.

    >>> shape = planning.Shape(96, 32, 2, 2, 2, 16, 64, length=8, rows=4)
    >>> mesh_name(planning.estimate(shape, planning.parse("v5e:2x2"), {"fsdp": 4}))
    'fsdp=4'
    """
    axes = [f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1]
    return " ".join(axes) or "one chip"


def run_json(plan: planning.Plan, tokens: float, price: float | None) -> dict[str, Any]:
    """What the whole run takes, for --json."""
    names = ("low", "likely", "high")
    days = plan.days(tokens)
    run = {"tokens": tokens, "days": dict(zip(names, days, strict=True))}
    if price is not None:
        run["cost"] = {
            name: day * 24 * plan.topology.chips * price
            for name, day in run["days"].items()
        }
    return {"run": run}


def show_search(plans: list[planning.Plan]) -> None:
    """Prints what a search found, best first."""
    if not plans:
        print("no mesh, remat policy or microbatch fits; the config's own:\n")
        return
    rows = [
        [
            mesh_name(plan),
            plan.shape.remat,
            f"{plan.shape.micro_batches}",
            f"{plan.memory.total / GIB:.2f}",
            f"{plan.times.likely:.2f}",
            f"{plan.utilisation('dense')['likely']:.0%}",
        ]
        for plan in plans
    ]
    output.table(["mesh", "remat", "parts", "GiB", "s per step", "MFU"], rows)
    print()


def draw(
    path: pathlib.Path, plan: planning.Plan, compiled_bytes: float | None = None
) -> None:
    """Bars of memory, by category and as compiled, and of time, as a picture."""
    from jaxlab.reports import figures

    figure, [[memory], [time]] = figures.panels(2, 1, size=(9, 4))
    parts = plan.memory._asdict().items()
    figures.stacked_bars(
        memory,
        ["planned"],
        {_MEMORY[name]: [size / GIB] for name, size in parts if size},
    )
    if compiled_bytes is not None:
        memory.barh(
            "as compiled", compiled_bytes / GIB, color="grey", label="as compiled"
        )
    memory.axvline(plan.topology.chip.hbm_bytes / GIB, color="black", ls="--")
    memory.set(yticks=[], xlabel="GiB of a chip; dashed: what it has")
    memory.legend(
        fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    for name, seconds in reversed(_seconds(plan)):
        time.barh(name, seconds)
    low, likely, high = plan.times.low, plan.times.likely, plan.times.high
    error = [[likely - low], [high - likely]]
    time.barh("likely step", likely, xerr=error, color="lightgrey")
    time.set(xlabel="seconds per step")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _show_memory(plan: planning.Plan) -> None:
    usable = plan.topology.chip.hbm_bytes
    rows = [
        [_MEMORY[name], f"{size / GIB:.2f}", f"{size / usable:.1%}"]
        for name, size in plan.memory._asdict().items()
        if size
    ]
    total = plan.memory.total
    rows.append(["together", f"{total / GIB:.2f}", f"{total / usable:.1%}"])
    verdict = "fits" if plan.fits else "does not fit"
    rows.append([f"usable: it {verdict}", f"{usable / GIB:.2f}", ""])
    output.table(["memory of a chip", "GiB", "share"], rows)
    print()


def _show_flops(plan: planning.Plan) -> None:
    flops, hardware = plan.flops, plan.flops.hardware
    named = {
        "6 x parameters x tokens": flops.six_nd,
        "matmuls": flops.matmuls,
        "attention, causal": flops.attention,
        "recomputed": flops.recomputed,
        "further passes": flops.extra,
        "computed": hardware,
    }
    rows = [
        [name, f"{value:.4g}", f"{value / hardware:.1%}"]
        for name, value in named.items()
        if value
    ]
    output.table(["FLOPs of a step", "", "share"], rows)
    print()


def _seconds(plan: planning.Plan) -> list[tuple[str, float]]:
    times = plan.times
    named = {
        "compute": times.compute,
        "memory traffic": times.hbm,
        "fsdp": times.fsdp,
        "tensor": times.tensor,
        "context": times.context,
        "data": times.data,
        "between slices": times.dcn,
    }
    return [(name, seconds) for name, seconds in named.items() if seconds]


def _show_times(plan: planning.Plan) -> None:
    moved = plan.bytes
    of = {
        "memory traffic": moved.hbm,
        "fsdp": moved.gathers + moved.reductions,
        "tensor": moved.tensor,
        "context": moved.context,
        "data": moved.data,
        "between slices": moved.dcn,
    }
    rows = [
        [name, f"{seconds:.3f}", f"{of[name] / 1e9:.2f}" if name in of else ""]
        for name, seconds in _seconds(plan)
    ]
    rows.append(["at least", f"{plan.times.bound:.3f}", ""])
    output.table(["a step takes", "s", "GB per chip"], rows)
    print()
    rows = []
    for convention in ("dense", "causal"):
        shares = plan.utilisation(convention)
        cells = [f"{shares[name]:.1%}" for name in ("bound", "low", "likely", "high")]
        rows.append([f"of peak, {convention} attention", *cells])
    times, tokens = plan.times, plan.shape.step_tokens
    seconds = (times.bound, times.high, times.likely, times.low)
    rows.append(["seconds per step", *(f"{each:.2f}" for each in seconds)])
    rates = [tokens / each for each in seconds]
    rows.append(["tokens/s", *(f"{each:,.0f}" for each in rates)])
    each = [rate / plan.topology.chips for rate in rates]
    rows.append(["tokens/s per chip", *(f"{rate:,.0f}" for rate in each)])
    output.table(["predicted", "bound", "low", "likely", "high"], rows)
    print()


def _show_run(plan: planning.Plan, tokens: float, price: float | None) -> None:
    if not tokens:
        return
    low, likely, high = plan.days(tokens)
    unit, days = ("days", 1) if likely >= 2 else ("hours", 1 / 24)
    span = [each / days for each in (likely, low, high)]
    line = f"{tokens:.3g} tokens: {span[0]:.1f} {unit} ({span[1]:.1f} to {span[2]:.1f})"
    if price is not None:
        cost = [day * 24 * plan.topology.chips * price for day in (likely, low, high)]
        line += f", {cost[0]:,.0f} ({cost[1]:,.0f} to {cost[2]:,.0f}) at {price:g}"
        line += " per chip-hour"
    print(line)


def _why_not(plan: planning.Plan) -> str:
    line = f"does not fit: {-plan.spare / GIB:.2f} GiB per chip too many"
    changes = planning.remedies(plan)
    if changes:
        return f"{line}; one of these fits: {'; '.join(changes)}"
    fitting = planning.best(plan.shape, plan.topology, 1)
    if not fitting:
        return f"{line}; no mesh, remat policy or microbatch here fits: use more chips"
    mesh = planning.flag(fitting[0].mesh)
    shape = fitting[0].shape
    return (
        f"{line}; this fits: --mesh {mesh} --config.model.remat={shape.remat} "
        f"--config.micro_batches={shape.micro_batches}"
    )
