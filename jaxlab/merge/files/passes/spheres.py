"""Streams the merges along spheres: inner products first, then one combination.

Each is `sum_k c_k theta_k` with coefficients that follow from the inner products of the
models (`merge.spheres.coefficients`), so a tensor is read twice: for its Gram
matrix, added up block by block (float32 within 16 thousand numbers, float64 beyond),
and for the sum. Where every row has its own coefficients, whole rows are held and one
pass is enough; where every column has, the Gram matrices of all columns are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.merge.files.passes import blocks as blocks_lib
from jaxlab.merge.files.passes import job as job_lib
from jaxlab.merge.files.passes import linear
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.spheres import coefficients as coefficients_lib

_FORMULAS = {
    "slerp": coefficients_lib.slerp_coefficients,
    "nuslerp": coefficients_lib.nuslerp_coefficients,
    "multislerp": coefficients_lib.multislerp_coefficients,
    "karcher": coefficients_lib.karcher_coefficients,
    "model_stock": coefficients_lib.stock_coefficients,
}
_DOT = 1 << 14  # numbers whose products are added in float32


def along(recipe_method: str, part: parts_lib.Part) -> str:
    """What has coefficients of its own: the "leaf", each "row" or each "column"."""
    shared = part.shared
    if recipe_method == "nuslerp" and not shared["nuslerp_flatten"] and part.shape:
        return "column" if shared["nuslerp_row_wise"] else "row"
    is_row = recipe_method == "model_stock" and shared["filter_wise"] and part.shape
    return "row" if is_row else "leaf"


def merge(job: job_lib.Job, part: parts_lib.Part, space: blocks_lib.Workspace) -> None:
    """Merges one part."""
    if not part.size:
        return
    kind = along(job.recipe.method, part)
    if kind == "leaf":
        combination = _combination(job, part, space)
        linear.combine(job, part, combination, 0, part.size, space)
    else:
        _slices(job, part, kind, space)


def _combination(job, part, space) -> blocks_lib.Combination:
    base, members, is_delta = _members(job.recipe, part)
    count = len(members)
    wide = part.wide
    step = max(job.chunk_bytes // (wide.itemsize * count), 1)
    vectors = np.empty((count, min(step, part.size)), wide)
    gram = np.zeros((count, count))
    for start in range(0, part.size, step):
        size = min(step, part.size - start)
        block = vectors[:, :size]
        job_lib.read_wide(
            job, part, members, base if is_delta else None, start, block, space
        )
        for at in range(0, size, _DOT):
            piece = block[:, at : at + _DOT]
            gram += piece @ piece.T
    values = np.asarray(_coefficients(job.recipe.method, part, gram), np.float64)
    is_mean = False
    if job.recipe.method == "slerp":
        # The ends, and the chord of parallel vectors, are exact where that is possible.
        t = part.shared["t"]
        is_mean = t in (0, 1) or np.array_equal(values, np.float32([1 - t, t]))
        values = np.array([1 - t, t]) if is_mean else values
    full = [0.0] * len(part.dtypes)
    for k, value in zip(members, values, strict=True):
        full[k] = float(value)
    if is_mean:
        return blocks_lib.mean(full)
    return blocks_lib.Combination(tuple(full), base if is_delta else None)


def _slices(job, part, kind, space) -> None:
    """Rows (of the last axis) or columns (of the first) with their own coefficients."""
    base, members, is_delta = _members(job.recipe, part)
    wide = part.wide
    row = part.row
    rows = part.size // row
    step = part.rows_per_chunk(row, job.chunk_bytes)
    vectors = np.empty((len(members), step * row), wide)
    origin = np.zeros(step * row, wide)
    gram = np.zeros((len(members), len(members), row if kind == "column" else step))
    coefficients = None

    def blocks(survey):
        for first in range(0, rows, step):
            count = min(step, rows - first)
            block, at = vectors[:, : count * row], first * row
            anchor = base if is_delta else None
            into = origin[: count * row]
            job_lib.read_wide(
                job, part, members, anchor, at, block, space, into, survey
            )
            yield at, count, block.reshape(len(members), count, row)

    if kind == "column":
        for _, _, block in blocks(survey=True):
            _add_products(gram, block, "rl,rl->l")
        coefficients = _coefficients(job.recipe.method, part, gram)[:, None, :]
    for at, count, block in blocks(survey=False):
        if kind == "row":
            gram[:] = 0
            _add_products(gram[:, :, :count], block, "rl,rl->r")
            # Of one shape always, so that it is compiled once.
            coefficients = _coefficients(job.recipe.method, part, gram)
            coefficients = coefficients[:, :count, None]
        block *= coefficients
        total = block.sum(axis=0).reshape(-1)
        if is_delta:
            total += origin[: len(total)]
        limit = space.block_bytes // wide.itemsize
        for start in range(0, len(total), limit):
            job.write(part, at + start, total[start : start + limit], space)


def _members(recipe, part) -> tuple[int | None, list[int], bool]:
    """The base, the models that are combined, and whether as differences from it."""
    base, every = recipe.base, list(range(len(part.dtypes)))
    if recipe.method == "slerp":
        return base, [base, 1 - base], False
    if base is None:
        return None, every, False
    return base, [k for k in every if k != base], True


def _add_products(gram, block, spec) -> None:
    for j in range(len(block)):
        for k in range(j, len(block)):
            gram[j, k] += np.einsum(spec, block[j], block[k])
            gram[k, j] = gram[j, k]


def _coefficients(method, part, gram) -> np.ndarray:
    """`gram` [M, M, ...] -> [M, ...]."""
    shared = part.shared
    options = ()
    weights = part.weights if part.each and "weight" in part.each[0] else []
    if method == "slerp":
        weights = shared["t"]
    elif method == "karcher" or (
        method == "multislerp" and shared["normalize_weights"]
    ):
        weights = [weight / sum(weights) for weight in weights]
    if method == "karcher":
        options = (("max_iter", shared["max_iter"]), ("tol", shared["tol"]))
    formula = _compile(method, options)
    given = () if method == "model_stock" else (jnp.asarray(weights, jnp.float32),)
    return np.asarray(formula(jnp.asarray(gram, jnp.float32), *given))


@functools.lru_cache(maxsize=64)
def _compile(method, options):
    return jax.jit(functools.partial(_FORMULAS[method], **dict(options)))
