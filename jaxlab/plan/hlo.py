"""Which collectives a compiled program runs: how often, how many bytes, on which axis.

Reads the text of an optimized HLO module, since no interface of XLA tells:

    executions of a computation = sum over its callers, times the trip count of a loop

The trip count is the integer in the loop's condition. A gather that overlaps with
matmuls appears in two or three fused pieces (start, carry, done) of one `channel_id`:
the piece that runs least often counts. On v5e a reduce-scatter is an all-reduce inside
a fusion that is called all-reduce-scatter; on v6e and v5p it goes by its name, in a
computation that runs on a SparseCore.

Bytes are those of the whole array: what a gather returns, what a reduction takes.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "send",
)  # fmt: skip
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}
_HEADER = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation"
    r"|false_computation)=(?:\{([^}]*)\}|(%?[\w.-]+))"
)
_KIND = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_TYPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective, or several that are alike.

    Attributes:
        kind: of KINDS.
        axes: the mesh axes that it spans, e.g. fsdp, or data+fsdp.
        devices: of a group.
        dtype: of the array.
        is_async: matmuls run meanwhile.
        count: how often a step runs it.
        bytes: of all these runs together, on one device.
    """

    kind: str
    axes: str
    devices: int
    dtype: str
    is_async: bool
    count: float
    bytes: float

    @property
    def moved(self) -> float:
        """Bytes that a device sends: an all-reduce's twice, as scatter and gather."""
        if self.kind in ("send", "collective-permute"):
            return self.bytes
        twice = 2 if self.kind == "all-reduce" else 1
        return twice * self.bytes * (self.devices - 1) / self.devices


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, like ones together, the largest first.

    Args:
        text: of `compiled.as_text()`.
        mesh: sizes by axis, in the order of the device mesh.
    """
    computations = _computations(text)
    runs, beside = _executions(computations), _beside(computations)
    found: dict[tuple, tuple[float, Collective]] = {}
    for name, lines in computations.items():
        overlapped = name in beside or any("AsyncCollective" in line for line in lines)
        for place, line in enumerate(lines):
            one = _read(name, line, mesh, overlapped)
            if one is None or not runs.get(name):
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            key = (one.kind, channel[1]) if channel else (name, place)
            before = found.get(key)
            if before is None or runs[name] < before[0]:
                is_async = one.is_async or bool(before and before[1].is_async)
                found[key] = runs[name], one._replace(is_async=is_async)
    together: dict[tuple, Collective] = {}
    for count, one in found.values():
        total = one._replace(count=count, bytes=one.bytes * count)
        alike = one[:5]
        if alike in together:
            seen = together[alike]
            total = seen._replace(
                count=seen.count + total.count, bytes=seen.bytes + total.bytes
            )
        together[alike] = total
    return sorted(together.values(), key=lambda one: -one.bytes)


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation by name; the entry's name is ""."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        # Not any line that begins so: kernels have those.
        if line == "}" or line.startswith("}, execution_thread="):
            current = None
        elif current is None and (header := _HEADER.match(line)):
            name = "" if line.startswith("ENTRY") else header[1]
            current = found.setdefault(name, [])
        elif current is not None:
            current.append(line)
    return found


def _executions(computations: Mapping[str, list[str]]) -> dict[str, float]:
    """How often a step runs every computation."""
    callers: dict[str, list[tuple[str, float]]] = {}
    for name, lines in computations.items():
        for line in lines:
            trips = _trips(line, computations) if " while(" in line else 1
            for several, one in _CALLS.findall(line):
                for called in re.findall(r"[\w.-]+", several or one):
                    callers.setdefault(called, []).append((name, trips))
    runs: dict[str, float] = {"": 1.0}

    def count(name):
        if name not in runs:
            runs[name] = 0.0  # a computation does not call itself
            runs[name] = sum(
                count(caller) * trips for caller, trips in callers.get(name, ())
            )
        return runs[name]

    for name in computations:
        count(name)
    return runs


def _beside(computations: Mapping[str, list[str]]) -> set[str]:
    """Computations that run on another core (SparseCore) beside the matmuls."""
    return {
        called
        for lines in computations.values()
        for line in lines
        if "async_execution_thread=" in line
        for several, one in _CALLS.findall(line)
        for called in re.findall(r"[\w.-]+", several or one)
    }


def _trips(line: str, computations: Mapping[str, list[str]]) -> int:
    """The trip count of a while: the integer that its condition compares with."""
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    numbers = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(lines))
    return max(map(int, numbers), default=1)


def _read(name, line, mesh, overlapped) -> Collective | None:
    found = _KIND.search(line)
    if not found or " = " not in line:
        return None
    kind, arrays = found[1], _arrays(line[: found.start()])
    if not arrays:
        return None
    # The result of a start is (operand, result, ...).
    dtype, size = arrays[1] if found[2] and len(arrays) > 1 else arrays[0]
    if kind in ("all-reduce", "all-to-all") and not found[2]:
        size = sum(part for _, part in arrays)
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    elif kind == "send":
        return Collective(kind, "slice", mesh.get("slice", 1), dtype, True, 1, size)
    elif kind == "reduce-scatter":
        size *= _devices(line)[0] if _devices(line) else 1
    axes, devices = _axes(line, mesh)
    is_async = bool(found[2]) or overlapped
    return Collective(kind, axes, devices, dtype, is_async, 1, size)


def _arrays(text: str) -> list[tuple[str, float]]:
    """(dtype, bytes) of every array of a type."""
    found = []
    for dtype, dims in _TYPE.findall(text.partition(" = ")[2]):
        bits = re.fullmatch(r"[su](\d+)", dtype)
        each = _ITEM_BYTES.get(dtype) or (int(bits[1]) / 8 if bits else 0)
        found.append((dtype, each * math.prod(int(d) for d in dims.split(",") if d)))
    return found


def _axes(line: str, mesh: Mapping[str, int]) -> tuple[str, int]:
    """Which mesh axes the first group of a collective spans, and its size."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    group = [int(pairs[1]), int(pairs[2])] if pairs else _devices(line)[1]
    if not group:
        return "all", math.prod(mesh.values())
    places = [_place(device, mesh) for device in group]
    names = [
        axis
        for axis, seen in zip(mesh, zip(*places, strict=True), strict=True)
        if len(set(seen)) > 1
    ]
    size = len(group)
    if pairs:  # of neighbours: the group is the axis
        size = math.prod(mesh[name] for name in names)
    return "+".join(names) or "none", size


