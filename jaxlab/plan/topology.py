"""Chips, how they are wired, and which wires a mesh axis gets.

A slice is a grid of chips, `v5e:16x16` or `v5p:4x8x8`; slices are joined by the data
centre's network. A mesh axis takes whole grid dimensions where its size allows, as
jax's `mesh_utils` deals them out (the last axis first), and parts of them elsewhere:

    bytes/s of an axis = sum over its dimensions of W, or W / 2 where the ends of a
                         dimension are not joined: a line carries half of a ring's

Peak FLOP/s and HBM bandwidth are Google's published numbers; W is the usual derated
figure (v5e's documented 400 GB/s per chip is 100 per axis, of which 90 are reached).
Usable HBM is what XLA:TPU (libtpu 0.0.42) says when a program does not fit.

GPUs: `h100:8x8` is nodes x GPUs of a node. Within a node every pair has its switch, at
W; between nodes each GPU has its own link, and a collective over both uses them all:

    bytes/s of an axis = min(W, link x GPUs of a node that are in it)

Numbers are NVIDIA's for SXM boards, NVLink one way and 400 (A100: 200) Gbit/s a GPU
between nodes, 80 % of each; no published runs were compared with them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxlab.core import errors

# Those of core/mesh.py, which imports jax.
AXES = ("slice", "data", "fsdp", "context", "tensor")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        flops: peak FLOP/s of bf16 matmuls.
        hbm_bytes: that a program can use.
        hbm_rate, axis_rate, slice_rate: bytes/s of memory, of one grid dimension (both
            ways together), and between slices, each for one chip.
        dims: of its grid.
        ring: a dimension has joined ends if its size is a multiple of this.
        efficiency: of the roofline's bound that is reached, (low, likely, high); see
            `roofline.py`.
        prefetches: the next layer's weights are gathered while the chip computes. Not
            those of v6e: its SparseCores are a matrix ahead.
        options: of XLA:TPU, with which bytes are moved while the chip computes.
        caution: what the predicted times take for granted, or "".
        describe: further arguments of jax's `get_topology_desc`.
        platform: "tpu" or "cuda".
        node_rate: bytes/s of a GPU to other nodes; axis_rate is that within its node.
    """

    flops: float
    hbm_bytes: float
    hbm_rate: float
    axis_rate: float
    slice_rate: float
    dims: int
    ring: int
    efficiency: tuple[float, float, float]
    prefetches: bool = False
    options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    caution: str = ""
    describe: Mapping[str, str] = dataclasses.field(default_factory=dict)
    platform: str = "tpu"
    node_rate: float = 0.0


# Gathers and reductions run on the SparseCores, beside the matmuls: MaxText's published
# flags for Trillium, checked by compiling. On v6e all gathers and reduce-scatters
# become asynchronous, on v5p only the latter. Its gathers do with async collective
# fusion (..fuse_all_gather=true, ..multiple_steps=true) under libtpu 0.0.42, but newer
# ones refuse that off v5e, as it may hang or corrupt: hence not here.
_SPARSE_CORE = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    # Both want the same collectives; fused into matmuls they never reach a SparseCore.
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "false",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_disable_megacore_partitioning": "true",
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_all_gather_offload_tracing": "true",
    "xla_tpu_enable_reduce_scatter_offload_tracing": "true",
}
# Measured MFU / bound of MaxText's tables is 0.715 on average, and 0.526 on v6e; 15 %
# about these holds 12 of the 13 rows (tests/support/plan_rows.py).
_USUAL, _TRILLIUM = (0.595, 0.70, 0.805), (0.45, 0.53, 0.61)
# Gathers of the next layer's weights start before this layer's matmuls: XLA:GPU only
# schedules so when told.
_LATENCY_HIDING = {"xla_gpu_enable_latency_hiding_scheduler": True}
_GPU = (
    "GPUs: no published runs were compared with these times; memory is 92 % of the "
    "board's: set XLA_PYTHON_CLIENT_MEM_FRACTION=.92, jax's default is .75"
)

