"""Bytes of HBM that a chip needs for a training step, by category.

    state        4 (1 + moments + copies) N / (f t)      f32: parameters, optimizer
    gradients    4 N / (f t)
    weights      2 P / (f t)     compute copy of the shards: XLA casts them before the
                                 loop over layers, not inside
    activations  2 N_layers b L D / t, what the backward pass starts from, and what the
                 remat policy keeps beside it
                 (an adapter's base is kept as it is computed, or unpacked in there)
    working      the larger of   a layer: its weights gathered, the next layer's where
                                 gathers overlap, half their gradient, for each matrix's
                                 is scattered at once, and activations;
                                 the loss: a block of logits and of the head, and
                                 their gradients
    exchange     2 N / (f t d)   gradients on their way to another slice, scattered over
                 the data shards of their own before

N parameters, P those of layers, f fsdp, t tensor, d data, b rows a device holds.
No number here is fitted, but which terms there are was chosen looking at the programs
of many layers in tests/support/plan_rows.py: XLA:TPU needs 0.9 to 1.1 times as much for
these data and fsdp meshes. `jaxlab plan --aot` asks it.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxlab.plan import shape as shapes
from jaxlab.plan import topology as topologies

MARGIN = 0.12  # by which the compiler may need more


class Memory(NamedTuple):
    """Bytes a chip needs."""

    state: float
    gradients: float
    weights: float
    activations: float
    working: float
    exchange: float

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(self))


def estimate(
    shape: shapes.Shape, topology: topologies.Topology, mesh: Mapping[str, int]
) -> Memory:
    """The memory of one chip.

    Args:
        shape: what the step computes.
        topology: where.
        mesh: sizes of all axes, see `topology.mesh`.
    """
    t = mesh["tensor"]
    shards = mesh["fsdp"] * mesh["context"] * t
    whole = _copies(topology, mesh)
    rows, passes = shapes.device_share(shape, mesh), shape.passes
    trained = _trained_share(shape, shards, t)
    gradients = passes.gradients * 4 * trained
    if shape.micro_batches > 1:  # the sum, and those of one microbatch
        gradients *= 2
    activations = _saved_activations(shape, rows, t) * passes.held
    exchanged = shape.compute_bytes * trained / mesh["data"]
    copied = 0 if shape.adapter else shape.layer_params  # frozen ones are cast before
    # The reference of an adapter is its base: no copy.
    frozen = shape.frozen_bytes or 4 * passes.copies * shape.params
    return Memory(
        state=4 * (1 + shape.moments) * trained + frozen / shards,
        gradients=gradients,
        weights=passes.held * shape.compute_bytes * copied / shards,
        activations=activations,
        working=max(_layer(shape, rows, t, whole), _loss(shape, rows, t)),
        exchange=exchanged if mesh["slice"] > 1 else 0.0,
    )


def _trained_share(shape, shards, t):
    """Trained parameters that a chip holds."""
    if shape.adapter is None:
        return shape.params / shards
    width, others = shape.adapter_params  # ranks are not split
    return width / (shards / t) + others / t


def _saved_activations(shape, rows, t):
    """Bytes of the activations that wait for the backward pass."""
    heads, kv_heads, C = shape.heads, shape.kv_heads, shape.head_dim
    projections = 2 * (heads + kv_heads) * C
    width = {
        "full": 0,
        "qkv": (heads + 2 * kv_heads) * C,
        "qkvo": projections,
        "dots": projections + 2 * shape.mlp,
        # What the derivatives of the MLP (gate, up, sigmoid, silu, their product) and
        # of both norms (in f32, and what they return) need.
        "none": projections + 5 * shape.mlp + 6 * shape.embed,
    }[shape.remat]
    tokens = rows * shape.length
    return shape.compute_bytes * shape.layers * tokens * (shape.embed + width) / t


def _copies(topology, mesh):
    """How many layers' weights and gradients are whole on a chip at once."""
    if mesh["fsdp"] * mesh["context"] == 1:
        return 0.5
    return 1.5 + topology.chip.prefetches


def _layer(shape, rows, t, whole):
    """Bytes of the layer that is computed: its weights in full, its activations."""
    gathered = whole * shape.compute_bytes * shape.layer_params / (shape.layers * t)
    # Of the six of the model's width, a matrix's input and its gradient are whole.
    wide = 2 + 4 / t
    live = 3 * shape.mlp / t + wide * shape.embed
    return gathered + shape.compute_bytes * rows * shape.length * live


def _loss(shape, rows, t):
    """Bytes of the loss: a block of logits and its gradient, its head and that's; of
    several blocks also hidden states and their gradient in f32."""
    logits = 4 * rows * shape.length * shape.vocab / t
    blocks = max(1.0, math.ceil(logits / shape.loss_block_bytes))
    wide = 8 * rows * shape.length * shape.embed if blocks > 1 else 0.0
    head = 2 * shape.compute_bytes * shape.head_params / t
    return (2 * logits + head) / blocks + wide
