"""The config of `olmo.pretrain`: every knob of a decoder's training run."""

import ml_collections

from jaxlab.systems import sections


def pretraining() -> ml_collections.ConfigDict:
    """The config of `olmo/pretraining.py:pretrain`; sizes and rates are 0: set them."""
    return ml_collections.ConfigDict(
        {
            "system": "olmo.pretrain",  # what is trained
            "seed": 0,  # of the start and of everything random
            "steps": 0,  # updates in all
            "micro_batches": 1,  # parts of a batch that are computed one by one
            "z_loss": 0.0,  # weight of the squared log-partition; OLMo 1 used none
            "loss_denominator": "labels",  # "olmo" reports OLMo's sum / (B T)
            "init_from": "",  # a run directory or a Hugging Face folder
            "eval_batches": 8,  # held-out batches per domain
            "model": {
                **sections.decoder(),
                "length": 2048,  # longest row that the model is made for
            },
            "data": sections.token_rows(),
            "optim": sections.optim(),
            "trust": sections.trust(),
            "mesh": sections.mesh(),
            "run": sections.run(),
        }
    )
