"""A compiled step beside its arithmetic: what is more or less, and why."""

from typing import NamedTuple

from jaxlab.plan import arithmetic, flops, hlo
from jaxlab.plan import topology as topologies
from jaxlab.plan.memory import MARGIN

_ALIKE = 0.1  # of bytes, or of seconds, that are worth a line


class Row(NamedTuple):
    """One number, both ways, in its unit, and a reason for the difference."""

    name: str
    arithmetic: float
    compiled: float
    why: str = ""


def rows(plan: arithmetic.Plan, compiled) -> list[Row]:
    """Memory, FLOPs and traffic of a plan beside those of a `compiled.Compiled`.

    Memory in bytes, traffic in bytes that a chip sends; without collectives there are
    no rows of traffic.
    """
    known = flops.overheads(plan.shape, plan.mesh)
    computed = plan.flops.hardware
    over = ", ".join(f"{name} {more / computed:.1%}" for name, more in known.items())
    table = [
        Row("memory", plan.memory.total, compiled.peak_bytes, _memory(plan, compiled)),
        Row("state and batch", plan.memory.state, compiled.argument_bytes),
        Row(
            "FLOPs",
            computed,
            compiled.flops,
            f"kernels: {over}" if any(known.values()) else "",
        ),
    ]
    if not compiled.collectives:
        return table
    sent = _sent(compiled.collectives)
    return [
        *table,
        Row("gathers", plan.bytes.gathers, sent["gathers"]),
        Row(
            "reductions",
            plan.bytes.reductions + plan.bytes.data,
            sent["reductions"],
        ),
        Row("between slices", plan.bytes.dcn, sent["slices"]),
        Row("other", plan.bytes.tensor + plan.bytes.context, sent["other"]),
    ]


def remarks(plan: arithmetic.Plan, compiled) -> list[str]:
    """What a compiled step's collectives say, one line each."""
    found = []
    waits = sum(seconds(c, plan) for c in compiled.collectives if not c.is_async)
    if waits > _ALIKE * plan.times.compute:
        found.append(
            f"collectives that do not overlap with matmuls take {waits:.2f} s, beside "
            f"{plan.times.compute:.2f} s of computing"
        )
    whole = sum(
        c.sent_bytes
        for c in compiled.collectives
        if c.kind == "all-reduce" and "fsdp" in c.axes
    )
    if whole and whole / max(plan.bytes.reductions, 1) > _ALIKE:
        found.append(
            f"{whole / 1e9:.2f} GB are all-reduced over fsdp, where a reduce-scatter "
            "would send half"
        )
    return found


def seconds(one: hlo.Collective, plan: arithmetic.Plan) -> float:
    """How long a collective takes by itself."""
    if "slice" in one.axes:
        return one.sent_bytes / plan.topology.chip.slice_rate
    shares = topologies.shares(plan.topology, plan.mesh)
    axes = [axis for axis in one.axes.split("+") if axis in shares]
    parts = [share for axis in axes for share in shares[axis]]
    return one.sent_bytes / topologies.rate(plan.topology, parts)


def _sent(collectives):
    sent = dict.fromkeys(("gathers", "reductions", "slices", "other"), 0.0)
    for one in collectives:
        name = "other"
        if "slice" in one.axes:
            name = "slices"
        elif "tensor" in one.axes or one.axes == "context":
            name = "other"
        elif one.kind == "all-gather":
            name = "gathers"
        elif one.kind in ("all-reduce", "reduce-scatter"):
            name = "reductions"
        sent[name] += one.sent_bytes
    return sent


def _memory(plan, compiled):
    if not compiled.fits:
        return "the compiler gave up; its number is a lower bound"
    off = plan.memory.total / compiled.peak_bytes - 1
    if abs(off) <= MARGIN:
        return ""
    if plan.shape.layers < 8:
        return "few layers: what the arithmetic adds up is not alive at one time"
    return "arithmetic is usually nearer; believe the compiler"
