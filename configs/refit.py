"""Rerankers and bi-encoders from published weights: the teachers and pupils of ReFIT.

    jaxlab train --config=configs/refit.py:cross_encoder --workdir=runs/cross_encoder \\
        --config.init_from=MINILM --config.data.sets="SETS"
    jaxlab train --config=configs/refit.py:cross_encoder --workdir=runs/harder \\
        --config.init_from=runs/cross_encoder --config.mine.encoder=MINILM \\
        --config.data.sets="SETS" --config.mine.depth=15 --config.data.seed=7 \\
        --config.steps=240 --config.optim.warmup_steps=10 \\
        --config.optim.learning_rate=6e-5 --config.mine.index=runs/cross_encoder/index

MINILM is the folder of all-MiniLM-L6-v2 (Hugging Face files); SETS is ({'folder':
'scifact'}, {'folder': 'scifact'}, {'folder': 'tydiqa_goldp', 'name': 'en'}): BEIR
folders with judged training queries, of which one that is repeated counts twice. The
bi-encoder first encodes all documents (9,000, a quarter of an hour on two busy cores)
and searches them for the training queries; what it finds and is not relevant are the
negatives. A tenth of the queries is held out: rows have nDCG@10 and MRR@10 of reranking
the 20 documents that the bi-encoder found first, and of its own order (`first_`).

Measured with 40 held-out queries a set, on two cores that others used too (25 minutes,
then 15); in brackets the bi-encoder's order:

    nDCG@10              SciFact           TyDi QA, English
    cross_encoder        0.580 (0.588)     0.832 (0.895)
    and harder           0.599 (0.588)     0.835 (0.895)
    and 20 cosines       0.620 (0.588)     0.891 (0.895)

That was with --config.prior=0; the last line adds 20 times the bi-encoder's cosine to
the score afterwards. So 2,560 lists are too few for a reranker that is better alone: of
40 queries the gain on SciFact is within chance, and on TyDi QA it loses. Now they are
added in training too (`prior`): the reranker learns what the bi-encoder gets wrong.
Rerank with rows as long as those of training: with 256 the second line has 0.563 and
0.780.

`bi_encoder` fine-tunes the bi-encoder itself, by in-batch and mined negatives; `tiny`
is a cross-encoder for 10 steps: its init_from may be any small BERT.
"""

import ml_collections

from jaxlab.systems import defaults

_VARIANTS = ("cross_encoder", "bi_encoder", "tiny")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    if variant not in _VARIANTS:
        raise ValueError(f"variant {variant!r}; use one of {', '.join(_VARIANTS)}")
    config = _training()
    if variant == "bi_encoder":
        return _bi_encoder(config)
    if variant == "tiny":
        config.steps = 10
        config.data.update({"length": 32, "batch_size": 2, "candidates": 3})
        config.optim.update({"learning_rate": 1e-3, "warmup_steps": 2})
        config.mine.depth = config.eval.depth = 5
    return config


def _training() -> ml_collections.ConfigDict:
    """The cross-encoder's config, which the others start from."""
    # Numbers without a source were chosen here, for half an hour on two cores.
    config = defaults.pretraining()
    for name in ("z_loss", "loss_denominator", "eval_batches", "trust"):
        del config[name]
    config.system = "encoders.rerank"
    config.steps = 400
    config.objective = "listwise"  # or pointwise
    # Of the bi-encoder's score beside the reranker's own, in training and afterwards:
    # the reranker learns what the bi-encoder gets wrong. 0: it learns everything.
    config.prior = 20.0
    config.model = ml_collections.ConfigDict(
        {"dtype": "float32", "attention": "auto", "remat": "none", "scan": True}
    )
    config.data = ml_collections.ConfigDict(
        {
            # {"folder": BEIR folder, "name": of its files, "split": "train"}, ...; a
            # set that is repeated counts as often.
            "sets": (),
            "length": 128,  # of a pair; the longer text is cut
            "batch_size": 4,  # queries
            "candidates": 4,  # of a query, one of them relevant
            "held_out": 0.1,  # share of the queries that are not trained on
            "split_seed": 0,  # of who is held out
            "seed": 0,  # of the order
        }
    )
    config.mine = ml_collections.ConfigDict(
        {
            "encoder": "",  # bi-encoder that finds the negatives; "": init_from
            "length": 0,  # of its rows; 0 is its own
            "depth": 50,  # negatives are among the first so many documents
            "index": "",  # a folder; "" is WORKDIR/index
        }
    )
    config.eval = ml_collections.ConfigDict(
        {"depth": 20, "queries": 40}  # of each set; 0 queries are all
    )
    config.optim.update(
        {
            "learning_rate": 1e-4, "schedule": "linear", "warmup_start": 0.0,
            "warmup_steps": 40, "final": 0.0, "beta2": 0.999, "epsilon": 1e-8,
            "weight_decay": 0.01, "no_decay": ("bias", "norm"),
        }
    )  # fmt: skip
    config.run.update({"save_every": 100, "eval_every": 200})
    return config


def _bi_encoder(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.system = "encoders.embed"
    del config["objective"], config["prior"]
    del config.data["candidates"]
    config.contrastive = ml_collections.ConfigDict({"temperature": 0.05, "chunks": 1})
    config.optim.learning_rate = 2e-5
    config.data.update(
        {"length": 128, "query_length": 32, "batch_size": 32, "negatives": 1}
    )
    return config
