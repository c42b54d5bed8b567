"""Logits that are not multiplied out: hidden states, and the matrix that reads them.

    logits = hidden @ kernel            [..., D] x [D, V] -> f32[..., V]

With a vocabulary of 50,000 the logits of a batch are larger than everything else a step
holds, and two sets of them (another model's, or those of the step before) twice so.
What is wanted of them is a few numbers per row; those are computed for a block at a
time, and again in the backward pass, so that one block is alive at once.

A block is a part of the vocabulary where sums over parts say all (log-probabilities:
logsumexp of logsumexps). A sharded kernel is then gathered once per pass, and its
gradient reduced once, however many blocks there are. Divergences need whole rows of two
models; their blocks are of positions, and both kernels are gathered before them.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jaxlab.core import divergences
from jaxlab.core import mesh as mesh_lib

BLOCK_BYTES = 512 * 2**20  # of logits that a device holds at once


@flax.struct.dataclass
class Factored:
    """Logits as a product.

    Attributes:
        hidden: [B, L, D] or [B, D], in the dtype of the product.
        kernel: f32[D, V].
        block_bytes: of logits that a device holds at once.
    """

    hidden: jax.Array
    kernel: jax.Array
    block_bytes: int = flax.struct.field(pytree_node=False, default=BLOCK_BYTES)

    def dense(self) -> jax.Array:
        """f32[..., V] (f64 of float64), all at once."""
        flat = self.hidden.reshape(-1, self.hidden.shape[-1])
        logits = jnp.dot(
            flat,
            self.kernel.astype(flat.dtype),
            preferred_element_type=jnp.promote_types(flat.dtype, jnp.float32),
        )
        return logits.reshape(*self.hidden.shape[:-1], -1)


def target_logps(logits: Factored, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of one target per row.

    Args:
        logits: of rows [...].
        targets: i32[...].

    Returns:
        (log p(target), logsumexp of the logits), each f32[...].
    """
    blocks = _blocks(logits)
    if blocks <= 1:
        ids = _by_rank(jnp.arange(_vocab(logits)), targets)
        hit, total = _target_logps(logits.dense(), targets, ids)
        return hit - total, total
    ids, kernels = _vocabulary_blocks(logits.kernel, blocks)
    # The gradient of hidden states is summed over the blocks, in the wider dtype.
    wide = logits.hidden.astype(jnp.promote_types(logits.hidden.dtype, jnp.float32))

    @jax.checkpoint
    def logps_of_block(wide, ids, kernel):
        part = logits.replace(hidden=wide.astype(logits.hidden.dtype), kernel=kernel)
        ids = _by_rank(ids, targets)
        dense = jnp.where(ids < _vocab(logits), part.dense(), -jnp.inf)
        return _target_logps(dense, targets, ids)

    _, (hits, totals) = jax.lax.scan(
        lambda _, block: ((), logps_of_block(wide, *block)), (), (ids, kernels)
    )
    total = jax.nn.logsumexp(totals, axis=0)
    return hits.sum(axis=0) - total, total


def kl_rows(
    target: Factored, logits: Factored, *, direction: str = "forward"
) -> jax.Array:
    """The divergence of every row, f32[...]; see `divergences.kl_divergence`."""

    def rows(logits, hidden, kernel):
        other = target.replace(hidden=hidden, kernel=kernel).dense()
        return divergences.kl_rows(other, logits.dense(), direction=direction)

    return _by_row(rows, logits, target)


def kl_divergence(
    target: Factored,
    logits: Factored,
    *,
    direction: str = "forward",
    where: jax.Array | None = None,
) -> jax.Array:
    """`divergences.kl_divergence` of factored logits, a block at a time."""
    return divergences.mean_of_rows(kl_rows(target, logits, direction=direction), where)


def _by_row(function: Callable, logits: Factored, other: Factored) -> jax.Array:
    """`function(logits, other hidden, other kernel)` in blocks along the length."""
    count = _blocks(logits, copies=2)
    if count <= 1 or logits.hidden.ndim < 3:
        return function(logits, other.hidden, other.kernel)
    B, L = logits.hidden.shape[:2]
    size = -(-L // min(count, L))
    count = -(-L // size)

    # Blocks along the length: rows keep their shards. The last block is filled up:
    # lengths that only small numbers divide would make many tiny blocks.
    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - L), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, count, size, *x.shape[2:]), 1, 0)

    def whole(x):  # once: left alone, every block would gather it again
        narrow = x.kernel.astype(x.hidden.dtype)
        gathered = mesh_lib.constrain(narrow, "activation", "vocab")
        return gathered.astype(x.kernel.dtype)  # in which its gradient is summed

    @jax.checkpoint
    def function_of_part(kernels, mine, theirs):
        part = logits.replace(hidden=mine, kernel=kernels[0])
        return function(part, theirs, kernels[1])

    kernels = whole(logits), whole(other)
    parts = cut(logits.hidden), cut(other.hidden)
    _, rows = jax.lax.scan(
        lambda _, part: ((), function_of_part(kernels, *part)), (), parts
    )
    return jnp.moveaxis(rows, 0, 1).reshape(B, -1)[:, :L]


def _vocabulary_blocks(kernel, count):
    """([count, V / count] ids, [count, D, V / count]), filled up with ids from V on.

    Strided: a vocabulary that is sharded keeps its shards in every block.
    """
    size = kernel.shape[-1]
    count = min(count, size)  # no block without a real id
    width = -(-size // count)
    padded = jnp.pad(kernel, [(0, 0), (0, width * count - size)])
    ids = jnp.arange(width * count).reshape(width, count)
    return ids.T, jnp.moveaxis(padded.reshape(-1, width, count), -1, 0)


def _vocab(logits):
    return logits.kernel.shape[-1]


def _by_rank(ids, targets):
    """[V] -> [1, ..., V], to stand against targets[..., None]."""
    return ids.reshape((1,) * targets.ndim + (-1,))


def _blocks(logits: Factored, copies: int = 1) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size  # logits are split over every axis
    rows = logits.hidden.size // logits.hidden.shape[-1]
    logits_bytes = -(-rows * logits.kernel.shape[-1] * 4 * copies // devices)
    return -(-logits_bytes // logits.block_bytes)


def _target_logps(logits, targets, ids):
    """(the target's logit or 0, logsumexp) of logits whose last axis are `ids`."""
    # A masked sum, not a gather: it stays local when the vocabulary is sharded, and its
    # gradient fuses where a gather's would scatter into a second array of logits.
    hit = targets[..., None] == ids
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), jax.nn.logsumexp(logits, -1)
