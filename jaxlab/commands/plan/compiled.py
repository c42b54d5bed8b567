"""How a compiled step is shown: beside its arithmetic, and its collectives."""

from typing import Any

from jaxlab import plan as planning
from jaxlab.commands import output
from jaxlab.plan import comparison

GIB = 2**30
_IN_GIB = ("memory", "state and batch")


def show(plan: planning.Plan, compiled: Any) -> None:
    """Prints what the compiler says.

    Args:
        plan: the arithmetic.
        compiled: a `plan.compiled.Compiled` of the same step.
    """
    print()
    rows, reasons = [], []
    for row in comparison.rows(plan, compiled):
        rows.append([row.name, *_cells(row)])
        if row.why:
            reasons.append(f"{row.name}: {row.why}")
    output.table(["compiled by XLA", "arithmetic", "compiled", "differs"], rows)
    print()
    show_collectives(compiled, plan)
    for line in [*reasons, *comparison.remarks(plan, compiled), compiled.note]:
        if line:
            print(line)
    print(verdict(compiled))


def show_collectives(compiled: Any, plan: Any) -> None:
    """Prints what is moved between chips, but for a few bytes.

    Args:
        compiled: a `plan.compiled.Compiled`.
        plan: where it runs: `topology` and `mesh`.
    """
    lines = [
        [
            f"{one.kind} over {one.axes}",
            f"{one.devices}",
            one.dtype,
            "async" if one.is_async else "sync",
            f"{one.count:.0f}",
            f"{one.sent_bytes / 1e9:.2f}",
            f"{comparison.seconds(one, plan):.3f}",
        ]
        for one in compiled.collectives
        if one.sent_bytes >= 5e6  # scalars and norms
    ]
    if lines:
        head = ["collectives", "of", "type", "", "count", "GB sent", "s"]
        output.table(head, lines)
        print()


def _cells(row: comparison.Row) -> list[str]:
    unit, name = (GIB, " GiB") if row.name in _IN_GIB else (1e9, " GB")
    if row.name == "FLOPs":
        return [f"{row.arithmetic:.4g}", f"{row.compiled:.4g}", _differs(row)]
    cells = [f"{value / unit:.2f}{name}" for value in (row.arithmetic, row.compiled)]
    return [*cells, _differs(row)]


def _differs(row: comparison.Row) -> str:
    return f"{row.compiled / row.arithmetic - 1:+.1%}" if row.arithmetic else ""


def verdict(compiled: Any) -> str:
    """Whether it fits, in a line."""
    peak, usable = compiled.peak_bytes / GIB, compiled.capacity_bytes / GIB
    if compiled.fits:
        return (
            f"compiled in {compiled.seconds:.0f} s: it fits, {peak:.2f} of "
            f"{usable:.2f} GiB"
        )
    return (
        f"the compiler says that it does not fit: at least {peak:.2f} GiB of "
        f"{usable:.2f} are needed, {peak - usable:.2f} too many"
    )
