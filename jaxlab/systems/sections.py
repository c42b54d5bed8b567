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
            "save_every": 1000,  # steps from one checkpoint to the next; 0: last only
            "eval_every": 1000,  # steps from one evaluation to the next; 0: last only
            "keep": 2,  # newest checkpoints that stay
            "keep_every": 0,  # checkpoints kept for good; 0 keeps only the last ones
            "max_skipped": 10,  # steps in a row that are not finite, before it stops
            "log_seconds": 5.0,  # least time between two rows of metrics.jsonl
            "profile": 0,  # steps after the first that are traced into DIR/profile
        },
        changes,
    )


def mesh(**changes: Any) -> ml_collections.ConfigDict:
    """Devices per axis; -1 is all that are left."""
    return _section(
        {
            "data": -1,  # copies of the model, each with its share of the batch
            "fsdp": 1,  # devices that share parameters and optimizer state
            "context": 1,  # devices that share the tokens of a row
            "tensor": 1,  # devices that share every matmul
        },
        changes,
    )


def optim(**changes: Any) -> ml_collections.ConfigDict:
    """The optimizer and its schedule; rate and warm-up are 0: set them.

    The others are OLMo 1's (Groeneveld et al. 2024, arXiv:2402.00838).
    """
    return _section(
        {
            "learning_rate": 0.0,  # at the peak
            "optimizer": "adamw",  # or sgd
            "momentum": 0.0,  # of sgd
            "schedule": "cosine",  # or constant, linear, wsd
            "schedule_steps": 0,  # length of the decay; 0 is the length of the run
            "warmup_steps": 0,  # linear, up to the peak
            "warmup_start": 0.1,  # share of the peak where the warm-up begins
            "final": 0.1,  # share of the peak where the decay ends
            "decay_steps": 0,  # wsd: of the last, linear part
            "cycles": 1,  # restarts: how often the schedule runs
            "beta1": 0.9,  # of adamw: decay of the mean gradient
            "beta2": 0.95,  # of adamw: decay of the mean square
            "epsilon": 1e-5,  # of adamw: added to the root of the mean square
            "weight_decay": 0.1,  # per step, times the rate
            "no_decay": ("embed",),  # parameters whose path has such a part
            "clip_norm": 1.0,  # bound on the gradient's global norm; 0: none
            "clip_norm_start": 1.0,  # the bound of the first clip_start_steps
            "clip_start_steps": 0,  # for how many steps it holds
            "ema": 0.0,  # decay of an average of the parameters; 0 keeps none
        },
        changes,
    )


def trust(**changes: Any) -> ml_collections.ConfigDict:
    """The trust region; `method` "plain" is none. See `trust_methods.TrustConfig`."""
    return _section(dataclasses.asdict(trust_methods.TrustConfig()), changes)


def adapter(**changes: Any) -> ml_collections.ConfigDict:
    """Low-rank adapters (LoRA, QLoRA) that are tuned instead of all parameters."""
    return _section(
        {
            "rank": 0,  # 0: none, all parameters are tuned
            "alpha": 16.0,  # what they add is multiplied by alpha / rank
            "rank_stabilized": False,  # by alpha / sqrt(rank): rsLoRA
            "dropout": 0.0,  # share of their inputs that a step drops
            "targets": ("q", "k", "v", "o", "gate", "up", "down"),  # which matrices
            # The frozen matrices are kept as they are computed; or float32, nf4 (4
            # bits: QLoRA).
            "base": "compute",
        },
        changes,
    )


def computation(**changes: Any) -> ml_collections.ConfigDict:
    """How a model is computed whose sizes are those of `init_from`."""
    return _section(
        {
            "dtype": "bfloat16",  # of activations and matmuls; parameters are float32
            "attention": "auto",  # cpu: xla, gpu: cudnn, tpu: splash
            "remat": "none",  # what is computed again: full, dots or qkvo save memory
            "scan": True,  # layers as a loop: compiles fast; False is 5 % faster on CPU
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
            "embed": 0,  # width of the residual stream
            "layers": 0,  # blocks
            "heads": 0,  # of the queries
            "kv_heads": 0,  # 0: as many as heads
            "mlp": 0,  # width inside the feed-forward part
            "norm": "layernorm",  # without weights, as OLMo 1; or rmsnorm
            "norm_epsilon": 1e-5,  # added to the variance
            "norm_position": "pre",  # or post: on the outputs, as OLMo 2 and 3
            "qk_norm": False,  # RMSNorm over queries and keys, as OLMo 2 and 3
            "clip_qkv": 0.0,  # 0: no clipping
            "window": 0,  # 0: every layer sees everything before it
            "full_layers": (),  # layers without the window
            "tied": False,  # the output head is the embedding
            "rope": {
                "theta": 10_000.0,  # base of the rotary wavelengths
                "scaling": "default",  # or linear, llama3, yarn, with the two below
                "factor": 1.0,  # by which the context grows
                "original_length": 0,  # of the context before it grew
            },
            "initializer": "mitchell",  # OLMo 1's; or normal, cut at 3 std
            "initializer_std": 0.02,  # of normal
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
            "held_out_fraction": 0.05,  # share of each domain that is not trained on
            "max_bytes_per_domain": 0,  # of the embedded text; 0 takes all
            "parts": 1,  # cut each domain into so many, called NAME.1, NAME.2 ...
            "weights": {},  # domain -> share; {} is proportional to size
            "length": 2048,  # tokens per row
            "batch_size": 2048,  # rows per step
            "layout": "chunks",  # cut from all tokens (OLMo); packed: whole documents
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
            # How they are written: see data/examples/chat.py; "own": in the start's own
            # chat template.
            "style": "open_instruct",
            "begin": "bos",  # bos (where the tokenizer has one), eos or none; not own's
            "allowed": (),  # added tokens that answers may use in it: ("<think>",)
            "held_out_fraction": 0.0,  # share that is not trained on
            "length": 8192,  # tokens per row; what is longer is cut, or left out
            "batch_size": 128,  # conversations, or pairs, per step
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
