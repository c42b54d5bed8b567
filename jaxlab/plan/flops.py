"""FLOPs of a training step, for all chips together.

    matmuls     6 N_mm T          N_mm: layers and head, not the embedding's look-up;
                                  4 N_mm T + 6 N_adapter T beside a frozen base
    attention   4 N H C keys T    forward; 2.5 times that backward
    recomputed  2 T (matrices of `shape.RECOMPUTED`) + attention forward

T tokens. A token has L keys in the "dense" convention, which most tables of model FLOP
utilisation use (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), and half of that
in truth, "causal". Dense attention counts twice its forward backward, 12 N H C L in
all; a flash kernel computes the scores again, hence 2.5.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxlab.plan import shape as shapes


class Flops(NamedTuple):
    """FLOPs of one step.

    Attributes:
        matmuls, attention, recomputed: what the hardware computes; attention causal.
        extra: of passes that are not counted as useful: a second gradient, an anchor.
        dense, causal: useful ones, in both conventions.
        six_nd: 6 x all parameters x tokens, the rule of thumb.
    """

    matmuls: float
    attention: float
    recomputed: float
    extra: float
    dense: float
    causal: float
    six_nd: float

    @property
    def hardware(self) -> float:
        """All that is computed."""
        return self.matmuls + self.attention + self.recomputed + self.extra


def count(shape: shapes.Shape) -> Flops:
    """The FLOPs of one step of `shape`.

    >>> shape = shapes.Shape(vocab=50304, embed=4096, layers=32, heads=32, kv_heads=32,
    ...     head_dim=128, mlp=11008, length=2048, rows=2)
    >>> round(count(shape).dense / 1e12, 2)
    177.41
    """
    tokens, width = shape.step_tokens, shape.heads * shape.head_dim
    weights = shape.layer_params + shape.head_params
    # Of a frozen matrix there is no gradient: two products and not three.
    matmuls = 6.0 * weights * tokens
    if shape.adapter is not None:
        matmuls = (4.0 * weights + 6.0 * shape.trained_params) * tokens
    full = 4.0 * shape.layers * width * shape.length * tokens
    seen = 4.0 * width * _keys(shape) * tokens
    recomputed = 2.0 * shape.recomputed * tokens
    if shape.remat != "none":
        recomputed += seen
    attention = 3.5 * seen
    trained = matmuls + attention + recomputed
    extra = (shape.passes.trained - 1) * trained
    extra += shape.passes.forward * (2.0 * weights * tokens + seen)
    return Flops(
        matmuls,
        attention,
        recomputed,
        extra,
        dense=matmuls + 3 * full,
        causal=matmuls + 3 * seen,
        six_nd=6.0 * shape.params * tokens,
    )


def block_share(shape: shapes.Shape) -> float:
    """Of all blocks of causal attention, those that are not masked as a whole.

    Splash attention computes them in full; its blocks are 512 wide where that divides
    the length, else 256 or 128 (`models/attention.py`).
    """
    widths = (size for size in (512, 256, 128) if shape.length % size == 0)
    count = shape.length // next(widths, shape.length)
    return (count + 1) / (2 * count)


def overheads(shape: shapes.Shape, mesh: Mapping[str, int]) -> dict[str, float]:
    """What the step of `jaxlab train` computes on a TPU beside `count`, by reason.

    Attention: blocks on the diagonal are computed whole, and the backward pass is two
    kernels that both compute the scores, 3.5 forward passes and not 2.5. Loss: logits
    in blocks are computed again (`core/factored_logits.py`).
    """
    seen = 4.0 * shape.heads * shape.head_dim * _keys(shape) * shape.step_tokens
    forward = 1 + (shape.remat != "none")
    attention = 0.0
    if not shape.window:
        attention = seen * (2 * block_share(shape) * (forward + 3.5) - forward - 2.5)
    again = loss_blocks(shape, mesh) > 1
    loss = 2.0 * shape.head_params * shape.step_tokens if again else 0.0
    trained = shape.passes.trained
    extra = shape.passes.forward * seen * (2 * block_share(shape) - 1)
    return {"attention": attention * trained + extra, "loss": loss * trained}


def loss_blocks(shape: shapes.Shape, mesh: Mapping[str, int]) -> int:
    """How many blocks `core/factored_logits.py` cuts a microbatch's logits into."""
    rows = shapes.device_share(shape, mesh) / mesh["tensor"]
    return math.ceil(4 * rows * shape.length * shape.vocab / shape.loss_block_bytes)


def _keys(shape: shapes.Shape) -> float:
    """Keys that a token sees on average, summed over layers."""
    half = shape.length / 2
    if not shape.window or shape.window >= shape.length:
        return shape.layers * half
    near = shape.window - shape.window**2 / (2 * shape.length)
    return shape.full_layers * half + (shape.layers - shape.full_layers) * near
