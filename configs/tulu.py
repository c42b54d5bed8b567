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
    tulu1_7b, _13b     Wang et al. 2023 (2306.04751)          128, 2048, 2
    tulu1_30b, _65b    the same                               128, 1024, 2
    sft_7b, _13b, _70b Ivison et al. 2023 (2311.10702)        128, 8192, 2
    dpo_7b, _13b, _70b the same                               32 pairs, 8192, 3
    code_7b, _13b, _34b the same, from Code Llama             128, 8192, 2
    lora_7b, _13b, _70b open-instruct's adapters, rank 64     128, 4096, 5
    qlora_ the same    ... beside a base of 4 bits
    olmo_sft_7b        OLMo 1's (2402.00838), open-instruct   128, 2048, 3
    olmo_dpo_7b        the same                               32 pairs, 2048, 3
    kto_7b, _13b       Ethayarajh et al. 2024 (2402.01306)    32, 2048, 1
    reward_7b, _13b    Miranda et al. 2024 (2410.19133)       64 pairs, 4096, 1

TULU 2's mixture has 326,154 conversations (5,096 steps), UltraFeedback's binarised
pairs are about 61,000 (5,700 steps).
"""

import ml_collections

from jaxlab.systems.tulu import config as tulu_config

_SIZES = {  # Llama 2 (2307.09288); 30b, 65b: Llama 1 (2302.13971)
    "7b": {"embed": 4096, "layers": 32, "heads": 32, "mlp": 11_008},
    "13b": {"embed": 5120, "layers": 40, "heads": 40, "mlp": 13_824},
    "70b": {"embed": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "mlp": 28_672},
    "30b": {"embed": 6656, "layers": 60, "heads": 52, "mlp": 17_920},
    "65b": {"embed": 8192, "layers": 80, "heads": 64, "mlp": 22_016},
    "34b": {"embed": 8192, "layers": 48, "heads": 64, "kv_heads": 8, "mlp": 22_016},
}
# Chosen here: fits chips of 32 GB and more.
_FSDP = {"7b": 16, "13b": 16, "30b": 32, "34b": 32, "65b": 64, "70b": 64}
VARIANTS = (
    "tiny", "tiny_dpo", "tiny_kto", "tiny_reward",
    *(f"tulu1_{size}" for size in ("7b", "13b", "30b", "65b")),
    *(f"code_{size}" for size in ("7b", "13b", "34b")),
    "kto_7b", "kto_13b", "reward_7b", "reward_13b", "olmo_sft_7b", "olmo_dpo_7b",
    *(
        f"{stage}_{size}"
        for stage in ("sft", "dpo", "lora", "qlora")
        for size in ("7b", "13b", "70b")
    ),
)  # fmt: skip


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    stages = {"sft": _sft, "dpo": _dpo, "kto": _kto, "reward": _reward}
    stages |= {"tulu1": _tulu1, "code": _sft, "lora": _lora, "qlora": _qlora}
    stage, _, size = variant.partition("_")
    if stage == "olmo":
        return _olmo(size.removesuffix("_7b"))
    if stage == "tiny":
        return _tiny(stages[size or "sft"]())
    config = stages[stage]()
    config.model.update({"vocab": 32_000, "remat": "full", **_SIZES[size]})
    if stage == "tulu1":
        config.model.norm_epsilon = 1e-6  # Llama 1's
        if size in ("30b", "65b"):
            config.optim.learning_rate = 1e-5
            config.data.length = 1024
    if stage == "code":
        config.model.vocab = 32_000 if size == "34b" else 32_016
        config.model.rope.theta = 1e6
    if stage == "sft" and size == "70b":
        config.optim.learning_rate = 1e-5
    config.mesh.fsdp = _FSDP[size]
    return config


def _sft() -> ml_collections.ConfigDict:
    config = tulu_config.instruction()
    config.optim.learning_rate = 2e-5
    return config


def _lora() -> ml_collections.ConfigDict:
    config = _sft()
    config.optim.learning_rate = 1e-4
    config.data.length, config.epochs = 4096, 5.0
    config.adapter.update({"rank": 64, "alpha": 16.0, "dropout": 0.1})
    return config


def _qlora() -> ml_collections.ConfigDict:
    config = _lora()
    config.adapter.base = "nf4"
    return config


def _olmo(stage) -> ml_collections.ConfigDict:
    """OLMo 1 has no token in front: its end of text stands there."""
    config = _sft() if stage == "sft" else _dpo()
    config.optim.learning_rate = 2e-6 if stage == "sft" else 5e-7
    config.data.update({"length": 2048, "begin": "eos"})
    config.epochs, config.mesh.fsdp = 3.0, 16
    config.model.update({"vocab": 50_304, "remat": "full", **_SIZES["7b"]})
    config.model.update({"norm": "layernorm", "initializer": "mitchell"})
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
