"""The merges whose coefficients are known before the numbers: one look, numpy alone."""

import numpy as np

from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import job as job_lib
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.files.read import compatible
from jaxlab.merge.files.recipe import recipe as recipe_lib

METHODS = ("linear", "interpolate", "task_arithmetic")


def combine(
    job: job_lib.Job,
    part: parts_lib.Part,
    combination: blocks.Combination,
    start: int,
    count: int,
    space: blocks.Workspace,
) -> None:
    """Merges the numbers [start, start + count) of a part linearly, block by block."""
    step = space.block_bytes // part.wide.itemsize
    for at in range(start, start + count, step):
        size = min(step, start + count - at)

        def read(k, out, again, at=at):
            job.reader.read(k, part.name, part.start + at, out, survey=again)

        merged = blocks.combine(read, part.dtypes, part.wide, combination, size, space)
        job.write(part, at, merged, space)


def copy_integers(
    job: job_lib.Job,
    part: parts_lib.Part,
    start: int,
    count: int,
    space: blocks.Workspace,
) -> None:
    """Copies numbers of a part that has no average: they must be equal in all models.

    Raises:
        ArgumentError: they differ, with the tensor and the two models.
    """
    dtype = part.dtypes[0]
    step = space.block_bytes // max(dtype.itemsize, 1)
    for at in range(start, start + count, step):
        size = min(step, start + count - at)
        first, other = (space.view(i, dtype, size) for i in range(2))
        job.reader.read(0, part.name, at, first)
        for k in range(1, len(part.dtypes)):
            job.reader.read(k, part.name, at, other)
            if not np.array_equal(first, other):
                compatible.refuse(
                    [
                        f"{part.name} holds integers, which must be equal in all "
                        f"models, and {job.recipe.models[k]} differs from "
                        f"{job.recipe.models[0]}"
                    ]
                )
        job.output.write(part.name, at, first)


def coefficients(recipe: recipe_lib.Recipe, part: parts_lib.Part) -> blocks.Combination:
    """The coefficients of a method that needs no look at the numbers."""
    if recipe.method == "interpolate":
        t = part.shared["t"]
        return blocks.mean([1 - t, t])
    weights = part.weights
    if recipe.method == "linear":
        if part.shared["normalize"]:
            return blocks.mean(weights)
        return blocks.Combination(tuple(weights))
    total = sum(weights) if part.shared["normalize"] else 1.0
    scale = part.shared["lambda"] / (total if abs(total) >= 1e-8 else 1.0)
    scales = [scale * weight for weight in weights]
    before, after = scales[: recipe.base], scales[recipe.base :]
    return blocks.Combination((*before, 0.0, *after), recipe.base)
