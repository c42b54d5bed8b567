"""Which collectives a compiled program runs: how often, how many bytes, on which axis.

Reads the text of an optimized HLO module, since no interface of XLA tells:

    executions of a computation = sum over its callers, times the trip count of a loop

The trip count is the integer in the loop's condition, less what its counter begins
with: of a loop whose collectives run one iteration late, XLA peels an iteration. A
gather that overlaps with matmuls appears in two or three fused pieces (start, carry,
done): the last counts. On v5e a reduce-scatter is an all-reduce inside a fusion that is
called all-reduce-scatter; on v6e and v5p it goes by its name, in a computation that
runs on a SparseCore.

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
_DONE = '"AsyncCollectiveDone"'
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
    def sent_bytes(self) -> float:
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
    together: dict[tuple, Collective] = {}
    for name, lines in computations.items():
        if not runs.get(name) or _is_unfinished(name, lines):
            continue
        overlapped = name in beside or any(_DONE in line for line in lines)
        for line in lines:
            one = _parse(name, line, mesh, overlapped)
            if one is None:
                continue
            seen = together.get(one[:5], one._replace(count=0.0, bytes=0.0))
            together[one[:5]] = seen._replace(
                count=seen.count + runs[name], bytes=seen.bytes + one.bytes * runs[name]
            )
    return sorted(together.values(), key=lambda one: -one.bytes)


def _is_unfinished(name, lines):
    """Whether a computation begins or carries on a collective that another one ends."""
    begins = any('"AsyncCollectiveStart"' in line for line in lines)
    return begins or name.startswith("async_collective_fusion")


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
            trips = _trips(line, lines, computations) if " while(" in line else 1
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


def _trips(line, beside, computations) -> int:
    """The trip count of a while: what its condition compares with, less the start.

    Args:
        line: of the while.
        beside: the lines of its computation.
        computations: of the program.
    """
    condition = re.search(r"condition=%?([\w.-]+)", line)
    text = "\n".join(computations.get(condition[1], []) if condition else [])
    end = max(map(int, _integers(text)), default=1)
    place = re.search(r"s32\[\]\S* get-tuple-element\(.*index=(\d+)", text)
    return max(end - _first(line, int(place[1]) if place else 0, beside), 0)


def _first(loop: str, place: int, lines: list[str]) -> int:
    """What a loop's tuple holds at a place before it runs; 0 if that is no constant."""
    defined = {
        found[1]: line
        for line in lines
        if (found := re.match(r" *(?:ROOT )?%?([\w.-]+) = ", line))
    }
    carried = re.search(r" while\(%?([\w.-]+)\)", loop)
    whole = defined.get(carried[1], "") if carried else ""
    given = re.search(r" tuple\((.*?)\)", whole)
    names = re.sub(r"/\*.*?\*/", "", given[1]).split(",") if given else []
    line = defined.get(names[place].strip(" %"), "") if place < len(names) else ""
    while copied := re.search(r" copy\(%?([\w.-]+)\)", line):
        line = defined.get(copied[1], "")
    return int(next(iter(_integers(line)), 0))


def _integers(text: str) -> list[str]:
    return re.findall(r"s32\[\]\S* constant\((\d+)\)", text)


def _parse(name, line, mesh, overlapped) -> Collective | None:
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
