"""Sections of a config, which every system composes its own of: `mesh() run() optim()`.

A function returns a section with every knob at a stated value, and takes what differs:
`optim(learning_rate=2e-5, weight_decay=0.0)`. Whole configs are in the systems'
`config.py`; no config takes out again what another put in. Data only: no jax.
"""

import dataclasses
from typing import Any

import ml_collections

from jaxlab.systems import trust_methods


def run(**changes: Any) -> ml_collections.ConfigDict:
    """How often a run saves, evaluates and reports: arguments of `train.fit`."""
    return _section(
        {
            "save_every": 1000,
            "eval_every": 1000,
            "keep": 2,
            "keep_every": 0,  # checkpoints kept for good; 0 keeps only the last ones
            "max_skipped": 10,
            "log_seconds": 5.0,
            "profile": 0,  # steps after the first that are traced into DIR/profile
        },
        changes,
    )


def mesh(**changes: Any) -> ml_collections.ConfigDict:
    """Devices per axis; -1 is all that are left."""
    return _section({"data": -1, "fsdp": 1, "context": 1, "tensor": 1}, changes)


def optim(**changes: Any) -> ml_collections.ConfigDict:
    """The optimizer and its schedule; rate and warm-up are 0: set them.

    The others are OLMo 1's (Groeneveld et al. 2024, arXiv:2402.00838).
    """
    return _section(
        {
            "learning_rate": 0.0,
            "optimizer": "adamw",  # or sgd
            "momentum": 0.0,  # of sgd
            "schedule": "cosine",
            "schedule_steps": 0,  # length of the decay; 0 is the length of the run
            "warmup_steps": 0,
            "warmup_start": 0.1,  # OLMo 1 warms up from a tenth of the peak
            "final": 0.1,
            "decay_steps": 0,  # wsd: of the last, linear part
            "cycles": 1,  # restarts: how often the schedule runs
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-5,
            "weight_decay": 0.1,
            "no_decay": ("embed",),
            "clip_norm": 1.0,
            "clip_norm_start": 1.0,
            "clip_start_steps": 0,
            "ema": 0.0,  # decay of an average of the parameters; 0 keeps none
        },
        changes,
    )


def trust(**changes: Any) -> ml_collections.ConfigDict:
    """The trust region; `method` "plain" is none. See `trust_methods.TrustConfig`."""
    return _section(dataclasses.asdict(trust_methods.TrustConfig()), changes)


def computation(**changes: Any) -> ml_collections.ConfigDict:
    """How a model is computed whose sizes are those of `init_from`."""
    return _section(
        {
            "dtype": "bfloat16",
            "attention": "auto",  # cpu: xla, gpu: cudnn, tpu: splash
            "remat": "none",
            "scan": True,
        },
        changes,
    )


def decoder(**changes: Any) -> ml_collections.ConfigDict:
    """A decoder of OLMo 1's kind; its sizes are 0: set them.

    `models.sections.transformer_config` makes a TransformerConfig of it.
    """
    return _section(
        {
            "vocab": 0,  # 0: the tokenizer's, padded to a multiple of 128
            "embed": 0,
            "layers": 0,
            "heads": 0,
            "kv_heads": 0,  # 0: as many as heads
            "mlp": 0,
            "norm": "layernorm",
            "norm_epsilon": 1e-5,
            "norm_position": "pre",
            "qk_norm": False,
            "clip_qkv": 0.0,  # 0: no clipping
            "window": 0,  # 0: every layer sees everything before it
            "full_layers": (),  # layers without the window
            "tied": False,
            "rope": {
                "theta": 10_000.0,
                "scaling": "default",  # or linear, llama3, yarn, with:
                "factor": 1.0,
                "original_length": 0,
            },
            "initializer": "mitchell",
            "initializer_std": 0.02,
            **computation().to_dict(),
        },
        changes,
    )


def token_rows(**changes: Any) -> ml_collections.ConfigDict:
    """Text, or token files, and the rows that are cut from them."""
    return _section(
        {
            "source": "",  # a folder of domains, or "embedded"
            "folder": "",  # where token files go; "" is WORKDIR/data
            "files": (),  # OLMo token files instead; a repeated path is up-weighted
            "files_dtype": "",  # of files without NAME.json: uint16 or uint32
            "tokenizer": "",  # "" trains SentencePiece on the text
            "vocab_size": 4096,  # of a trained tokenizer
            "held_out_fraction": 0.05,
            "max_bytes_per_domain": 0,  # of the embedded text; 0 takes all
            "parts": 1,  # cut each domain into so many, called NAME.1, NAME.2 ...
            "weights": {},  # domain -> share; {} is proportional to size
            "length": 2048,
            "batch_size": 2048,
            "layout": "chunks",  # OLMo's: cut from the concatenated tokens
            "document_mask": False,  # OLMo 1 and 2 attend across documents
            "seed": 0,  # of the order
            "split_seed": 0,  # of the held-out split
        },
        changes,
    )


def conversations(**changes: Any) -> ml_collections.ConfigDict:
    """Conversations, or pairs of them, and how they become rows of tokens."""
    return _section(
        {
            "source": "",  # .jsonl or .json files or folders, separated by commas
            "tokenizer": "",  # where init_from has none
            "style": "open_instruct",  # see data/examples/chat.py
            "begin": "bos",  # bos (where the tokenizer has one), eos or none
            "held_out_fraction": 0.0,
            "length": 8192,
            "batch_size": 128,
            "seed": 0,  # of the order
            "split_seed": 0,  # of the held-out split
        },
        changes,
    )


def _section(values: dict[str, Any], changes: dict[str, Any]):
    """The section with its changes; a knob that it does not have is refused."""
    if unknown := [name for name in changes if name not in values]:
        raise TypeError(
            f"no {', '.join(unknown)} in this section; it has {', '.join(values)}"
        )
    return ml_collections.ConfigDict(values | changes)
