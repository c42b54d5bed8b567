"""What distinguishes one decoder from another: `TransformerConfig`."""

import dataclasses
import math
from typing import ClassVar

import jax

from jaxlab.core import errors, ranges, value_types
from jaxlab.models import attention
from jaxlab.models import rope as rope_lib

REMAT = ("none", "full", "dots", "qkvo")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one decoder from another. Sizes use the legend's words.

    Attributes:
        vocab: rows of the embedding, padding included.
        norm: "layernorm" (no weight, no bias: OLMo 1) or "rmsnorm".
        norm_position: "pre" (OLMo 1, Llama) or "post" (OLMo 2, 3: on the outputs).
        qk_norm: RMSNorm over the whole q and k projections (OLMo 2, 3).
        clip_qkv: bound on |q|, |k|, |v| after projection, or None.
        window: key reach of sliding layers, the query included, or None.
        full_layers: indices of the layers without a window; only with `window`.
        rope, window_rope: positions of full layers and of sliding layers.
        tied: the output head is the embedding.
        is_causal: False makes an encoder.
        head: what is read of it: "tokens" (a `Decoder`) or "score" (a `Scorer`).
        length: longest row that the model was trained for.
        initializer: "mitchell" (OLMo 1: 1/sqrt(width), deeper layers smaller) or
            "normal" (std `initializer_std`, cut at 3 std).
        dtype: of activations and of matmul operands; parameters stay f32.
        attention: "auto", or one of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes: "none", "full" (all), "dots" (all but
            matmul outputs), "qkvo" (all but the attention projections).
        scan: layers as a `lax.scan` (fast to compile) or unrolled (5 % faster on CPU).
        fuse_projections: q|k|v and gate|up each as one matmul; None = only on CPU,
            where it pays and where no tensor axis would have to be regrouped.
        loss_block_bytes: logits a device holds at once in `Decoder.token_logps`.
        eos_id, pad_id, bos_id: token ids that travel with published checkpoints; a
            tuple of several.
        FREE: fields that change no number, but in rounding: how it is computed.
        UNTIED: fields that trained parameters do not depend on: models that differ in
            them can be merged. Rotary positions have no weights, so `length` is one.
    """

    FREE: ClassVar[tuple[str, ...]] = (
        "dtype", "attention", "remat", "scan", "fuse_projections", "loss_block_bytes",
    )  # fmt: skip
    UNTIED: ClassVar[tuple[str, ...]] = (
        *FREE, "initializer", "initializer_std", "length", "eos_id", "pad_id", "bos_id",
    )  # fmt: skip

    vocab: int
    embed: int
    layers: int
    heads: int
    mlp: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-5
    norm_position: str = "pre"
    qk_norm: bool = False
    clip_qkv: float | None = None
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    rope: rope_lib.Rope = dataclasses.field(default_factory=rope_lib.Rope)
    window_rope: rope_lib.Rope | None = None
    tied: bool = False
    is_causal: bool = True
    head: str = "tokens"
    length: int = 2048
    initializer: str = "normal"
    initializer_std: float = 0.02
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True
    fuse_projections: bool | None = None
    loss_block_bytes: int = 512 * 2**20
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | tuple[int, ...] | None = None
    bos_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        """Fills in what follows from the rest, and refuses what does not fit."""
        sizes = ("vocab", "embed", "heads", "mlp", "length")
        kinds = dict.fromkeys(sizes, value_types.SIZE)
        value_types.check_fields(self, kinds | {"layers": value_types.LAYERS})
        ranges.check("model.", vars(self), _RANGES)
        fill = object.__setattr__
        fill(self, "kv_heads", self.kv_heads or self.heads)
        fill(self, "head_dim", self.head_dim or self.embed // self.heads)
        fill(self, "full_layers", tuple(self.full_layers))
        if self.window is not None and self.window_rope is None:
            fill(self, "window_rope", self.rope)
        if self.heads % self.kv_heads:
            raise errors.ArgumentError(
                f"{self.heads} heads do not share {self.kv_heads} kv_heads evenly"
            )
        if self.head_dim % 2:
            raise errors.ArgumentError(
                f"head_dim {self.head_dim} is odd, with heads {self.heads} of embed "
                f"{self.embed}; rope needs it even"
            )
        if self.window is not None and self.window < 1:
            raise errors.ArgumentError(
                f"window {self.window} sees nothing; it counts the query"
            )
        if self.window is None and self.full_layers:
            raise errors.ArgumentError(
                "full_layers without a window: every layer is full then"
            )
        if odd := [i for i in self.full_layers if not 0 <= i < self.layers]:
            raise errors.ArgumentError(
                f"full_layers {odd} are not among {self.layers} layers"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise errors.ArgumentError(
                    f"{name} {getattr(self, name)!r}; use one of {choices}"
                )

    def resolve(self, platform: str | None = None) -> "TransformerConfig":
        """The config with every "auto" settled for a platform (default: this one)."""
        attend, fuse = self.attention, self.fuse_projections
        if attend == "auto" or fuse is None:  # else no device is asked for
            platform = platform or jax.default_backend()
        if attend == "auto":
            attend = attention.default_implementation(platform)
        if fuse is None:
            fuse = platform == "cpu"
        return dataclasses.replace(self, attention=attend, fuse_projections=fuse)

    def describe(self) -> str:
        """How this process will compute it; what "auto" came to is never silent."""
        chosen = self.resolve()
        fused = "fused" if chosen.fuse_projections else "separate"
        return (
            f"attention {chosen.attention} ({self.attention}), {fused} projections, "
            f"remat {self.remat}, {'scanned' if self.scan else 'unrolled'} layers, "
            f"{self.dtype}"
        )

    def flops_per_token(self, length: int, *, causal: bool = False) -> float:
        """Forward + backward FLOPs per token: 6 N_matmul + 12 N H C L (half if causal).

        N_matmul leaves out the embedding look-up; recomputation is not counted.
        """
        D, C = self.embed, self.head_dim
        layer = 2 * D * C * (self.heads + self.kv_heads) + 3 * D * self.mlp
        matmul = self.layers * layer + D * self.vocab
        attend = 12 * self.layers * self.heads * C * length
        return 6 * matmul + (attend / 2 if causal else attend)


_RANGES = {
    **dict.fromkeys(("norm_epsilon", "initializer_std"), ranges.AT_LEAST_0),
    **dict.fromkeys(("kv_heads", "head_dim"), ranges.AT_LEAST_0),
    "clip_qkv": ranges.ABOVE_0,
    **dict.fromkeys(
        ("vocab", "embed", "layers", "heads", "mlp", "length", "window"),
        ranges.Range("at most 2^31 - 1", -math.inf, 2.0**31 - 1),  # positions' type
    ),
}
_CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "norm_position": ("pre", "post"),
    "head": ("tokens", "score"),
    "initializer": ("mitchell", "normal"),
    "dtype": ("float32", "bfloat16", "float16"),
    "attention": ("auto", *attention.IMPLEMENTATIONS),
    "remat": REMAT,
}
