"""A merge of whole models on chips that are not here, by arithmetic.

    memory = 4 (trees read + 1 written) params / shards + working
    time   = the first of the two, at the rate of HBM

Parameters are f32, as a run keeps them; data shards hold copies. What a method needs
beside (task vectors, masks, counts) is computed leaf by leaf and model by model, and
again rather than kept, so that working is 0; DELLA's is the sort of the largest leaf.
How often a method reads its trees, and what it moves between chips, the compiler says
(`systems/planning/merges.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from jaxlab.core import errors
from jaxlab.plan import shape as shapes
from jaxlab.plan import topology as topologies

# Method as in a recipe -> (fewest, most) models beside the base; whether there is one.
METHODS = {
    "linear": ((1, None), False),
    "slerp": ((2, 2), False),
    "karcher": ((2, None), False),
    "task_arithmetic": ((1, None), True),
    "ties": ((1, None), True),
    "dare_linear": ((1, None), True),
    "breadcrumbs": ((1, None), True),
    "della": ((1, None), True),
    "sce": ((1, None), True),
    "model_stock": ((2, None), True),
}

# Copies of the largest leaf that a sort holds (keys, places, what is sorted), beside
# one for each model: chosen looking at what XLA:TPU needs for one to three models.
_SORT = 3


class Merge(NamedTuple):
    """A merge as a plan.

    Attributes:
        method: of METHODS.
        models: how many, without the base.
        shape: of each.
        topology, mesh: where; sizes of all axes.
    """

    method: str
    models: int
    shape: shapes.Shape
    topology: topologies.Topology
    mesh: dict[str, int]

    @property
    def trees(self) -> int:
        """How many are read."""
        return self.models + METHODS[self.method][1]

    @property
    def tree_bytes(self) -> float:
        """Of one model, on one chip."""
        shards = self.mesh["fsdp"] * self.mesh["context"] * self.mesh["tensor"]
        return 4 * self.shape.params / shards

    @property
    def moved_bytes(self) -> float:
        """Bytes on one chip: what is read and what is written."""
        return (self.trees + 1) * self.tree_bytes

    @property
    def memory(self) -> float:
        """Bytes that one chip holds."""
        if self.method != "della":
            return self.moved_bytes
        shape = self.shape
        leaf = max(shape.head_params, shape.layers * max(shape.matrices.values()))
        held = (_SORT + self.models) * leaf / shape.params
        return self.moved_bytes + held * self.tree_bytes

    @property
    def seconds(self) -> float:
        """Of reading and writing, at the rate of HBM."""
        return self.moved_bytes / self.topology.chip.hbm_rate

    @property
    def fits(self) -> bool:
        """Whether the memory is there."""
        return self.memory <= self.topology.chip.hbm_bytes


def estimate(
    method: str,
    models: int,
    shape: shapes.Shape,
    topology: topologies.Topology,
    mesh: Mapping[str, int],
) -> Merge:
    """The plan of a merge.

    Args:
        method: of METHODS.
        models: how many, without the base.
        shape: of each; its batch does not matter.
        topology: where.
        mesh: sizes by axis, see `topology.mesh`.

    Raises:
        UserError: an unknown method, a number of models that it does not take, or a
            mesh that does not fit the chips or divide the model.

    >>> shape = shapes.Shape(96, 32, 2, 2, 2, 16, 64, length=8, rows=1)
    >>> plan = estimate("ties", 3, shape, topologies.parse("v5e:2x2"), {"fsdp": -1})
    >>> plan.trees, plan.memory == 5 * shape.params
    (4, True)
    """
    if method not in METHODS:
        raise errors.UserError(f"--merge {method}: use one of {', '.join(METHODS)}")
    least, most = METHODS[method][0]
    if models < least or (most is not None and models > most):
        several = f"{least}" if least == most else f"at least {least}"
        raise errors.UserError(f"--models {models}: {method} takes {several}")
    full = topologies.mesh(topology, mesh)
    # One row per chip: there is no batch that the mesh would have to divide.
    shapes.check(dataclasses.replace(shape, rows=topology.chips, micro_batches=1), full)
    return Merge(method, models, shape, topology, full)
