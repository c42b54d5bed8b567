"""What is merged as one: a tensor, or one layer of a tensor that stacks the layers."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.read import compatible
from jaxlab.merge.files.read import source as source_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib

_LAYER = re.compile(r"(?:^|[./])(?:layers|layer|blocks|block|h)[./](\d+)[./]")


@dataclasses.dataclass(frozen=True)
class Part:
    """Numbers that are merged as one, with all that the passes ask about them.

    Attributes:
        name: of the tensor.
        start: the first number within the tensor.
        shape: of the part.
        dtypes: of the tensor in each model.
        dtype: of the result.
        is_copied: integers, which have no average: equal in all models, and copied.
        shared, each: as `recipe.resolve` gives them.
        row: how many numbers are held at once whatever the chunk; 0 for none.
        drawn_as: the tensor whose random numbers it has; of a copy, the original.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    dtypes: tuple[np.dtype, ...]
    dtype: np.dtype
    is_copied: bool
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each: Sequence[Mapping[str, Any]] = ()
    row: int = 0
    drawn_as: str = ""

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def weights(self) -> list[float]:
        """Of the models besides the base, in order."""
        return [own["weight"] for own in self.each]

    @property
    def wide(self) -> np.dtype:
        """What its numbers are computed in."""
        is_double = any(dtype == np.float64 for dtype in self.dtypes)
        return np.dtype(np.float64 if is_double else np.float32)

    @property
    def row_bytes(self) -> int:
        """Of a row of one number: of all models, and of what is made on the way."""
        return self.wide.itemsize * (len(self.dtypes) + 6)

    def rows_per_chunk(self, row: int, chunk_bytes: int) -> int:
        """How many rows of so many numbers a thread holds at once."""
        return min(chunk_bytes // (row * self.row_bytes), -(-self.size // row))


def parts(
    recipe: recipe_lib.Recipe,
    inputs: Sequence[source_lib.Source],
    dtypes: Mapping[str, np.dtype],
    layer_axis: str | None,
    chunk_bytes: int,
    copies: Mapping[str, str] | None = None,
) -> tuple[list[Part], list[str]]:
    """All parts of a merge, in the order of the first model's files.

    Args:
        dtypes: of the result, by tensor.
        layer_axis: names of tensors that are cut into the layers of their first axis.
        chunk_bytes: what a thread takes at a time.
        copies: tensor -> the one that it is a copy of, in every input: it stays one.

    Returns:
        (the parts, what the user should know of the recipe).

    Raises:
        ArgumentError: parameters that cannot be used on some tensor, all of them; or
            the first tensor of which a row, which is held whole, does not fit in a
            chunk.
    """
    tensors = inputs[0].tensors
    depths, copies = _depths(tensors, layer_axis), copies or {}
    settled = recipe_lib.settle(recipe, depths)
    compatible.refuse(sorted(set(settled.problems)))
    pieces = []
    for name, stored in tensors.items():
        own = tuple(source.tensors[name].dtype for source in inputs)
        original = copies.get(name, name)
        common = {"name": name, "dtypes": own, "dtype": dtypes[name]}
        common["drawn_as"] = original
        if not stored.is_floating:
            piece = Part(start=0, shape=stored.shape, is_copied=True, **common)
            pieces.append(piece)
            continue
        layers = settled.parameters[original]
        is_stacked = _is_stacked(name, stored, layer_axis)
        shape = stored.shape[1:] if is_stacked else stored.shape
        for i, (shared, each) in enumerate(layers):
            piece = Part(
                start=i * math.prod(shape), shape=shape, is_copied=False,
                shared=shared, each=each, row=_row(recipe.method, shared, shape),
                **common,
            )  # fmt: skip
            _check_row(recipe.method, piece, chunk_bytes)
            pieces.append(piece)
    return pieces, settled.notes


def _depths(tensors, layer_axis) -> dict[str, list[float]]:
    """Where each layer of each tensor stands: 0 for the first, 1 for the last."""
    indices = {name: _LAYER.search(name) for name in tensors}
    indices = {name: int(match[1]) for name, match in indices.items() if match}
    count = max(indices.values(), default=0) + 1
    depths = {}
    for name, stored in tensors.items():
        if not stored.is_floating:
            depths[name] = []
            continue
        layers = [(indices.get(name, 0), count)]
        if _is_stacked(name, stored, layer_axis):
            layers = [(i, stored.shape[0]) for i in range(stored.shape[0])]
        is_in_layer = len(layers) > 1 or name in indices
        depths[name] = [_depth(*layer) if is_in_layer else 0.0 for layer in layers]
    return depths


def _depth(layer, count) -> float:
    return layer / (count - 1) if count > 1 else 1.0  # as mergekit has a single one


def _is_stacked(name, stored, layer_axis) -> bool:
    return bool(layer_axis and stored.shape and re.search(layer_axis, name))


def _row(method, shared, shape) -> int:
    if not shape or not math.prod(shape):
        return 0
    if method == "nuslerp" and not shared["nuslerp_flatten"]:
        return math.prod(shape[1:]) if shared["nuslerp_row_wise"] else shape[-1]
    if method == "model_stock" and shared["filter_wise"]:
        return shape[-1]
    if method in ("della", "della_linear"):
        return math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return 0


def _check_row(method, part, chunk_bytes) -> None:
    if part.row and not part.rows_per_chunk(part.row, chunk_bytes):
        needed = part.row * part.row_bytes
        raise errors.ArgumentError(
            f"{method} holds whole rows of {part.name}, for which chunks must have "
            f"{needed} bytes, not {chunk_bytes}; give {16 * needed} of memory"
        )
