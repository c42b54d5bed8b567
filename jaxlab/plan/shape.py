"""What a training step computes, as numbers: no arrays, no jax.

Letters are those of `models/transformer.py`: B rows, L tokens per row, D embed, F mlp,
H heads, K kv heads, C head dim, V vocab, N layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxlab.core import errors

# What the backward pass computes again, of a layer's matmuls. None repeats `down`, as
# nothing needs its output, unless it is normed (`Shape.recomputed`). All but "none"
# repeat attention, since they do not keep what its kernel does.
RECOMPUTED = {
    "none": (),
    "dots": (),
    "qkvo": ("gate", "up"),
    "qkv": ("o", "gate", "up"),  # MaxText's qkv_proj_offloaded; no config of ours
    "full": ("q", "k", "v", "o", "gate", "up"),
}


class Passes(NamedTuple):
    """How often a step goes through the model.

    Attributes:
        trained: forward and backward.
        forward: forward alone.
        held: how many of the trained passes hold their activations at once.
        copies: of the parameters, beside the optimizer's state: an anchor.
        gradients: trees of gradients alive at once.
    """

    trained: int = 1
    forward: int = 0
    held: int = 1
    copies: int = 0
    gradients: int = 1


_ONCE = Passes()


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder, its batch and its optimizer.

    Attributes:
        vocab, embed, layers, heads, kv_heads, head_dim, mlp: V, D, N, H, K, C, F.
        length, rows: tokens per row, and rows of the global batch.
        together: rows that one device holds: 2 of a pair.
        tied: the head is the embedding.
        post_norm: outputs of attention and MLP are normed, not inputs.
        norm_scales: numbers that norms have, all layers together.
        mlp_matrices: 3 of a gated MLP; published models with 2 are in the tests.
        window, full_layers: reach of the other layers (0: everything), and how many
            layers see everything.
        remat: of RECOMPUTED.
        compute_bytes: of an activation.
        loss_block_bytes: of logits in f32 that a device holds at once.
        micro_batches: parts of the batch, one after the other.
        moments: f32 trees of the optimizer: 2 of AdamW.
        passes: how often a step goes through the model.
    """

    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    length: int
    rows: int
    together: int = 1
    tied: bool = False
    post_norm: bool = False
    norm_scales: int = 0
    mlp_matrices: int = 3
    window: int = 0
    full_layers: int = 0
    remat: str = "none"
    compute_bytes: int = 2
    loss_block_bytes: int = 512 * 2**20
    micro_batches: int = 1
    moments: int = 2
    passes: Passes = _ONCE

    @property
    def matrices(self) -> dict[str, int]:
        """Weights of one layer by name."""
        D, C = self.embed, self.head_dim
        up = ("up", "down") if self.mlp_matrices == 2 else ("gate", "up", "down")
        sizes = {"q": D * self.heads * C, "k": D * self.kv_heads * C}
        sizes |= {"v": D * self.kv_heads * C, "o": D * self.heads * C}
        return sizes | dict.fromkeys(up, D * self.mlp)

    @property
    def recomputed(self) -> float:
        """Weights of all layers' matrices whose products are computed again."""
        names = RECOMPUTED[self.remat]
        if self.post_norm and "gate" in names:
            names = (*names, "down")
        return self.layers * sum(self.matrices.get(name, 0) for name in names)

    @property
    def layer_params(self) -> int:
        """Weights of all layers' matrices: P."""
        return self.layers * sum(self.matrices.values())

    @property
    def head_params(self) -> int:
        """Weights of the matrix that reads logits."""
        return self.embed * self.vocab

    @property
    def params(self) -> int:
        """All parameters."""
        tables = self.head_params * (1 if self.tied else 2)
        return self.layer_params + tables + self.norm_scales

    @property
    def step_tokens(self) -> int:
        """Tokens of one update."""
        return self.rows * self.length


def device_rows(shape: Shape, mesh: Mapping[str, int]) -> int:
    """Rows of one microbatch that a data shard holds.

    Raises:
        UserError: the mesh or the microbatches do not divide the rows.
    """
    shards = math.prod(mesh[axis] for axis in ("slice", "data", "fsdp"))
    whole = shards * shape.micro_batches
    size = shape.rows // shape.together
    if size % whole:
        raise errors.UserError(
            f"a batch of {size} {'rows' if shape.together == 1 else 'pairs'} is not "
            f"divisible by {shards} data shards x {shape.micro_batches} microbatches; "
            f"use a multiple of {whole}, e.g. "
            f"--config.data.batch_size={-(-size // whole) * whole}"
        )
    return shape.rows // whole


def device_share(shape: Shape, mesh: Mapping[str, int]) -> float:
    """As `device_rows`, and of those the part that a context shard holds."""
    return device_rows(shape, mesh) / mesh["context"]


def check(shape: Shape, mesh: Mapping[str, int]) -> None:
    """Refuses a mesh that does not divide the model.

    Raises:
        UserError: with the size that is not divisible.
    """
    tensor = {
        "vocab": shape.vocab,
        "mlp": shape.mlp,
        "heads x head_dim": shape.heads * shape.head_dim,
        "kv_heads x head_dim": shape.kv_heads * shape.head_dim,
    }
    wanted = [("embed", shape.embed, ("fsdp", "context"))]
    wanted += [(name, size, ("tensor",)) for name, size in tensor.items()]
    for name, size, axes in wanted:
        shards = math.prod(mesh[axis] for axis in axes)
        if size % shards:
            used = "*".join(axis for axis in axes if mesh[axis] > 1)
            raise errors.UserError(
                f"{name} {size} is not divisible by {used}={shards}; change the mesh "
                "or the model"
            )
    device_rows(shape, mesh)
