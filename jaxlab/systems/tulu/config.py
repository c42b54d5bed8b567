"""The configs of `tulu.sft`, `tulu.dpo`, `tulu.kto` and `tulu.reward`.

Values are those of TULU 2 (Ivison et al. 2023, arXiv:2311.10702), where it says them.
`model` holds the sizes that a plan needs; a run has those of `init_from`, and compares.
"""

from typing import Any

import ml_collections

from jaxlab.systems import sections


def instruction() -> ml_collections.ConfigDict:
    """The config of instruction tuning, `tulu.sft`; set the rate."""
    return ml_collections.ConfigDict(
        {
            **_tuning("tulu.sft", epochs=2.0, warmup=0.03),
            "z_loss": 0.0,
            "data": {
                **sections.conversations(),
                "packed": False,  # several per row, which do not see each other
            },
            "trust": sections.trust(),
        }
    )


def preferences() -> ml_collections.ConfigDict:
    """The config of preference tuning, `tulu.dpo`; set the rate. Batches are pairs."""
    return ml_collections.ConfigDict(
        {
            **_tuning("tulu.dpo", epochs=3.0, warmup=0.1),
            "data": {
                **sections.conversations(batch_size=32),
                "last_only": True,  # EasyLM's; False: all answers of a pair count
            },
            "preference": {
                "loss": "sigmoid",  # or a sum; see objectives/pair_losses.py
                "beta": 0.1,
                "label_smoothing": 0.0,
                "target_margin": 0.0,  # of simpo its gamma / beta
                "divergence": "reverse_kl",  # or forward_kl, js, alpha
                "divergence_alpha": 0.5,  # of alpha
                "tail_weight": 1.0,  # of what an answer is longer than the other one
                "nll_weight": -1.0,  # of the chosen answers' cross-entropy; -1: its own
                "temperature": 0.05,  # of discopop
                "chunks": 1,  # parts of a batch, for losses that need the whole one
                # Its log-probabilities are computed "before" the run, or in every
                # "step".
                "reference": "before",
                "cache": "",  # where they are kept; "" is the user's cache folder
            },
        }
    )


def judgements() -> ml_collections.ConfigDict:
    """The config of tuning on judged answers, `tulu.kto`; set the rate."""
    return ml_collections.ConfigDict(
        {
            **_tuning("tulu.kto", epochs=1.0, warmup=0.1),
            "data": sections.conversations(batch_size=32),
            "preference": {
                "loss": "kto",  # or apo_zero_unpaired
                "beta": 0.1,
                "desirable_weight": 1.0,  # of good answers
                "undesirable_weight": 1.0,  # of bad ones
                "chunks": 1,  # parts of a batch, which has to be whole for kto's KL
                # Its log-probabilities are computed "before" the run, or in every
                # "step".
                "reference": "before",
                "cache": "",  # where they are kept; "" is the user's cache folder
            },
        }
    )


def rewards() -> ml_collections.ConfigDict:
    """The config of reward models, `tulu.reward`; set the rate. Batches are pairs."""
    config = _tuning("tulu.reward", epochs=1.0, warmup=0.03)
    config["optim"].final = 0.1
    del config["adapter"]  # the score's head is tuned, too: all parameters are
    return ml_collections.ConfigDict(
        {
            **config,
            "data": sections.conversations(batch_size=64),
            "reward": {
                "margin": 0.0,  # of every pair, beside the one that its row has
                "center": 0.0,  # weight of the squared sum of both scores; TRL's 0.01
            },
        }
    )


def _tuning(system: str, *, epochs: float, warmup: float) -> dict[str, Any]:
    return {
        "system": system,  # what is trained
        "seed": 0,  # of everything random
        "steps": 0,  # updates in all; 0: `epochs` says
        "epochs": epochs,  # of the data, where `steps` is 0
        "warmup": warmup,  # share of the steps, where `optim.warmup_steps` is 0
        "micro_batches": 1,  # parts of a batch that are computed one by one
        "init_from": "",  # a run directory or a Hugging Face folder
        "eval_batches": 0,  # of the held-out examples; 0 takes all
        # Llama's. Its length is that of init_from, or of the rows if they are longer.
        "model": sections.decoder(norm="rmsnorm", initializer="normal"),
        "adapter": sections.adapter(),
        "optim": sections.optim(
            schedule="linear",
            warmup_start=0.0,
            final=0.0,
            epsilon=1e-8,
            weight_decay=0.0,
        ),
        "mesh": sections.mesh(),
        "run": sections.run(),
    }
