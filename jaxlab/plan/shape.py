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


class Adapter(NamedTuple):
    """Low-rank matrices beside those of every layer, and how these are kept.

    Attributes:
        rank: of each.
        targets: which matrices of a layer have one.
        kept_bytes: of a weight of the frozen layers: 2 in bfloat16, 0.516 in NF4.
    """

    rank: int
    targets: tuple[str, ...]
    kept_bytes: float


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
        adapter: of the parameters that are trained where all of the model's are frozen;
            None trains these.
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
    adapter: Adapter | None = None

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
        again = self.layers * sum(self.matrices.get(name, 0) for name in names)
        if self.adapter is not None and names:  # every A, and the B of those matrices
            sides = self._adapter_sides
            again += (
                self.layers
                * self.adapter.rank
                * sum(
                    inputs + outputs * (name in names)
                    for name, (inputs, outputs) in sides.items()
                )
            )
        return again

    @property
    def _adapter_sides(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the matrices that have an adapter."""
        D, heads = self.embed, self.heads * self.head_dim
        kv_heads = self.kv_heads * self.head_dim
        sides = {"q": (D, heads), "k": (D, kv_heads), "v": (D, kv_heads)}
        sides |= {"o": (heads, D), "gate": (D, self.mlp), "up": (D, self.mlp)}
        sides["down"] = (self.mlp, D)
        return {name: sides[name] for name in self.adapter.targets}

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
    def trained_params(self) -> int:
        """Parameters that have a gradient and an optimizer's state."""
        return self.params if self.adapter is None else sum(self.adapter_params)

    @property
    def adapter_params(self) -> tuple[int, int]:
        """Of an adapter: at the model's width, which fsdp splits, and at others."""
        sides, rank = self._adapter_sides, self.adapter.rank
        whole = self.layers * rank * sum(map(sum, sides.values()))
        wide = self.layers * rank * len(sides) * self.embed
        return wide, whole - wide

    @property
    def frozen_bytes(self) -> float:
        """Of what is read and not trained, all devices together."""
        if self.adapter is None:
            return 0.0
        outer = self.params - self.layer_params
        return self.adapter.kept_bytes * self.layer_params + 4.0 * outer

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
