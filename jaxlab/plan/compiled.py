"""Ahead-of-time compilation of a step for chips that are not here, by XLA.

Memory is the compiler's own peak, which counts aliased buffers once. FLOPs come from
the traced program and collectives from the optimized one (`hlo.py`), because XLA's cost
analysis sees the body of a loop once and kernels not at all. XLA:TPU refuses what does
not fit; XLA:GPU compiles it all the same, and its peak is compared here.
"""

import contextlib
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh

from jaxlab.core import errors
from jaxlab.plan import environment, gpus, hlo, traced
from jaxlab.plan import topology as topologies_lib

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
_SIZE = r"([\d.]+)([KMGT]?)B?"


class Compiled(NamedTuple):
    """What the compiler says of a step.

    Attributes:
        peak_bytes: of HBM, on one chip. Of a step that does not fit: its arguments and
            what the compiler would have needed beside them.
        argument_bytes: state and batch, on one chip.
        capacity_bytes: of a chip.
        fits: whether it compiled.
        flops: of matmuls, as traced, on all chips.
        collectives: of one step on one chip; empty where it does not fit.
        seconds: that compiling took.
        note: why collectives are missing, or "".
    """

    peak_bytes: float
    argument_bytes: float
    capacity_bytes: float
    fits: bool
    flops: float
    collectives: list[hlo.Collective]
    seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        lines = [one._asdict() for one in self.collectives]
        return {**self._asdict(), "collectives": lines}


def device_mesh(topology: topologies_lib.Topology, sizes: Mapping[str, int]) -> Mesh:
    """The mesh of a topology's devices, axes as in `core.mesh`, `slice` outermost.

    Raises:
        UserError: the compiler does not know the topology.
    """
    devices = _devices(topology)
    inner = (1, *(sizes[axis] for axis in topologies_lib.AXES[1:]))
    if topology.chip.platform == "cuda":
        array = np.array(devices).reshape(inner)
    elif topology.slices > 1:
        outer = (topology.slices, *(1 for _ in inner[1:]))
        array = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(
            inner, devices, allow_split_physical_axes=True
        )
    # Auto for the reason given in core/mesh.py.
    return Mesh(array, topologies_lib.AXES, axis_types=(AxisType.Auto,) * len(inner))


def _devices(topology):
    chip, described = topology.chip, dict(topology.chip.describe)
    if chip.platform == "cuda":
        described["target_config"] = gpus.target(topology.kind)
        described["topology"] = f"1x{topology.grid[0]}x{topology.grid[1]}"
    else:
        described["topology_name"] = topology.name
    if topology.slices > 1:
        described["num_slices"] = topology.slices
    try:
        with _muffle(chip):
            found = topologies.get_topology_desc(platform=chip.platform, **described)
        return found.devices
    except Exception as error:  # whatever the plugin's client raises, with its reason
        raise errors.UserError(
            f"topology {topology.name}: {_reason(error, chip)}"
        ) from error


def compile_program(
    program: Any,
    arguments: tuple,
    topology: topologies_lib.Topology,
    sizes: Mapping[str, int],
    *,
    kernel_share: float = 1.0,
) -> Compiled:
    """Compiles a traced step for a topology.

    Args:
        program: of `jax.jit(step).trace(*arguments)`.
        arguments: ShapeDtypeStructs with shardings of `device_mesh`.
        topology: where.
        sizes: of the mesh.
        kernel_share: see `traced.matmul_flops`.

    Raises:
        UserError: the compiler refuses the step for another reason than memory.
    """
    flops = traced.matmul_flops(program.jaxpr, kernel_share)
    held = float(sum(map(held_bytes, jax.tree.leaves(arguments))))
    capacity = topology.chip.hbm_bytes
    lowered = program.lower(lowering_platforms=(topology.chip.platform,))
    start, options = time.perf_counter(), dict(topology.chip.options)
    try:
        with _without_cache(), _muffle(topology.chip):
            built = lowered.compile(compiler_options=options or None)
    except Exception as error:  # jaxlib's runtime error; its message is all there is
        needed = parse_out_of_memory(str(error))
        if needed is None:
            reason = _reason(error, topology.chip)
            raise errors.UserError(f"XLA refuses the step: {reason}") from error
        seconds = time.perf_counter() - start
        return Compiled(needed[0] + held, held, needed[1], False, flops, [], seconds)
    seconds = time.perf_counter() - start
    memory = built.memory_analysis()
    peak = float(memory.peak_memory_in_bytes)
    collectives, note = [], ""
    try:
        collectives = hlo.collectives(built.as_text(), sizes)
    except Exception as error:  # a libtpu newer than jaxlib cannot print some programs
        note = f"no collectives: {_reason(error, topology.chip)}"
    return Compiled(
        peak, held, capacity, peak <= capacity, flops, collectives, seconds, note
    )


def _reason(error: Exception, chip: topologies_lib.Chip) -> str:
    """An error of the compiler in one line, after a compiler of the wrong version."""
    line = " ".join(str(error).split())[:300]
    mismatch = environment.mismatch(chip.platform)
    return f"{mismatch} ({line})" if mismatch else line


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
    """(bytes needed, bytes there are) of the compiler's out-of-memory message, or None.

    >>> parse_out_of_memory("memory required for HLO temporaries (3.0K) exceeds "
    ...                     "available HBM (2.0K).")
    (3072.0, 2048.0)
    """
    patterns = (
        rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
        rf"Used {_SIZE} of {_SIZE} hbm",
    )
    for pattern in patterns:
        if found := re.search(pattern, message):
            needed, unit, there, other = found.groups()
            return float(needed) * _UNITS[unit], float(there) * _UNITS[other]
    return None


def held_bytes(leaf: jax.ShapeDtypeStruct) -> float:
    """Bytes of an array on one device."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 0.0  # a few bytes, of a type without a size
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@contextlib.contextmanager
def _without_cache():
    """Programs for other machines stay out of jax's compilation cache."""
    before = jax.config.jax_enable_compilation_cache
    _use_cache(False)
    try:
        yield
    finally:
        _use_cache(before)


def _use_cache(is_used):
    jax.config.update("jax_enable_compilation_cache", is_used)
    compilation_cache.reset_cache()  # jax looks at the setting only once


def _muffle(chip):
    is_loud = chip.platform == "cuda"
    return environment.quiet() if is_loud else contextlib.nullcontext()