CHIPS = {
    "v4": Chip(
        275e12, 30.75 * GIB, 1.2e12, 90e9, 6.25e9, 3, 4, _USUAL,
        describe={"chip_config_name": "megacore"},  # else two devices per chip
    ),
    "v5e": Chip(197e12, 15.75 * GIB, 0.82e12, 90e9, 3.125e9, 2, 16, _USUAL, True),
    "v5p": Chip(
        459e12, 95.74 * GIB, 2.77e12, 180e9, 6.25e9, 3, 4, _USUAL,
        options=_SPARSE_CORE,
        caution="the times of v5p assume gathers that overlap with matmuls, as in "
        "published runs; the options of jaxlab/plan/topology.py do it for reductions",
    ),
    "v6e": Chip(
        918e12, 31.25 * GIB, 1.64e12, 180e9, 12.5e9, 2, 16, _TRILLIUM,
        options=_SPARSE_CORE,
        caution="the times of v6e assume gathers that overlap with matmuls, as they "
        "do with the compiler options of jaxlab/plan/topology.py",
    ),
    "a100": Chip(
        312e12, 0.92 * 79.1 * GIB, 2.04e12, 240e9, math.inf, 2, 1, _USUAL, True,
        options=_LATENCY_HIDING, caution=_GPU, platform="cuda", node_rate=20e9,
    ),
    "h100": Chip(
        989e12, 0.92 * 79.1 * GIB, 3.35e12, 360e9, math.inf, 2, 1, _USUAL, True,
        options=_LATENCY_HIDING, caution=_GPU, platform="cuda", node_rate=40e9,
    ),
}  # fmt: skip


class Topology(NamedTuple):
    """Slices of one kind of chip.

    Attributes:
        kind: of CHIPS.
        grid: chips of a slice along each dimension.
        slices: how many of them.
    """

    kind: str
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The kind's numbers."""
        return CHIPS[self.kind]

    @property
    def slice_chips(self) -> int:
        """Chips of one slice."""
        return math.prod(self.grid)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slice_chips * self.slices

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind}:{'x'.join(map(str, self.grid))}"


class Share(NamedTuple):
    """What a mesh axis has of one grid dimension: so many chips, ends joined or not."""

    size: int
    is_ring: bool
    dim: int


def parse(text: str, slices: int = 1) -> Topology:
    """The topology of a name such as v5e:16x16.

    Raises:
        UserError: an unknown chip, or a grid that it does not come in.

    >>> parse("v5p:4x8x8").chips
    256
    """
    kind, _, grid = text.partition(":")
    if kind not in CHIPS:
        raise errors.UserError(
            f"topology {text!r}: no chip {kind!r}; use {', '.join(CHIPS)}"
        )
    wanted = CHIPS[kind].dims
    if not re.fullmatch(r"\d+(x\d+)*", grid) or grid.count("x") + 1 != wanted:
        example = {2: "16x16", 3: "4x4x8"}[wanted]
        raise errors.UserError(
            f"topology {text!r}: {kind} comes in grids of {wanted} dimensions, e.g. "
            f"{kind}:{example}"
        )
    sizes = tuple(map(int, grid.split("x")))
    if min(sizes) < 1 or slices < 1:
        raise errors.UserError(
            f"topology {text!r} x {slices} slices has no chips; use 1 or more"
        )
    if CHIPS[kind].platform == "cuda" and (sizes[1] > 8 or slices > 1):
        raise errors.UserError(
            f"topology {text!r}: a node has at most 8 GPUs, and nodes are not slices; "
            f"use {kind}:NODESx8"
        )
    if CHIPS[kind].platform == "tpu" and wanted == 2 and max(sizes) > 16:
        raise errors.UserError(
            f"topology {text!r}: a {kind} slice is at most 16x16; use --slices"
        )
    return Topology(kind, sizes, slices)


