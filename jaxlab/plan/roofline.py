"""How long a step takes at least, and how long it will probably take.

    compute  FLOPs / (n C)
    hbm      (weights once a pass, optimizer 4 x 7 bytes, activations) / HBM bandwidth
    ici      fsdp:   two gathers and a reduction of weights  (4 P + 2 P + heads) / t
             tensor: 10 (14 under full remat) x N 2 B L D / devices of data
             context: keys and values of the rest of a row, (c - 1) times a part's
             data:   an all-reduce of what fsdp left
    dcn      an all-reduce of gradients between slices, each chip its part

    step >= the largest of the four, as if all of them overlapped

P parameters of layers, N layers, t tensor, C peak FLOP/s. Bytes over an axis of s
devices are times (s - 1) / s. Reduction over a whole square slice as one axis is an
all-reduce on this compiler: 2 P more. Model FLOP utilisation is useful FLOPs over what
the chips could do in that time; measured runs reach `Chip.efficiency` of this bound.
"""

from typing import NamedTuple

from jaxlab.plan import flops as flops_lib
from jaxlab.plan import shape as shapes
from jaxlab.plan import topology as topologies


class Times(NamedTuple):
    """Seconds of one step.

    Attributes:
        compute, hbm, fsdp, tensor, context, data, dcn: each alone.
        bound: no step is shorter.
        low, likely, high: of the prediction.
    """

    compute: float
    hbm: float
    fsdp: float
    tensor: float
    context: float
    data: float
    dcn: float
    bound: float
    low: float
    likely: float
    high: float

    @property
    def ici(self) -> float:
        """Between the chips of a slice."""
        return self.fsdp + self.tensor + self.context + self.data


class Bytes(NamedTuple):
    """Bytes that a chip moves in one step.

    Attributes:
        hbm: to and from its own memory.
        gathers, reductions: of weights and of gradients, over fsdp and context.
        tensor, context, data, dcn: of activations over the first two, of gradients
            over data and between slices.
    """

    hbm: float
    gathers: float
    reductions: float
    tensor: float
    context: float
    data: float
    dcn: float


def count_bytes(
    shape: shapes.Shape, topology: topologies.Topology, mesh: dict[str, int]
) -> Bytes:
    """What a chip moves in one step."""
    c, t = mesh["context"], mesh["tensor"]
    f = mesh["fsdp"] * c  # both split the parameters
    rows = shapes.device_share(shape, mesh) * shape.micro_batches
    tokens, width = rows * shape.length, shape.compute_bytes
    passes = shape.passes
    sweeps = passes.trained * shape.micro_batches
    forward = passes.forward * shape.micro_batches
    layers, head = width * shape.layer_params / t, width * shape.head_params / t
    left = (f - 1) / f
    heads = head * (1 + (flops_lib.loss_blocks(shape, mesh) > 1))  # and once again
    reduced = layers + head
    if shape.adapter is not None:
        reduced = width * shape.trained_params / t
    reductions = sweeps * reduced * left
    if topologies.reduces_all(topology, mesh):
        reductions *= 2
    repeats = (14 if shape.remat == "full" else 10) * passes.trained
    repeats += 4 * passes.forward
    # Keys and values of the other parts of a row; their gradients go back.
    keys = 2 * shape.layers * width * tokens * shape.kv_heads * shape.head_dim / t
    keys *= passes.trained * (2 + (shape.remat != "none")) + passes.forward
    return Bytes(
        hbm=_hbm(shape, tokens, f, t),
        gathers=((2 * layers + heads) * sweeps + (layers + head) * forward) * left,
        reductions=reductions,
        tensor=repeats * shape.layers * width * tokens * shape.embed * (t - 1) / t,
        context=keys * (c - 1),
        data=2 * passes.trained * reduced / f * _share_sent(mesh["data"]),
        # Reduced within the slice first: every chip sends its part, as XLA does it.
        dcn=2
        * passes.trained
        * reduced
        / (f * mesh["data"])
        * _share_sent(mesh["slice"]),
    )


def times(
    shape: shapes.Shape,
    topology: topologies.Topology,
    mesh: dict[str, int],
) -> Times:
    """How long a step takes.

    Args:
        shape: what it computes.
        topology: where.
        mesh: sizes of all axes, see `topology.mesh`.
    """
    chip, used = topology.chip, count_bytes(shape, topology, mesh)
    shares = topologies.shares(topology, mesh)
    rates = {axis: topologies.rate(topology, parts) for axis, parts in shares.items()}
    compute = flops_lib.count(shape).hardware / (topology.chips * chip.flops)
    hbm = used.hbm / chip.hbm_rate
    both = topologies.rate(topology, shares["fsdp"] + shares["context"])
    fsdp = (used.gathers + used.reductions) / both
    context = used.context / rates["context"]
    tensor, data = used.tensor / rates["tensor"], used.data / rates["data"]
    dcn = used.dcn / chip.slice_rate
    bound = max(compute, hbm, fsdp + tensor + context + data, dcn)
    low, likely, high = (bound / reached for reached in reversed(chip.efficiency))
    return Times(
        compute, hbm, fsdp, tensor, context, data, dcn, bound, low, likely, high
    )


def utilisation(useful: float, topology: topologies.Topology, seconds: float) -> float:
    """Useful FLOPs of a step over what the chips could do in that time."""
    return useful / (topology.chips * topology.chip.flops * seconds)


def _hbm(shape, tokens, f, t):
    """Bytes of memory traffic: every pass reads the weights; AdamW reads 16 bytes a
    parameter and writes 12; activations are written once and read once a pass."""
    passes = shape.passes
    backward = 2 + (shape.remat != "none")
    sweeps = passes.trained * backward + passes.forward
    weights = shape.compute_bytes * shape.layer_params / t
    weights *= sweeps * shape.micro_batches
    update = 4 * (3 + 2 * shape.moments) * shape.trained_params / (f * t)
    live = shape.compute_bytes * tokens * (3 * shape.mlp / t + 6 * shape.embed)
    return weights + update + sweeps * shape.layers * live


def _share_sent(size):
    return (size - 1) / size
