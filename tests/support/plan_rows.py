"""What `jaxlab plan` is compared with: published speeds, and memory as compiled.

MFU: MaxText's tables for one slice (github.com/AI-Hypercomputer/maxtext,
MaxText/configs/{v4,v5e,v5p}/README.md and, for v6e, the Trillium training recipes), in
its "dense" convention; sizes, batches, meshes and remat from the scripts beside them
and from benchmarks/maxtext_trillium_model_configs.py. The v4 rows are of the time of a
two-matrix MLP and heads of 256: only with these are the models 22B and 52B.

Memory: peaks of XLA:TPU (libtpu 0.0.42.1 and 0.0.52) for a plain scanned decoder with
f32 AdamW, measured before this code existed. `block` is how many positions of a row
have their logits alive in the loss; None: all. Those of TRUE_PEAKS are of our own step,
as `jaxlab plan --aot` compiled it (libtpu 0.0.42.1).
"""

from typing import NamedTuple

from jaxlab import plan

_SCALED = {"vocab": 32_000, "head_dim": 128, "length": 2048}


def _decoder(embed, layers, heads, mlp, kv_heads=None, **more):
    sizes = {"embed": embed, "layers": layers, "heads": heads, "mlp": mlp}
    return {**_SCALED, **sizes, "kv_heads": kv_heads or heads, **more}


_V4 = {"head_dim": 256, "mlp_matrices": 2}
_B22 = _decoder(6144, 48, 24, 24_576, **_V4)
_B52 = _decoder(12_288, 32, 32, 49_152, **_V4)
_B16 = _decoder(4096, 32, 64, 28_672)
_B32 = _decoder(8192, 32, 64, 28_672)
_B64 = _decoder(8192, 64, 64, 28_672)
_B128 = _decoder(8192, 64, 128, 57_344)
_LLAMA_70B = _decoder(8192, 80, 64, 28_672, 8, length=4096)
_LLAMA_8B = _decoder(4096, 32, 32, 14_336, 8, length=8192, vocab=128_256)
_LLAMA_3_70B = {**_LLAMA_70B, "length": 8192, "vocab": 128_256}


class Speed(NamedTuple):
    """A published run: rows a chip, and the share of peak that it reached."""

    topology: str
    mesh: dict
    sizes: dict
    remat: str
    rows: int
    reached: float

    @property
    def name(self):
        return f"{self.topology} {self.sizes['embed']}x{self.sizes['layers']}"

    def plan(self):
        topology = plan.parse(self.topology)
        rows = self.rows * topology.chips
        shape = plan.Shape(**self.sizes, remat=self.remat, rows=rows)
        return plan.estimate(shape, topology, self.mesh)