def mesh(topology: Topology, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of all axes; missing ones are 1, one may be -1 for "all that is left".

    `slice` is that of the topology and may be left out.

    Raises:
        UserError: an unknown axis, or sizes that do not multiply to the chips.
    """
    if unknown := sorted(set(sizes) - set(AXES)):
        raise errors.UserError(
            f"unknown mesh axis {', '.join(unknown)}; use {', '.join(AXES)}"
        )
    full = {axis: sizes.get(axis, 1) for axis in AXES}
    if sizes.get("slice", -1) not in (topology.slices, -1):
        raise errors.UserError(
            f"mesh slice={sizes['slice']} on {topology.slices} slices; use --slices"
        )
    full["slice"] = topology.slices
    free = [axis for axis in AXES if full[axis] == -1]
    known = math.prod(size for size in full.values() if size != -1)
    fits = known > 0 and topology.chips % known == 0
    if len(free) > 1 or min(full.values()) < -1 or not fits:
        known = 0
    elif free:
        full[free[0]], known = topology.chips // known, topology.chips
    if known != topology.chips:
        wanted = " x ".join(f"{axis}={size}" for axis, size in full.items())
        raise errors.UserError(
            f"mesh {wanted} does not fit {topology.chips} chips; the sizes must "
            f"multiply to {topology.chips}, with at most one -1"
        )
    return full


def flag(sizes: Mapping[str, int]) -> str:
    """A mesh as it is typed; `slice` and axes of one are left out.

    >>> flag({"slice": 2, "data": 1, "fsdp": 16, "tensor": 1})
    'data=1,fsdp=16'
    """
    kept = [x for x in AXES[1:] if x == "data" or sizes.get(x, 1) > 1]
    return ",".join(f"{axis}={sizes[axis]}" for axis in kept)


def shares(topology: Topology, sizes: Mapping[str, int]) -> dict[str, list[Share]]:
    """Which grid dimensions the axes but `slice` get.

    Args:
        topology: where.
        sizes: of `mesh`.

    >>> where = parse("v5e:16x16")
    >>> shares(where, mesh(where, {"data": 16, "fsdp": 16}))["fsdp"]
    [Share(size=16, is_ring=True, dim=0)]
    """
    left = list(topology.grid)
    found: dict[str, list[Share]] = {}
    for axis in reversed(AXES[1:]):
        found[axis] = []
        rest = sizes[axis]
        switched = topology.chip.platform == "cuda"  # devices in order, no torus
        for whole in () if switched else _whole(left, rest):
            found[axis].append(_share(topology, whole, left[whole]))
            rest //= left[whole]
            left[whole] = 1
        for dim in reversed(range(len(left))):  # parts of what nobody has whole
            part = math.gcd(left[dim], rest)
            if part > 1:
                found[axis].append(_share(topology, dim, part))
                left[dim] //= part
                rest //= part
    return found


def rate(topology: Topology, parts: list[Share]) -> float:
    """Bytes/s that a chip moves within an axis of these shares; inf for none."""
    if not parts:
        return math.inf
    chip = topology.chip
    if chip.platform == "cuda":
        sizes = {share.dim: share.size for share in parts}
        across = chip.node_rate * sizes.get(1, 1) if 0 in sizes else math.inf
        return min(chip.axis_rate, across)
    return chip.axis_rate * sum(1.0 if s.is_ring else 0.5 for s in parts)


def reduces_all(topology: Topology, mesh: Mapping[str, int]) -> bool:
    """Whether gradients over fsdp become an all-reduce: twice a reduce-scatter's bytes.

    So they do where fsdp is a whole slice as one axis, of two equal dimensions or of
    three (4x4, 8x8, 16x16 of v5e and v6e, 4x4x4 of v4 and v5p were compiled); on the
    oblong 2x4 and 4x8 a reduce-scatter was found.
    """
    if topology.chip.platform == "cuda":
        return False
    wide = [size for size in topology.grid if size > 1]
    whole = mesh["fsdp"] == topology.slice_chips and len(wide) > 1
    return whole and (len(wide) == 3 or len(set(wide)) == 1)


def _whole(left, size):
    """Dimensions that multiply to `size`: more of them rather than fewer, or none."""
    candidates = range(1, 2 ** len(left))
    for mask in sorted(candidates, key=lambda m: -m.bit_count()):
        dims = [i for i in range(len(left)) if mask >> i & 1 and left[i] > 1]
        if dims and math.prod(left[i] for i in dims) == size:
            return dims
    return []


def _share(topology, dim, size):
    # Only the whole dimension closes: a part of a ring is a line. Two chips have one
    # link, whatever its ends are called.
    whole = size == topology.grid[dim] and size % topology.chip.ring == 0
    return Share(size, whole, dim)
