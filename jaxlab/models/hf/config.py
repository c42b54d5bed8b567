"""Hugging Face's `config.json` <-> `TransformerConfig`, for four families of decoders.

    olmo    LayerNorm without weights, pre-norm, optional clip_qkv
    olmo2   RMSNorm on the outputs, q/k norm
    olmo3   as olmo2, with sliding layers that keep unscaled rotary positions
    llama   RMSNorm, pre-norm

A key that is absent has the value that transformers gives it. A key that would change
the arithmetic and is not understood is refused, never ignored.

A reward model is the same with one label: LlamaForSequenceClassification.

What only concerns running (dtype, attention, remat, scan, initializer, ...) is not in
the file: it keeps the defaults of `TransformerConfig`. Rotary positions, which come in
two layouts: `models/hf/rope.py`.

Deviation: transformers 5.23 gives sliding layers theta 500,000 in the old layout and
reads YaRN's `truncate` beside, not inside, olmo3's dicts; here both are as written.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors, value_types
from jaxlab.models.bert import config as config_lib
from jaxlab.models.config import TransformerConfig
from jaxlab.models.hf import rope as rope_lib


class Family(NamedTuple):
    """One of Hugging Face's model classes.

    Attributes:
        architecture: its name in `architectures`.
        options: fields of `TransformerConfig` that the class fixes.
        defaults: its values of keys that a config.json may leave out.
    """

    architecture: str
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]


_OLMO = {"eos_token_id": 50279, "pad_token_id": 1, "bos_token_id": None}
_PRE = {"norm_position": "pre", "qk_norm": False, "window": None}
_POST = {
    "norm": "rmsnorm", "norm_position": "post", "qk_norm": True, "clip_qkv": None,
}  # fmt: skip

FAMILIES = {
    "olmo": Family(
        "OlmoForCausalLM",
        {"norm": "layernorm", "norm_epsilon": 1e-5, **_PRE},
        {"rope_theta": 10_000.0, **_OLMO},
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        {**_POST, "window": None},
        {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, **_OLMO},
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        _POST,
        {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, **_OLMO},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        {"norm": "rmsnorm", "clip_qkv": None, **_PRE},
        {
            "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": None,
        },
    ),
}  # fmt: skip

# Keys that change the arithmetic, and the only values that `Decoder` computes.
_SUPPORTED = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    # Of other families, whose models are now and then called llama.
    **dict.fromkeys(
        (
            "attention_multiplier",
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            "attn_logit_softcapping",
        ),
        (None,),
    ),
    **dict.fromkeys(
        (
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "logit_scale",
        ),
        (1, None),
    ),
    **dict.fromkeys(("num_experts", "num_local_experts"), (None, 0, 1)),
    "use_qk_norm": (False, None),
}

_SIZES = {
    "vocab_size": "vocab",
    "hidden_size": "embed",
    "intermediate_size": "mlp",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}

_KINDS = {
    "architectures": value_types.TEXTS.or_null(),
    "model_type": value_types.TEXT.or_null(),
    **dict.fromkeys(_SIZES, value_types.SIZE),
    "num_hidden_layers": value_types.LAYERS,
    "num_key_value_heads": value_types.SIZE.or_null(),
    "head_dim": value_types.SIZE.or_null(),
    "max_position_embeddings": value_types.SIZE,
    "rms_norm_eps": value_types.POSITIVE,
    "initializer_range": value_types.NUMBER,
    "clip_qkv": value_types.POSITIVE.or_null(),
    "tie_word_embeddings": value_types.SWITCH,
    "sliding_window": value_types.SIZE.or_null(),
    "layer_types": value_types.TEXTS.or_null(),
    **dict.fromkeys(
        ("eos_token_id", "pad_token_id", "bos_token_id"), value_types.TOKEN_IDS
    ),
}


def from_json(raw: Mapping[str, Any]) -> TransformerConfig:
    """The config that a parsed `config.json` describes.

    Raises:
        UserError: an unknown architecture, a missing size, a value of another type, or
            an option that the decoder does not compute.

    >>> sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=64)
    >>> sizes.update(num_hidden_layers=2, num_attention_heads=4)
    >>> from_json({"model_type": "olmo2", **sizes}).norm_position
    'post'
    """
    value_types.check(raw, _KINDS)
    name = _family_of_json(raw)
    family = FAMILIES[name]
    for key, values in _SUPPORTED.items():
        if raw.get(key, values[0]) not in values:
            raise errors.UserError(
                f"config.json: {key} {raw[key]!r} is not supported, only {values[0]!r}"
            )
    if missing := [key for key in _SIZES if key not in raw]:
        raise errors.UserError(f"config.json lacks {', '.join(missing)}")

    def get(key, default=None):
        return raw.get(key, family.defaults.get(key, default))

    fields = {field: raw[key] for key, field in _SIZES.items()}
    if name == "olmo":
        fields["clip_qkv"] = get("clip_qkv")
    else:
        fields["norm_epsilon"] = get("rms_norm_eps")
    if name == "olmo3":
        fields |= _window(raw)
    rope, window_rope = rope_lib.from_json(
        raw, family.defaults["rope_theta"], by_layer_type=name == "olmo3"
    )
    if fields.get("window") is not None:
        fields["window_rope"] = window_rope
    try:
        return TransformerConfig(
            **{**family.options, **fields},
            rope=rope,
            kv_heads=get("num_key_value_heads"),
            head_dim=get("head_dim"),
            tied=get("tie_word_embeddings", False),
            head="score" if is_scorer(raw) else "tokens",
            length=get("max_position_embeddings", 2048),
            initializer_std=get("initializer_range", 0.02),
            eos_id=_ids(get("eos_token_id")),
            pad_id=_ids(get("pad_token_id")),
            bos_id=_ids(get("bos_token_id")),
        )
    except ValueError as error:
        raise errors.UserError(f"config.json: {error}") from error


def to_json(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` of a config, for old and new versions of transformers.

    Raises:
        UserError: no family computes what the config asks for.
    """
    name = _family_of_config(config)
    raw = {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        **{key: getattr(config, field) for key, field in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.length,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        # Null rather than absent: absent would mean the class's own ids.
        "eos_token_id": _as_json(config.eos_id),
        "pad_token_id": _as_json(config.pad_id),
        "bos_token_id": _as_json(config.bos_id),
    }
    if name == "llama":
        raw["mlp_bias"] = False
    if config.head == "score":
        raw |= {
            "architectures": [_scorer_of(FAMILIES[name].architecture)],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
    if name == "llama" or config.head_dim * config.heads != config.embed:
        raw["head_dim"] = config.head_dim
    if name == "olmo":
        raw["clip_qkv"] = config.clip_qkv
    else:
        raw["rms_norm_eps"] = config.norm_epsilon
    if name == "olmo3":
        raw["sliding_window"] = config.window
        raw["layer_types"] = [
            "full_attention" if i in config.full_layers else "sliding_attention"
            for i in range(config.layers)
        ]
    return raw | rope_lib.to_json(config.rope, config.window_rope)


def is_scorer(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed `config.json` is of a reward model: one score per text."""
    scorers = {_scorer_of(family.architecture) for family in FAMILIES.values()}
    return not scorers.isdisjoint(raw.get("architectures") or ())


def _scorer_of(architecture: str) -> str:
    return architecture.replace("ForCausalLM", "ForSequenceClassification")


def _family_of_json(raw):
    architectures = raw.get("architectures") or ()
    for name, family in FAMILIES.items():
        own = family.architecture
        if own in architectures or _scorer_of(own) in architectures:
            if (said := raw.get("model_type")) not in (None, name):
                raise errors.UserError(
                    f"config.json: model_type {said!r} and architectures "
                    f"{family.architecture} are different models; correct one of them"
                )
            return name
    if not architectures and raw.get("model_type") in FAMILIES:
        return raw["model_type"]
    named = ", ".join(architectures) or raw.get("model_type") or "no architecture"
    supported = [family.architecture for family in FAMILIES.values()]
    supported = ", ".join(
        supported + [f"{stem}Model" for stem in config_lib.FAMILIES.values()]
    )
    raise errors.UserError(f"config.json names {named}; supported are {supported}")


def _family_of_config(config):
    fitting = [
        name
        for name, family in FAMILIES.items()
        if config.is_causal
        and all(getattr(config, field) == v for field, v in family.options.items())
    ]
    if not fitting:
        fields = dict.fromkeys(
            field for family in FAMILIES.values() for field in family.options
        )
        asked = ", ".join(
            f"{field}={getattr(config, field)!r}" for field in (*fields, "is_causal")
        )
        raise errors.UserError(
            f"no Hugging Face family ({', '.join(FAMILIES)}) has {asked}; keep it as "
            "a jaxlab checkpoint"
        )
    name = fitting[0]  # olmo2 stands before olmo3, which would do without window too
    if name == "llama" and config.embed % config.heads:
        raise errors.UserError(
            f"transformers refuses a llama whose embed {config.embed} is not a "
            f"multiple of its {config.heads} heads; keep it as a jaxlab checkpoint"
        )
    return name


def _window(raw):
    layers = raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or [
        "full_attention" if i % 4 == 3 else "sliding_attention" for i in range(layers)
    ]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise errors.UserError(
            f"config.json: layer_types has {', '.join(sorted(unknown))}; supported are "
            "full_attention and sliding_attention"
        )
    if len(kinds) != layers:
        raise errors.UserError(
            f"config.json: {len(kinds)} layer_types for {layers} num_hidden_layers"
        )
    window = raw.get("sliding_window", 4096)
    if window is None or "sliding_attention" not in kinds:
        return {"window": None}
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return {"window": window, "full_layers": full}


def _ids(value):
    """Null, one token id, or a tuple of several."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(value) if len(value) > 1 else next(iter(value), None)


def _as_json(ids):
    """A tuple as JSON has it, whoever compares before it is written."""
    return list(ids) if isinstance(ids, tuple) else ids