SPEEDS = [
    Speed("v4:4x4x4", {"fsdp": 64}, _B22, "full", 13, 56.7),
    Speed("v4:4x6x8", {"fsdp": 192}, _B52, "full", 7, 56.0),
    Speed("v5e:16x16", {"fsdp": 256}, _B16, "full", 6, 61.1),
    Speed("v5e:16x16", {"fsdp": 256}, _B32, "full", 4, 66.9),
    Speed("v5e:16x16", {"fsdp": 256}, _B64, "full", 2, 59.9),
    Speed("v5e:16x16", {"fsdp": 16, "tensor": 16}, _B128, "qkv", 1, 56.1),
    Speed("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, _B32, "dots", 7, 71.5),
    Speed("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, _B64, "dots", 3, 70.3),
    Speed("v5p:4x4x8", {"fsdp": 16, "tensor": 8}, _B128, "dots", 1, 68.7),
    # Its policy saves all dots but gate and up, which is what "qkvo" repeats.
    Speed("v5p:4x8x8", {"fsdp": 256}, _LLAMA_70B, "qkvo", 4, 65.4),
    Speed("v6e:16x16", {"fsdp": 256}, _LLAMA_70B, "qkv", 2, 43.8),
    Speed("v6e:16x16", {"fsdp": 256}, _LLAMA_8B, "qkvo", 4, 45.5),
    Speed("v6e:16x16", {"fsdp": 256}, _LLAMA_3_70B, "qkv", 4, 50.3),
]  # fmt: skip

_7B = _decoder(4096, 32, 32, 11_008, vocab=50_304)
_1B = _decoder(2048, 16, 16, 8192, vocab=50_304, tied=True)


class Peak(NamedTuple):
    """A compiled step: rows a chip, its state and its peak in GiB."""

    topology: str
    mesh: dict
    sizes: dict
    remat: str
    rows: int
    block: int | None
    state: float
    peak: float
    slices: int = 1

    def plan(self):
        topology = plan.parse(self.topology, self.slices)
        positions = self.block or self.sizes["length"]
        shape = plan.Shape(
            **self.sizes,
            remat=self.remat,
            rows=self.rows * topology.chips,
            loss_block_bytes=4 * self.rows * positions * self.sizes["vocab"],
        )
        return plan.estimate(shape, topology, self.mesh)


PEAKS = [
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 5.36),
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "full", 2, 512, 1.20, 4.26),
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "qkvo", 2, 512, 1.20, 8.26),
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "dots", 2, 512, 1.20, 13.63),
    Peak("v4:4x4x4", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 5.34),
    Peak("v5p:4x4x4", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 5.34),
    Peak("v6e:8x8", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 4.73),
    Peak("v5p:4x4x4", {"data": 4, "fsdp": 16}, _7B, "full", 2, None, 4.81, 10.67),
    Peak("v5e:16x16", {"data": 16, "fsdp": 16}, _7B, "full", 8, 512, 4.81, 13.60),
    Peak("v5e:16x16", {"fsdp": 256}, _7B, "full", 8, 512, 0.30, 7.06),
    Peak("v5e:4x4", {"fsdp": 16}, _1B, "full", 8, 512, 0.82, 4.29),
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 5.76, slices=2),
    Peak("v5p:4x8x8", {"fsdp": 256}, _LLAMA_70B, "full", 2, 512, 3.01, 19.7),
    Peak("v5p:4x8x8", {"data": 16, "fsdp": 16}, _LLAMA_70B, "full", 2, 512, 48.2, 86.7),
    # With its layers unrolled and not scanned.
    Peak("v5e:8x8", {"fsdp": 64}, _7B, "full", 2, None, 1.20, 4.60),
]

# A plain decoder of 405B on v5p:8x16x16 with fsdp=2048 is not among them: 35.7 GiB were
# needed, where our own step, which reduces each matrix's gradient at once, needs 30.5.


class TruePeak(NamedTuple):
    """Our own step, compiled: its config, where, rows of a batch, and its peak in GiB.

    A peak of None did not fit.
    """

    config: str
    topology: str
    mesh: dict
    rows: int
    peak: float | None
    slices: int = 1

    @property
    def name(self):
        axes = ",".join(f"{axis}={size}" for axis, size in self.mesh.items())
        return f"{self.config} {self.slices}x{self.topology} {axes} {self.rows}"


