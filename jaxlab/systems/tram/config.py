"""The config of `languages.classify`: labelled texts, one language to learn from."""

import ml_collections

from jaxlab.systems import sections


def classification() -> ml_collections.ConfigDict:
    """The config of `tram/classification.py:classify`; set the rate and the steps.

    Sizes and tokenizer are those of `init_from`.
    """
    return ml_collections.ConfigDict(
        {
            "system": "languages.classify",  # what is trained
            "seed": 0,  # of the head and of everything random
            "steps": 0,  # updates in all
            "micro_batches": 1,  # parts of a batch that are computed one by one
            "init_from": "",  # a run directory or a Hugging Face folder
            "model": {
                **sections.computation(dtype="float32"),
                "is_causal": False,  # True: as the decoder was pre-trained
            },
            "data": {
                "source": "",  # a folder of texts; see data/examples/labelled.py
                "train_language": "eng_Latn",  # that is learned from
                "train_split": "train",  # of that language
                "eval_split": "test",  # of all languages
                "languages": (),  # that are tested; () is all
                "length": 128,  # tokens per text; longer ones are cut
                "batch_size": 32,  # texts per step
                "seed": 0,  # of the order
            },
            # TRAM's (arXiv:2310.03646, appendix B): betas (0.9, 0.99), to zero
            # linearly.
            "optim": sections.optim(
                schedule="linear",
                warmup_start=0.0,
                final=0.0,
                beta2=0.99,
                epsilon=1e-8,
                weight_decay=0.0,
            ),
            "trust": sections.trust(),
            "mesh": sections.mesh(),
            "run": sections.run(),
        }
    )
