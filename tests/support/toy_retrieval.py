"""A toy retrieval set of 24 words, its tokenizer, and a tiny random encoder."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import tokenizers

from jaxlab.core import mesh as mesh_lib
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.models import BertConfig, BertEncoder, hf

WORDS = [f"w{i}" for i in range(24)]
TINY = BertConfig(vocab=32, embed=16, layers=1, heads=2, mlp=32, normalize=True)


def tiny_params(model, seed=0):
    rows = np.zeros((1, 4), np.int32), np.ones((1, 4), bool)
    return mesh_lib.unbox(jax.jit(model.init)(jax.random.key(seed), *rows)["params"])


def tokenizer():
    """Words of the toy world, with BERT's special tokens."""
    vocab = {x: i for i, x in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    model.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return byte_pairs.BytePairs.from_bytes(model.to_str().encode(), {}, "toy")


def write_set(folder: pathlib.Path) -> pathlib.Path:
    """A retrieval set: both documents of a query have its word, the relevant one w0."""
    folder.mkdir()
    random = np.random.default_rng(0)
    documents, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for i, word in enumerate(WORDS[1:]):
        for kind, mark in (("good", "w0"), ("bad", "")):
            noise = " ".join(random.choice(WORDS[1:], 3))
            text = f"{mark} {noise}".strip()
            documents.append({"_id": f"{kind}{i}", "title": word, "text": text})
        queries.append({"_id": f"q{i}", "text": word})
        qrels.append(f"q{i}\tgood{i}\t1")
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "qrels.train.tsv").write_text("\n".join(qrels) + "\n")
    return folder


def write_encoder(folder: pathlib.Path) -> pathlib.Path:
    """A Hugging Face folder of a random tiny BERT."""
    tokenizer().save(folder / "tokenizer")
    config = dataclasses.replace(TINY, layers=2, embed=32, mlp=64)
    params = tiny_params(BertEncoder(config))
    hf.save(folder / "bert", config, params, tokenizer_folder=folder / "tokenizer")
    return folder / "bert"