def _place(device, mesh):
    place = []
    for size in reversed(mesh.values()):
        place.append(device % size)
        device //= size
    return place[::-1]


def _devices(line: str) -> tuple[int, list[int]]:
    """(size, devices) of the first group, in any of the three notations."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        group = [int(device) for device in found[1].split(",")]
        return len(group), group
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?)(?:, |$)", line):
        shape = [int(size) for size in found[1].split(",")]
        group = list(_iota(found[2]))[: shape[-1]]
        return len(group), group
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", line
    )
    if not found:
        return 1, []
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    spanned = re.findall(r"'(\w+)'", found[3])
    order = list(_iota(found[2])) if found[2] else range(math.prod(sizes.values()))
    strides = dict(
        zip(
            sizes,
            (math.prod(list(sizes.values())[i + 1 :]) for i in range(len(sizes))),
            strict=True,
        )
    )
    steps = itertools.product(*(range(sizes[name]) for name in spanned))
    group = [
        order[sum(strides[n] * s for n, s in zip(spanned, step, strict=True))]
        for step in steps
    ]
    return len(group), group


def _iota(text: str) -> Iterator[int]:
    """The numbers of "[4,8]T(1,0)": counted up in that shape, then transposed.

    >>> list(_iota("[2,3]T(1,0)"))
    [0, 3, 1, 4, 2, 5]
    """
    dims = [int(size) for size in re.match(r"\[([\d,]+)\]", text)[1].split(",")]
    order = re.search(r"T\(([\d,]+)\)", text)
    axes = [int(a) for a in order[1].split(",")] if order else range(len(dims))
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    for step in itertools.product(*(range(dims[axis]) for axis in axes)):
        yield sum(strides[axis] * s for axis, s in zip(axes, step, strict=True))