_D4, _D16 = {"data": 4, "fsdp": 16}, {"data": 16, "fsdp": 16}
_WHOLE, _EIGHT, _POD = {"fsdp": 256}, {"data": 2, "fsdp": 8}, {"data": 8, "fsdp": 256}
TRUE_PEAKS = [
    TruePeak("tulu.py:sft_7b", "v5p:4x4x4", _D4, 128, 14.07),
    TruePeak("tulu.py:sft_7b", "v5e:8x8", _D4, 128, 13.41),
    TruePeak("tulu.py:dpo_7b", "v5p:4x4x4", _D4, 64, 14.07),
    TruePeak("tulu.py:dpo_7b", "v5e:4x8", {"fsdp": 32}, 32, 10.89),
    TruePeak("tulu.py:dpo_70b", "v5p:4x8x8", {"data": 4, "fsdp": 64}, 256, 44.79),
    TruePeak("olmo.py:1b", "v4:2x2x4", _EIGHT, 128, 5.02),
    TruePeak("olmo.py:1b", "v5e:4x4", _EIGHT, 128, 4.85),
    TruePeak("olmo.py:1b", "v5p:2x2x4", _EIGHT, 128, 5.17),
    TruePeak("olmo.py:1b", "v6e:4x4", _EIGHT, 128, 5.01),
    TruePeak("olmo.py:1b", "v5e:4x4", _EIGHT, 256, 4.98, 2),
    TruePeak("olmo.py:1b", "v6e:4x4", _EIGHT, 256, 5.23, 2),
    TruePeak("olmo.py:7b", "v4:4x4x4", _D4, 512, 13.99),
    TruePeak("olmo.py:7b", "v5e:8x8", _D4, 512, 13.50),
    TruePeak("olmo.py:7b", "v5e:8x8", {"fsdp": 64}, 128, 3.76),
    TruePeak("olmo.py:7b", "v5e:16x16", _D16, 2048, 13.50),
    TruePeak("olmo.py:7b", "v5p:4x4x4", _D4, 512, 14.23),
    TruePeak("olmo.py:7b", "v6e:8x8", _D4, 512, 13.77),
    TruePeak("olmo.py:7b", "v6e:16x16", _WHOLE, 2048, 7.31),
    TruePeak("olmo.py:7b", "v4:4x4x4", _D4, 1024, 14.08, 2),
    TruePeak("olmo.py:7b", "v5e:8x8", {"fsdp": 64}, 256, 4.50, 2),
    TruePeak("olmo.py:7b", "v5e:16x16", _D16, 4096, 13.50, 2),
    TruePeak("olmo.py:7b", "v5p:4x4x4", _D4, 256, 9.65, 2),
    TruePeak("olmo.py:7b", "v6e:8x8", _D4, 1024, 14.25, 2),
    TruePeak("scale.py:llama_70b", "v4:4x8x8", {"data": 4, "fsdp": 64}, 512, None),
    TruePeak("scale.py:llama_70b", "v5e:16x16", _WHOLE, 256, 14.08),
    TruePeak("scale.py:llama_70b", "v5e:16x16", _WHOLE, 512, None),
    TruePeak("scale.py:llama_70b", "v5p:4x8x8", {"data": 4, "fsdp": 64}, 512, 32.00),
    TruePeak("scale.py:llama_70b", "v5p:4x8x8", _WHOLE, 512, 18.93),
    TruePeak("scale.py:llama_70b", "v6e:16x16", _WHOLE, 256, 13.24),
    TruePeak("scale.py:llama_70b", "v6e:16x16", _WHOLE, 512, 18.82),
    TruePeak("scale.py:llama_70b", "v6e:16x16", {"data": 2, "fsdp": 128}, 512, 22.82),
    TruePeak("scale.py:llama_70b", "v5e:16x16", _WHOLE, 512, 13.69, 2),
    TruePeak("scale.py:llama_70b", "v6e:16x16", _WHOLE, 512, 12.50, 2),
    TruePeak(
        "scale.py:llama_70b", "v5e:16x16", {"fsdp": 128, "tensor": 2}, 512, 12.35, 2
    ),
    TruePeak("scale.py:llama_405b", "v4:8x16x16", _POD, 2048, None),
    TruePeak("scale.py:llama_405b", "v5p:8x16x16", _POD, 2048, 50.51),
    TruePeak("scale.py:llama_405b", "v5p:8x16x16", {"fsdp": 2048}, 2048, 30.52),
    TruePeak("scale.py:llama_405b", "v6e:16x16", _WHOLE, 2048, None, 2),
    TruePeak(
        "scale.py:llama_405b", "v5p:8x8x16", {"data": 4, "fsdp": 256}, 2048, 50.19, 2
    ),
]
