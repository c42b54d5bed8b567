"""Task vectors as low-rank factors, and merges of such adapters as products.

    tau ~ A B,   A = U sqrt(S), B = sqrt(S) V^T   of the truncated SVD of each matrix

The rank is given, or found by energy: the least r with sum_{i <= r} s_i^2 at least that
share of |tau|^2, which bounds the relative error by sqrt(1 - energy) (Eckart and Young
1936). LoRA: Hu et al. 2021, arXiv:2106.09685, whose update is A B up to a scale.

Adapters are merged as what they add to the model, sum_k w_k A_k B_k. Averaging factors
instead, (sum w_k A_k) (sum w_k B_k), mixes every A_j with every B_k: that is another
matrix, and the factors of one update are not even unique (A R, R^-1 B). The product of
a merge is low-rank again, of rank r_1 + ... + r_M: factors side by side, no SVD.

A matrix is the last two axes of a leaf; axes before them (stacked layers) are batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import tree, types
from jaxlab.merge.trees import checks


class LowRank(NamedTuple):
    """Factors that stand for the matrix `a @ b`.

    Attributes:
        a: f32[..., n, r].
        b: f32[..., r, m].
    """

    a: jax.Array
    b: jax.Array


def extract_low_rank(
    vector: types.Params,
    *,
    rank: int | None = None,
    energy: float | None = None,
    patterns: Sequence[str] = ("",),
) -> types.Params:
    """A task vector with its matrices replaced by `LowRank` factors.

    Public API, for adapters from two models: no recipe calls it.

    Args:
        vector: a task vector, e.g. `task_vector(finetuned, base, dtype=jnp.float32)`.
        rank: of every matrix, at most its own; or
        energy: the share of each matrix's squared norm to keep, in (0, 1]. The layers
            of a stacked leaf share the largest rank that one of them needs.
        patterns: regular expressions; matrices found by none stay as they are, as do
            vectors, scalars and matrices that factors would only make larger.

    Raises:
        ValueError: not one of rank and energy, out of range; a pattern without a leaf;
            a leaf that is not finite.

    >>> outer = jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(1.0, 5.0))
    >>> factors = extract_low_rank({"w": outer}, energy=0.99)["w"]
    >>> factors.a.shape, factors.b.shape
    ((3, 1), (1, 4))
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either a rank or an energy")
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank}; use at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy {energy} is not in (0, 1]")
    if broken := tree.non_finite(jax.tree.map(jnp.asarray, vector)):
        raise ValueError(f"not finite: {', '.join(broken)}")
    chosen = tree.mask(vector, patterns)
    return jax.tree.map(
        lambda leaf, use: _factors(leaf, rank, energy) if use else leaf, vector, chosen
    )


def low_rank_product(adapter: types.Params, *, dtype: Any = None) -> types.Params:
    """The task vector that an adapter stands for: `a @ b` at every `LowRank`.

    Args:
        adapter: a tree with `LowRank` nodes.
        dtype: of the products; None for the factors' own.

    >>> low_rank_product({"w": LowRank(jnp.ones((2, 1)), jnp.ones((1, 3)))})["w"].shape
    (2, 3)
    """

    def product(node):
        if not isinstance(node, LowRank):
            return node
        full = jnp.matmul(node.a, node.b, precision="highest")
        return full if dtype is None else full.astype(dtype)

    return jax.tree.map(product, adapter, is_leaf=_is_low_rank)


def merge_adapters(adapters: Sequence[types.Params], weights: Any) -> types.Params:
    """The adapter of `sum_k w_k A_k B_k`; ranks add up.

    Args:
        adapters: M trees, alike but for ranks. Leaves that are not `LowRank` are
            summed with the same weights.
        weights: f32[M], traced; they are not divided by their sum.

    Returns:
        An adapter; `extract_low_rank` of its product makes the rank small again.

    Raises:
        ValueError: adapters or weights that do not fit; everything at once.

    >>> x = {"w": LowRank(jnp.ones((2, 1)), jnp.ones((1, 3)))}
    >>> low_rank_product(merge_adapters([x, x], [1.0, 2.0]))["w"].tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    adapters = list(adapters)
    if not adapters:
        raise ValueError("no adapters are given")
    weights, wrong = checks.coefficients(weights, len(adapters), name="weights")
    shapes = [jax.eval_shape(low_rank_product, adapter) for adapter in adapters]
    checks.refuse(checks.problems(shapes) + wrong, "these adapters cannot be merged")

    def scale(weight, leaf):  # in float32 or wider, whatever the leaf is
        return weight * jnp.asarray(leaf).astype(checks.wide_dtype(leaf))

    def merge_nodes(*nodes):
        if not all(map(_is_low_rank, nodes)):
            nodes = [low_rank_product(node) for node in nodes]
            return sum(map(scale, weights, nodes)).astype(nodes[0].dtype)
        a = jnp.concatenate(
            list(map(scale, weights, [node.a for node in nodes])), axis=-1
        )
        b = jnp.concatenate([node.b for node in nodes], axis=-2)
        return LowRank(a.astype(nodes[0].a.dtype), b)

    return jax.tree.map(merge_nodes, *adapters, is_leaf=_is_low_rank)


def _factors(leaf, rank, energy):
    if np.ndim(leaf) < 2 or not np.size(leaf) or not checks.is_inexact(leaf):
        return leaf
    n, m = np.shape(leaf)[-2:]
    u, s, vh = jnp.linalg.svd(leaf.astype(jnp.float32), full_matrices=False)
    r = min(rank, n, m) if energy is None else _rank_of(np.asarray(s, float), energy)
    if r * (n + m) >= n * m:
        return leaf
    root = jnp.sqrt(s[..., :r])
    a, b = u[..., :, :r] * root[..., None, :], root[..., :, None] * vh[..., :r, :]
    return LowRank(a.astype(leaf.dtype), b.astype(leaf.dtype))


def _rank_of(s, energy) -> int:
    """The least rank that keeps the energy in every matrix; 1 for zeros."""
    energies = np.cumsum(s**2, axis=-1)
    is_enough = energies >= energy * energies[..., -1:] * (1 - 1e-12)
    return int(np.argmax(is_enough, axis=-1).max()) + 1


def _is_low_rank(node) -> bool:
    return isinstance(node, LowRank)
