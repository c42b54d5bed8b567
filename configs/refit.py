"""Rerankers and bi-encoders from published weights: the teachers and pupils of ReFIT.

    jaxlab train --config=configs/refit.py:cross_encoder --workdir=runs/cross_encoder \\
        --config.init_from=MINILM --config.data.sets="SETS"
    python tools/tune_refit.py runs/cross_encoder runs/tune

MINILM is the folder of all-MiniLM-L6-v2 (Hugging Face files); SETS is ({'folder':
'scifact'}, {'folder': 'scifact'}, {'folder': 'tydiqa_goldp', 'name': 'en'}): BEIR
folders with judged training queries, of which one that is repeated counts twice. The
bi-encoder first encodes all documents (9,000, a quarter of an hour on two busy cores)
and searches them for the training queries; what it finds and is not relevant are the
negatives. A tenth of the queries is held out: rows have nDCG@10 and MRR@10 of reranking
the 20 documents that the bi-encoder found first, and of its own order (`first_`).

3,200 lists (800 steps, 50 minutes on one core) are too few for a reranker that is
better alone. With the bi-encoder's cosine added, `eval.prior` times, it is: nDCG@10 of
the first 50 of 40 held-out queries per set, as the second command prints it,

    times the cosine   0      10     20     40     80     160    320    cosine alone
    SciFact            0.567  0.592  0.612  0.626  0.648  0.614  0.600  0.588
    TyDi QA, English   0.840  0.900  0.905  0.908  0.912  0.899  0.904  0.895

With it, ReFIT's rate hardly matters between 0.002 and 0.05: recall@20 of the moved
query is the same, its nDCG@10 differs by at most 0.011 a set. Other ways were worse:
the cosine added in training too (`prior` 20, negatives among the first 6: 0.592 and
0.895 after 250 steps, 0.572 and 0.877 after 500), and negatives mined again for 240
steps at 6e-5 (0.620 and 0.891 with 20 cosines). Rerank with rows as long as those of
training.

`bi_encoder` fine-tunes the bi-encoder itself, by in-batch and mined negatives; `tiny`
is a cross-encoder for 10 steps: its init_from may be any small BERT.
"""

from typing import Any

import ml_collections

from jaxlab.systems import sections

VARIANTS = ("cross_encoder", "bi_encoder", "tiny")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    if variant == "bi_encoder":
        return _bi_encoder()
    config = _cross_encoder()
    if variant == "tiny":
        config.steps = 10
        config.data.update({"length": 32, "batch_size": 2, "candidates": 3})
        config.optim.update({"learning_rate": 1e-3, "warmup_steps": 2})
        config.mine.depth = config.eval.depth = 5
    return config


def _cross_encoder() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            **_shared("encoders.rerank", learning_rate=1e-4),
            "objective": "listwise",  # or pointwise
            # Weight of the bi-encoder's score in training: above 0 the reranker learns
            # what the bi-encoder gets wrong; 0: it learns everything.
            "prior": 0.0,
            "data": {
                **_queries(batch_size=4),
                "candidates": 4,  # per query, one of them relevant
            },
            "eval": {
                **_evaluation(),
                "prior": 80.0,  # as `prior`, in answers; chosen for a run without
            },
        }
    )


def _bi_encoder() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            **_shared("encoders.embed", learning_rate=2e-5),
            "contrastive": {"temperature": 0.05, "chunks": 1},
            "data": {
                **_queries(batch_size=32),
                "query_length": 32,
                "negatives": 1,  # mined ones, per query
            },
            "eval": _evaluation(),
        }
    )


# Numbers without a source were chosen here, for half an hour on two cores.


def _shared(system: str, *, learning_rate: float) -> dict[str, Any]:
    return {
        "system": system,  # what is trained
        "seed": 0,  # of everything random
        "steps": 800,  # updates in all
        "micro_batches": 1,  # parts of a batch that are computed one by one
        "init_from": "",  # a folder of Hugging Face files, or a run
        "model": sections.computation(dtype="float32"),
        "mine": {
            "encoder": "",  # bi-encoder that finds the negatives; "": init_from
            "length": 0,  # of its rows; 0 is its own
            "depth": 30,  # negatives are among the first so many documents
            "index": "",  # a folder; "" is WORKDIR/index
        },
        "optim": sections.optim(
            learning_rate=learning_rate,
            schedule="linear",
            warmup_start=0.0,
            warmup_steps=40,
            final=0.0,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.01,
            no_decay=("bias", "norm"),
        ),
        "mesh": sections.mesh(),
        "run": sections.run(save_every=100, eval_every=400),
    }


def _queries(*, batch_size: int) -> dict[str, Any]:
    return {
        # {"folder": BEIR folder, "name": of its files, "split": "train"}, ...; a set
        # that is repeated counts as often.
        "sets": (),
        "length": 128,  # of a row, or of a pair; the longer text is cut
        "batch_size": batch_size,  # queries
        "held_out": 0.1,  # share of the queries that are not trained on
        "split_seed": 0,  # of who is held out
        "seed": 0,  # of the order
    }


def _evaluation() -> dict[str, Any]:
    return {
        "depth": 20,  # documents of each set
        "queries": 40,  # 0: all
    }
