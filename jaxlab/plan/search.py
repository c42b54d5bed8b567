"""Search over mesh, remat policy and microbatches, by arithmetic.

The fastest that fits wins, were nothing to overlap: bytes that the compiler has to hide
behind matmuls are a risk even where it can. Among those within 5 % of it, which is less
than arithmetic can tell, the one that shards least: a small fsdp moves fewest bytes and
gets real reduce-scatters (see `topology.reduces_all`). The global batch is part of the
experiment and stays.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from jaxlab.core import errors
from jaxlab.plan import arithmetic
from jaxlab.plan import shape as shapes
from jaxlab.plan import topology as topologies

POLICIES = ("none", "dots", "qkvo", "full")
_ALIKE = 1.05  # times that differ less are one


def best(
    shape: shapes.Shape, topology: topologies.Topology, count: int = 5
) -> list[arithmetic.Plan]:
    """The best plans for a shape, best first; of each mesh only its best.

    Those that fit with the margin of `memory.MARGIN`; where none does, those that fit
    without it; where none does either, an empty list.
    """
    plans = [plan for plan in _all(shape, topology) if plan.fits]
    plans = [plan for plan in plans if plan.fits_surely] or plans
    by_mesh: dict[tuple, arithmetic.Plan] = {}
    for plan in sorted(plans, key=_serial_seconds):
        by_mesh.setdefault(tuple(plan.mesh.values()), plan)
    if not by_mesh:
        return []
    limit = _ALIKE * min(map(_serial_seconds, plans))

    def rank(plan):
        if _serial_seconds(plan) > limit:
            return 1, _serial_seconds(plan)
        return 0, plan.mesh["tensor"], plan.mesh["fsdp"]

    return sorted(by_mesh.values(), key=rank)[:count]


def remedies(plan: arithmetic.Plan) -> list[str]:
    """What would make a plan fit, each change alone; empty if nothing here does.

    As flags of the command line, the least change first.
    """
    shape, topology, mesh = plan.shape, plan.topology, plan.mesh
    found = []
    for fsdp in _divisors(mesh["data"] * mesh["fsdp"]):
        sizes = {**mesh, "fsdp": fsdp, "data": mesh["data"] * mesh["fsdp"] // fsdp}
        if fsdp > mesh["fsdp"] and _fits(shape, topology, sizes):
            text = topologies.flag(sizes)
            found.append(f"--mesh {text}")
            break
    for remat in POLICIES[POLICIES.index(shape.remat) + 1 :]:
        if _fits(dataclasses.replace(shape, remat=remat), topology, mesh):
            found.append(f"--config.model.remat={remat}")
            break
    rows = shapes.device_rows(shape, mesh) // shape.together
    for parts in _divisors(rows)[1:]:
        micro = shape.micro_batches * parts
        if _fits(dataclasses.replace(shape, micro_batches=micro), topology, mesh):
            found.append(f"--config.micro_batches={micro}")
            break
    for parts in _divisors(rows)[1:]:
        smaller = dataclasses.replace(shape, rows=shape.rows // parts)
        if _fits(smaller, topology, mesh):
            found.append(f"--config.data.batch_size={smaller.rows // shape.together}")
            break
    return found


def _all(shape, topology) -> Iterator[arithmetic.Plan]:
    for mesh in _meshes(topology):
        for remat in POLICIES:
            plan = _first_fit(dataclasses.replace(shape, remat=remat), topology, mesh)
            if plan is not None:
                yield plan


def _first_fit(shape, topology, mesh):
    """The plan with the fewest microbatches that fits, or None."""
    shards = math.prod(mesh[axis] for axis in ("slice", "data", "fsdp"))
    fitting, size = None, shape.rows // shape.together
    for micro in _divisors(size // shards) if size % shards == 0 else ():
        plan = _estimate_or_none(
            dataclasses.replace(shape, micro_batches=micro), topology, mesh
        )
        if plan is None:
            return fitting
        if plan.fits_surely:
            return plan
        if plan.fits and fitting is None:
            fitting = plan
    return fitting


def _meshes(topology) -> Iterator[dict[str, int]]:
    chips = topology.slice_chips
    for tensor in _divisors(chips):
        if tensor > 16:  # beyond, a matmul's shard is too thin for the MXU
            return
        for fsdp in _divisors(chips // tensor):
            yield {
                "slice": topology.slices,
                "data": chips // tensor // fsdp,
                "fsdp": fsdp,
                "context": 1,
                "tensor": tensor,
            }


def _serial_seconds(plan):
    """Seconds of a step in which nothing overlaps."""
    times = plan.times
    return max(times.compute, times.hbm) + times.ici + times.dcn


def _fits(shape, topology, mesh: Mapping[str, int]) -> bool:
    plan = _estimate_or_none(shape, topology, mesh)
    return plan is not None and plan.fits


def _estimate_or_none(shape, topology, mesh):
    try:
        return arithmetic.estimate(shape, topology, mesh)
    except errors.UserError:  # does not divide the model or the batch
        return None


def _divisors(number: int) -> Sequence[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
