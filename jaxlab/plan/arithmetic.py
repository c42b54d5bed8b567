"""A plan: memory, FLOPs and times of one step on one mesh, and warnings about it."""

import dataclasses
from typing import Any

from jaxlab.plan import flops as flops_lib
from jaxlab.plan import memory as memory_lib
from jaxlab.plan import roofline
from jaxlab.plan import shape as shapes
from jaxlab.plan import topology as topologies


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step of one shape on one mesh.

    Attributes:
        shape, topology, mesh: what, and where.
        memory, flops, bytes, times: see the files of those names.
    """

    shape: shapes.Shape
    topology: topologies.Topology
    mesh: dict[str, int]
    memory: memory_lib.Memory
    flops: flops_lib.Flops
    bytes: roofline.Bytes
    times: roofline.Times

    @property
    def spare(self) -> float:
        """Bytes of a chip's memory that stay free; negative where it does not fit."""
        return self.topology.chip.hbm_bytes - self.memory.total

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, by arithmetic."""
        return self.spare >= 0

    @property
    def fits_surely(self) -> bool:
        """Whether it suffices even if the compiler needs `memory.MARGIN` more."""
        spare = self.topology.chip.hbm_bytes
        return (1 + memory_lib.MARGIN) * self.memory.total <= spare

    def utilisation(self, convention: str) -> dict[str, float]:
        """Model FLOP utilisation: of the bound, and low, likely and high of a run.

        Args:
            convention: "dense" or "causal", see `flops.py`.
        """
        useful = getattr(self.flops, convention)
        return {
            name: roofline.utilisation(useful, self.topology, seconds)
            for name, seconds in (
                ("bound", self.times.bound),
                ("low", self.times.high),
                ("likely", self.times.likely),
                ("high", self.times.low),
            )
        }

    def tokens_per_second(self) -> float:
        """Of all chips together, likely."""
        return self.shape.step_tokens / self.times.likely

    def days(self, tokens: float) -> tuple[float, float, float]:
        """Days for so many tokens: (low, likely, high); nothing else but steps."""
        steps = tokens / self.shape.step_tokens / 86_400
        return tuple(
            steps * seconds
            for seconds in (self.times.low, self.times.likely, self.times.high)
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain numbers: bytes, FLOPs, seconds."""
        return {
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "shape": {
                **dataclasses.asdict(self.shape),
                "passes": self.shape.passes._asdict(),
                "adapter": self.shape.adapter and self.shape.adapter._asdict(),
                "params": self.shape.params,
            },
            "step_tokens": self.shape.step_tokens,
            "hbm_bytes": {**self.memory._asdict(), "total": self.memory.total},
            "hbm_usable_bytes": self.topology.chip.hbm_bytes,
            "fits": self.fits,
            "flops": {**self.flops._asdict(), "hardware": self.flops.hardware},
            "moved_bytes": self.bytes._asdict(),
            "seconds": self.times._asdict(),
            "utilisation": {
                name: self.utilisation(name) for name in ("dense", "causal")
            },
            "tokens_per_second": self.tokens_per_second(),
            "warnings": warnings(self),
        }


def estimate(
    shape: shapes.Shape,
    topology: topologies.Topology,
    mesh: dict[str, int],
) -> Plan:
    """The plan of a step.

    Args:
        shape: what it computes.
        topology: where.
        mesh: sizes by axis; see `topology.mesh`.

    Raises:
        UserError: the mesh does not fit the chips, or does not divide the model.
    """
    mesh = topologies.mesh(topology, mesh)
    shapes.check(shape, mesh)
    return Plan(
        shape,
        topology,
        mesh,
        memory_lib.estimate(shape, topology, mesh),
        flops_lib.count(shape),
        roofline.count_bytes(shape, topology, mesh),
        roofline.times(shape, topology, mesh),
    )


def warnings(plan: Plan) -> list[str]:
    """What a plan's owner should know, one line each."""
    found, mesh, times = [], plan.mesh, plan.times
    if plan.fits and not plan.fits_surely:
        found.append(
            f"memory is within {memory_lib.MARGIN:.0%} of the chip's, which is how far "
            "arithmetic is off; --aot asks the compiler"
        )
    if topologies.reduces_all(plan.topology, mesh):
        found.append(
            f"fsdp={mesh['fsdp']} is the whole slice as one axis: XLA reduces "
            "gradients over it by all-reduce, twice the bytes of a reduce-scatter; use "
            "a smaller fsdp and more data"
        )
    if mesh["context"] > 1:
        found.append(
            "context: the last part of a row sees the most keys, so attention takes up "
            "to twice the time that is counted here"
        )
    if plan.topology.chip.caution:
        found.append(plan.topology.chip.caution)
    slowest = max(
        ("memory traffic", times.hbm),
        ("traffic between chips", times.ici),
        ("traffic between slices", times.dcn),
        key=lambda item: item[1],
    )
    if slowest[1] > times.compute:
        found.append(
            f"{slowest[0]} takes {slowest[1]:.3g} s, longer than computing "
            f"({times.compute:.3g} s); more rows per chip, or fewer shards, hide it"
        )
    return found
