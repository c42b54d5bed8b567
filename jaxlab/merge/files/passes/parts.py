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
    """Numbers that are merged as one, with their parameters.

    Attributes:
        name: of the tensor.
        start: the first number within the tensor.
        shape: of the part.
        dtypes: of the tensor in each model.
        is_copied: integers, which have no average: equal in all models, and copied.
        shared, each: as `recipe.resolve` gives them.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    dtypes: tuple[np.dtype, ...]
    is_copied: bool
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each: Sequence[Mapping[str, Any]] = ()

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def weights(self) -> list[float]:
        """Of the models besides the base, in order."""
        return [own["weight"] for own in self.each]


def parts(
    recipe: recipe_lib.Recipe,
    inputs: Sequence[source_lib.Source],
    layer_axis: str | None,
) -> list[Part]:
    """All parts of a merge, in the order of the first model's files.

    Raises:
        ArgumentError: parameters that cannot be used on some tensor; all of them.
    """
    tensors = inputs[0].tensors
    indices = {name: _layer(name) for name in tensors}
    count = max((i for i in indices.values() if i is not None), default=0) + 1
    found, lines = [], []
    for name, stored in tensors.items():
        dtypes = tuple(source.tensors[name].dtype for source in inputs)
        shape, size = stored.shape, math.prod(stored.shape)
        if not compatible.is_floating(stored.dtype):
            found.append(Part(name, 0, shape, dtypes, True))
            continue
        if layer_axis and shape and re.search(layer_axis, name):
            places = [(i, shape[0], shape[1:]) for i in range(shape[0])]
        else:
            index = indices[name]
            places = [(0 if index is None else index, count, shape)]
        is_in_layer = len(places) > 1 or indices[name] is not None
        for i, (layer, layers, inner) in enumerate(places):
            t = _depth(layer, layers) if is_in_layer else 0.0
            try:
                shared, each = recipe_lib.resolve(recipe, name, t)
            except errors.UserError as error:
                lines.append(str(error))
                break
            start = i * (size // len(places))
            part = Part(name, start, inner, dtypes, False, shared, each)
            lines += wrong_values(recipe.method, part)
            found.append(part)
    compatible.refuse(sorted(set(lines)))
    return found


def wrong_values(method: str, part: Part) -> list[str]:
    """Weights that are divided by their sum, which is 0; shares that are none."""
    lines = []
    divides = {"linear": "normalize", "multislerp": "normalize_weights"}
    if method == "karcher" or part.shared.get(divides.get(method)):
        weights = part.weights
        # A sum that is zero up to float32's rounding would divide noise by noise.
        if abs(sum(weights)) <= 1e-6 * sum(map(abs, weights)):
            lines.append(
                f"weights {weights} sum to 0; change them or set normalize to false"
            )
    for own in (part.shared, *part.each):
        lines += [
            f"{name} {own[name]:g} is not between 0 and 1"
            for name in ("density", "gamma", "epsilon", "select_topk")
            if not 0 <= own.get(name, 0) <= 1
        ]
        density, epsilon = own.get("density", 0), own.get("epsilon", 0)
        if 0 < density < 1 and not epsilon < min(density, 1 - density):
            lines.append(
                f"density {density:g} +- epsilon {epsilon:g} must lie between 0 and 1; "
                f"use an epsilon below {min(density, 1 - density):g}"
            )
    return lines


def _layer(name) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _depth(layer, layers) -> float:
    return layer / (layers - 1) if layers > 1 else 1.0  # as mergekit has a single one
