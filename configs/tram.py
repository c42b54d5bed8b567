"""TRAM and what it is compared with: fine-tune on one domain, look at the others.

    jaxlab train --config=configs/tram.py:tram_theta --workdir=runs/theta \\
        --config.data.source=TEXT --config.data.weights.DOMAIN=1 --config.init_from=RUN

TEXT is a folder with a subfolder (or NAME.train.jsonl) a domain, RUN a pre-trained run;
its tokenizer comes along. Every variant is a row of the tables of Sherborne et al. 2023
(arXiv:2310.03646), with the settings of its appendix B; `tiny` is `tram_theta` on the
embedded text, from scratch: about a minute on two CPU cores. `jaxlab tram` runs all of
them with several seeds and compares.

    variant        a step is
    sgd, adam      the optimizer alone
    sam            a climb of 0.05 along the gradient
    asam           a climb of 0.5, scaled by the parameters
    fsam           a climb of 0.1, scaled by the inverse Fisher information
    trpo           Adam, and 0.1 KL from the step before
    r3f, r4f       Adam, and 0.1 symmetric KL under noise of 0.1; r4f: normalised head
    mesa           Adam, and 0.1 KL from an average of decay 0.999
    tram_theta     a climb as far as the answers moved in the last step
    tram_theta0    ... since the start
    tram_ema       ... from an average (only in the released code)
    tram_x         ... under noise of 0.1 on the input (sigma is not in the paper)
    tram_fisher    fsam with Fisher information under that noise
"""

import ml_collections

from jaxlab.systems import trust_methods
from jaxlab.systems.olmo import config as olmo_config

VARIANTS = trust_methods.variants()


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    config = olmo_config.pretraining()
    config.steps = 200
    # Chosen here: the model of `jaxlab ablate pool --size small`, whose runs start it.
    config.model.update(
        {
            "embed": 128, "layers": 4, "heads": 4, "mlp": 512, "length": 256,
            "tied": not trust_methods.ROWS[VARIANTS[variant]].normalized_head,
            "dtype": "float32",
        }
    )  # fmt: skip
    config.data.update({"length": 256, "batch_size": 8, "vocab_size": 4096})
    # The paper fine-tunes with betas (0.9, 0.99), warm-up for a fifth, then decays.
    config.optim.update(
        {
            "learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 40,
            "warmup_start": 0.0, "final": 0.0, "beta2": 0.99, "epsilon": 1e-8,
            "weight_decay": 0.0,
        }
    )  # fmt: skip
    trust_methods.choose(config, VARIANTS[variant])
    config.run.update({"save_every": 100, "eval_every": 100})
    if variant == "tiny":
        config.model.update({"embed": 64, "layers": 2, "mlp": 256, "length": 128})
        config.data.update(
            {
                "source": "embedded", "max_bytes_per_domain": 200_000,
                "vocab_size": 1024, "length": 128,
            }
        )  # fmt: skip
        config.optim.learning_rate = 1e-2
        config.eval_batches = 4
    return config
