"""TULU: instruction tuning and preference optimisation of a model that exists.

    jaxlab train --config=configs/tulu.py:sft_7b --workdir=runs/sft \\
        --config.init_from=LLAMA2_7B --config.data.source=tulu_v2.jsonl
    jaxlab train --config=configs/tulu.py:dpo_7b --workdir=runs/dpo \\
        --config.init_from=runs/sft --config.data.source=ultrafeedback.jsonl

LLAMA2_7B is a Hugging Face folder, or a run of `jaxlab train`; data is as published
(`data/examples/conversations.py` reads messages, ShareGPT's, Alpaca's, prompts with
completions or with chosen and rejected answers). `jaxlab plan` takes the sizes below; a
run compares them with its start, and `--config.model.embed=0` takes those of any start.
A run is a run directory like others: evaluate it, generate, merge, export it.

    variant            from                                   batch, length, epochs
    tiny, tiny_dpo,    chosen here: seconds on a laptop       8 (4 pairs), 256, 1
    tiny_kto, tiny_reward
    tulu1_7b           Wang et al. 2023 (2306.04751)          128, 2048, 2
    sft_7b, _13b, _70b Ivison et al. 2023 (2311.10702)        128, 8192, 2
    dpo_7b, _13b, _70b the same                               32 pairs, 8192, 3
    kto_7b, _13b       Ethayarajh et al. 2024 (2402.01306)    32, 2048, 1
    reward_7b, _13b    Miranda et al. 2024 (2410.19133)       64 pairs, 4096, 1

TULU 2's mixture has 326,154 conversations (5,096 steps), UltraFeedback's binarised
pairs are about 61,000 (5,700 steps).
"""

import ml_collections

from jaxlab.systems.tulu import config as tulu_config

_SIZES = {  # Llama 2 (2307.09288)
    "7b": {"embed": 4096, "layers": 32, "heads": 32, "mlp": 11_008},
    "13b": {"embed": 5120, "layers": 40, "heads": 40, "mlp": 13_824},
    "70b": {"embed": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "mlp": 28_672},
}
_FSDP = {"7b": 16, "13b": 16, "70b": 64}  # chosen here: fits chips of 32 GB and more
VARIANTS = (
    "tiny", "tiny_dpo", "tiny_kto", "tiny_reward", "tulu1_7b",
    "kto_7b", "kto_13b", "reward_7b", "reward_13b",
    *(f"{stage}_{size}" for stage in ("sft", "dpo") for size in _SIZES),
)  # fmt: skip


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    stages = {"sft": _sft, "dpo": _dpo, "kto": _kto, "reward": _reward}
    stages["tulu1"] = _tulu1
    stage, _, size = variant.partition("_")
    if stage == "tiny":
        return _tiny(stages[size or "sft"]())
    config = stages[stage]()
    config.model.update({"vocab": 32_000, "remat": "full", **_SIZES[size]})
    if stage == "tulu1":
        config.model.norm_epsilon = 1e-6  # Llama 1's
    if stage == "sft" and size == "70b":
        config.optim.learning_rate = 1e-5
    config.mesh.fsdp = _FSDP[size]
    return config


def _sft() -> ml_collections.ConfigDict:
    config = tulu_config.instruction()
    config.optim.learning_rate = 2e-5
    return config


def _dpo() -> ml_collections.ConfigDict:
    config = tulu_config.preferences()
    config.optim.learning_rate = 5e-7
    return config


def _kto() -> ml_collections.ConfigDict:
    config = tulu_config.judgements()
    config.optim.learning_rate = 5e-7
    config.data.length = 2048
    return config


def _reward() -> ml_collections.ConfigDict:
    config = tulu_config.rewards()
    config.optim.learning_rate = 1e-5
    config.data.length = 4096
    return config


def _tulu1() -> ml_collections.ConfigDict:
    config = _sft()
    config.optim.update({"beta2": 0.999, "clip_norm": 0.0})  # none
    config.data.length = 2048
    return config


def _tiny(config) -> ml_collections.ConfigDict:
    is_sft = config.system == "tulu.sft"
    is_dpo = "preference" in config
    config.epochs = 1.0
    config.optim.learning_rate = 1e-4 if is_dpo else 1e-3
    config.model.dtype = "float32"
    config.data.update(
        {"length": 256, "batch_size": 8 if is_sft else 4, "held_out_fraction": 0.05}
    )
    config.run.update({"save_every": 50, "eval_every": 50})
    return config
