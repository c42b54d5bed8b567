"""The config of `olmo.pretrain`: every knob of a decoder's training run."""

import ml_collections

from jaxlab.systems import sections


def pretraining() -> ml_collections.ConfigDict:
    """The config of `olmo/pretraining.py:pretrain`; sizes and rates are 0: set them."""
    return ml_collections.ConfigDict(
        {
            "system": "olmo.pretrain",
            "seed": 0,
            "steps": 0,
            "micro_batches": 1,
            "z_loss": 0.0,  # OLMo 1 used none
            "loss_denominator": "labels",  # "olmo" reports OLMo's sum / (B T)
            "init_from": "",  # a run directory or a Hugging Face folder
            "eval_batches": 8,  # held-out batches per domain
            "model": {**sections.decoder(), "length": 2048},
            "data": sections.token_rows(),
            "optim": sections.optim(),
            "trust": sections.trust(),
            "mesh": sections.mesh(),
            "run": sections.run(),
        }
    )
