"""Models that are only planned here: Llama's largest, for `jaxlab plan`.

    jaxlab plan --config=configs/scale.py:llama_70b --topology=v5p:4x8x8

answers at once whether 256 chips hold it and how long it takes. To train one, set
`--config.data.source` as for `configs/olmo.py`. Batches and steps are chosen here; the
mesh is the smallest `fsdp` that fits the chips named.

    variant       parameters         mesh for     from
    llama_70b     68,976,648,192     v5p:4x8x8    Llama 2 (2307.09288), official config
    llama_405b    405,853,388,800    v5p:8x16x16  Llama 3.1 (2407.21783), table 3
"""

import ml_collections

from jaxlab.systems.olmo import config as olmo_config

VARIANTS = ("llama_70b", "llama_405b")


def get_config(variant: str = "llama_70b") -> ml_collections.ConfigDict:
    config = olmo_config.pretraining()
    config.model.update({"norm": "rmsnorm", "initializer": "normal", "remat": "full"})
    config.optim.update({"warmup_start": 0.0, "epsilon": 1e-8})
    {"llama_70b": _llama_70b, "llama_405b": _llama_405b}[variant](config)
    config.model.length = config.data.length
    return config


def _llama_70b(config) -> None:
    config.steps = 953_674  # 2e12 tokens of 512 x 4096
    config.model.update(
        {
            "vocab": 32_000, "embed": 8192, "layers": 80, "heads": 64, "kv_heads": 8,
            "mlp": 28_672,
        }
    )  # fmt: skip
    config.data.update({"length": 4096, "batch_size": 512})
    config.optim.update({"learning_rate": 1.5e-4, "warmup_steps": 2000})
    config.mesh.update({"fsdp": 64})


def _llama_405b(config) -> None:
    config.steps = 1_200_000  # the published length of its longest stage
    config.model.update(
        {
            "vocab": 128_256, "embed": 16_384, "layers": 126, "heads": 128,
            "kv_heads": 8, "mlp": 53_248,
        }
    )  # fmt: skip
    config.model.rope.theta = 500_000.0
    config.data.update({"length": 4096, "batch_size": 2048})
    config.optim.update({"learning_rate": 8e-5, "warmup_steps": 8000})
    config.mesh.update({"fsdp": 256})
