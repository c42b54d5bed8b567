"""OLMo pre-training. Numbers from OLMo's published configs and paper.

    jaxlab train --config=configs/olmo.py:tiny --workdir=runs/tiny

On two CPU cores `:tiny` takes about a minute, tokenizer included, and ends near a loss
of 4; on a TPU pod set `--config.data.source` to your text or `--config.data.files` to
token files. `jaxlab train --config=configs/olmo.py:1b` needs at least 16 accelerators.

    variant    parameters       tokens    from
    tiny       0.3 M            0.2 M     chosen here: seconds on a laptop
    1b         1,176,764,416    3.1 T     Groeneveld et al. 2024 (2402.00838), table 1
    7b         6,888,095,744    2.0 T     the same, tables 1 and 4
    olmo2_7b   7,298,617,344    3.9 T     OLMo 2 (2501.00656), official configs
"""

import ml_collections

from jaxlab.systems.olmo import config as olmo_config

VARIANTS = ("tiny", "1b", "7b", "olmo2_7b")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    config = olmo_config.pretraining()
    {"tiny": _tiny, "1b": _1b, "7b": _7b, "olmo2_7b": _olmo2_7b}[variant](config)
    return config


def _tiny(config) -> None:
    config.steps = 200
    config.model.update(
        {
            "embed": 64, "layers": 2, "heads": 4, "mlp": 256, "length": 128,
            "tied": True, "dtype": "float32",
        }
    )  # fmt: skip
    config.data.update(
        {
            "source": "embedded", "max_bytes_per_domain": 200_000, "vocab_size": 1024,
            "length": 128, "batch_size": 8,
        }
    )  # fmt: skip
    config.optim.update({"learning_rate": 1e-2, "warmup_steps": 20, "epsilon": 1e-8})
    config.run.update({"save_every": 100, "eval_every": 100})
    config.eval_batches = 4


def _1b(config) -> None:
    config.steps = 739_328  # 3.1T tokens
    config.model.update(
        {
            "vocab": 50_304, "embed": 2048, "layers": 16, "heads": 16, "mlp": 8192,
            "tied": True, "remat": "full",
        }
    )  # fmt: skip
    config.optim.update({"learning_rate": 4e-4, "warmup_steps": 2000})
    config.mesh.update({"fsdp": 8})  # smallest that leaves room on 16 GB chips
    config.run.update({"keep_every": 1000})


def _7b(config) -> None:
    config.steps = 476_837  # 2e12 tokens / (2048 x 2048)
    config.model.update(
        {
            "vocab": 50_304, "embed": 4096, "layers": 32, "heads": 32, "mlp": 11_008,
            "remat": "full",
        }
    )  # fmt: skip
    config.optim.update(
        {
            "learning_rate": 3e-4, "schedule": "linear", "warmup_steps": 5000,
            "clip_norm_start": 10.0, "clip_start_steps": 1000,
        }
    )  # fmt: skip
    config.mesh.update({"fsdp": 16})  # fits 256 v5e chips beside 16-fold data
    config.run.update({"keep_every": 1000})


def _olmo2_7b(config) -> None:
    config.steps = 928_646  # stage 1, 3.9T tokens of 1024 x 4096
    config.z_loss = 1e-5
    config.model.update(
        {
            "vocab": 100_352, "embed": 4096, "layers": 32, "heads": 32, "mlp": 11_008,
            "norm": "rmsnorm", "norm_epsilon": 1e-6, "norm_position": "post",
            "qk_norm": True, "length": 4096,
            "initializer": "normal", "remat": "full",
        }
    )  # fmt: skip
    config.model.rope.theta = 500_000.0
    config.data.update({"length": 4096, "batch_size": 1024})
    config.optim.update(
        {
            "learning_rate": 3e-4, "warmup_steps": 2000, "warmup_start": 0.0,
            "schedule_steps": 1_192_093,  # t_max of 5e12 tokens: the run ends before
            "epsilon": 1e-8,
        }
    )  # fmt: skip
    config.mesh.update({"fsdp": 16})
    config.run.update({"keep_every": 1000})
