"""Every knob of a training run of a decoder, with OLMo 1's values where it has any.

Configs start from here and change what differs. Data only: no jax is imported.
"""

import ml_collections

# Rows of TRAM's tables (arXiv:2310.03646) with the settings of its appendix B; what
# the paper leaves open is in the docstring of configs/tram.py.
TRUST_ROWS = {
    "sgd": {"method": "plain"},
    "adam": {"method": "plain"},
    "sam": {"method": "sam", "rho": 0.05},
    "asam": {"method": "asam", "rho": 0.5},
    "fsam": {"method": "fsam", "gamma": 0.1, "eta": 0.1},
    "trpo": {"method": "trpo", "weight": 0.1},
    "r3f": {"method": "r3f", "weight": 0.1, "sigma": 0.1},
    "r4f": {"method": "r4f", "weight": 0.1, "sigma": 0.1},
    "mesa": {"method": "mesa", "weight": 0.1, "anchor_decay": 0.999},
    "tram_theta": {"method": "tram_theta"},
    "tram_theta0": {"method": "tram_theta0"},
    "tram_ema": {"method": "tram_ema", "anchor_decay": 0.999},
    "tram_x": {"method": "tram_x", "sigma": 0.1},
    "tram_fisher": {
        "method": "tram_fisher", "gamma": 0.1, "eta": 0.1, "sigma": 0.1,
    },
}  # fmt: skip


def pretraining() -> ml_collections.ConfigDict:
    """The config of `olmo/pretraining.py:pretrain`; sizes and rates are 0: set them."""
    config = ml_collections.ConfigDict()
    config.system = "olmo.pretrain"
    config.seed = 0
    config.steps = 0
    config.micro_batches = 1
    config.z_loss = 0.0  # OLMo 1 used none
    config.loss_denominator = "labels"  # "olmo" reports OLMo's sum / (B T)
    config.init_from = ""  # a run directory or a Hugging Face folder
    config.eval_batches = 8  # held-out batches a domain

    config.model = ml_collections.ConfigDict(
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
            "length": 2048,
            "initializer": "mitchell",
            "initializer_std": 0.02,
            "dtype": "bfloat16",
            "attention": "auto",  # cpu: xla, gpu: cudnn, tpu: splash
            "remat": "none",
            "scan": True,
        }
    )
    config.data = ml_collections.ConfigDict(
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
        }
    )
    config.optim = ml_collections.ConfigDict(
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
        }
    )
    config.trust = ml_collections.ConfigDict(
        {
            "method": "plain",  # see systems/trust_regions.py
            "rho": 0.5,
            "gamma": 0.1,
            "eta": 0.0,
            "radius_scale": 1.0,
            "max_radius": 0.0,  # 0: no bound
            "direction": "forward",
            "anchor_decay": 0.999,
            "anchor_dtype": "",
            "sigma": 0.1,
            "noise": "normal",
            "weight": 0.1,
            "second_pass": "",  # float32: compute the second pass in it
            "stochastic_rounding": False,
        }
    )
    config.mesh = ml_collections.ConfigDict(
        {"data": -1, "fsdp": 1, "context": 1, "tensor": 1}
    )
    config.run = ml_collections.ConfigDict(
        {
            "save_every": 1000,
            "eval_every": 1000,
            "keep": 2,
            "keep_every": 0,  # checkpoints kept for good; 0 keeps only the last ones
            "max_skipped": 10,
            "log_seconds": 5.0,
            "profile": 0,  # steps after the first that are traced into DIR/profile
        }
    )
    return config


def classification() -> ml_collections.ConfigDict:
    """The config of `tram/classification.py:classify`; set the rate and the steps.

    Sizes and tokenizer are those of `init_from`.
    """
    config = pretraining()
    for name in ("z_loss", "loss_denominator", "eval_batches"):
        del config[name]
    config.system = "languages.classify"
    config.model = ml_collections.ConfigDict(
        {
            "is_causal": False,  # True: as the decoder was pre-trained
            "dtype": "float32",
            "attention": "auto",
            "remat": "none",
            "scan": True,
        }
    )
    config.data = ml_collections.ConfigDict(
        {
            "source": "",  # a folder of labelled texts; see data/examples/labelled.py
            "train_language": "eng_Latn",
            "train_split": "train",
            "eval_split": "test",
            "languages": (),  # that are tested; () is all
            "length": 128,
            "batch_size": 32,
            "seed": 0,  # of the order
        }
    )
    # TRAM's (arXiv:2310.03646, appendix B): betas (0.9, 0.99), to zero linearly.
    config.optim.update(
        {
            "schedule": "linear", "warmup_start": 0.0, "final": 0.0, "beta2": 0.99,
            "epsilon": 1e-8, "weight_decay": 0.0,
        }
    )  # fmt: skip
    return config


def instruction() -> ml_collections.ConfigDict:
    """The config of `systems/tulu/tuning.py:sft`; set the rate.

    Its values are those of TULU 2 (arXiv:2311.10702), where it says them. `model` holds
    the sizes that a plan needs; a run has those of `init_from`, and compares.
    """
    config = pretraining()
    del config.loss_denominator
    config.system = "tulu.sft"
    config.epochs = 2.0  # of the data, where `steps` is 0
    config.warmup = 0.03  # share of the steps, where `optim.warmup_steps` is 0
    config.eval_batches = 0  # of the held-out examples; 0 takes all
    config.model.update({"norm": "rmsnorm", "initializer": "normal"})  # Llama's
    del config.model["length"]  # that of init_from, or of the rows if they are longer
    config.data = ml_collections.ConfigDict(
        {
            "source": "",  # .jsonl or .json files or folders, separated by commas
            "tokenizer": "",  # where init_from has none
            "style": "open_instruct",  # see data/examples/chat.py
            "begin": "bos",  # bos (where the tokenizer has one), eos or none
            "packed": False,  # several conversations a row, which do not see each other
            "held_out_fraction": 0.0,
            "length": 8192,
            "batch_size": 128,
            "seed": 0,  # of the order
            "split_seed": 0,  # of the held-out split
        }
    )
    config.optim.update(
        {
            "schedule": "linear", "warmup_start": 0.0, "final": 0.0, "epsilon": 1e-8,
            "weight_decay": 0.0,
        }
    )  # fmt: skip
    return config


def preferences() -> ml_collections.ConfigDict:
    """The config of `systems/tulu/tuning.py:dpo`; set the rate. A batch is of pairs."""
    config = instruction()
    for name in ("trust", "z_loss"):
        del config[name]
    del config.data["packed"]
    config.system = "tulu.dpo"
    config.epochs, config.warmup = 3.0, 0.1
    config.data.batch_size = 32
    config.data.last_only = True  # EasyLM's; False trains on all answers of a pair
    config.preference = ml_collections.ConfigDict(
        {
            "loss": "sigmoid",  # see objectives.preference
            "beta": 0.1,
            "label_smoothing": 0.0,
            "target_margin": 0.0,  # of simpo
            "reference": "before",  # computed before the run; or "step": in every step
        }
    )
    return config
