"""What a `config.json` leaves unsaid: two files that say the same become equal.

Transformers writes some keys in one version and leaves them out in another, moves
rotary positions from `rope_theta` and `rope_scaling` into `rope_parameters`, and keeps
whatever a trainer notes down. `spell_out` brings all of them to one form, which says
what the model computes and nothing else.

The values are those of transformers 4.31 to 5.24. Of a family that is not listed every
key counts that is not known to be without effect, and an absent key is the same as
false and as null.
"""

import re
from collections.abc import Mapping
from typing import Any

# Keys that trained parameters do not depend on, whatever the family; of how many
# key-value heads there are the shapes of the tensors tell.
_FREE = re.compile(
    r"_.*|.*version|.*dtype|.*dropout.*|.*_pdrop|layerdrop|unsloth.*|auto_map"
    r"|architectures|num_key_value_heads|(id2label|label2id|problem_type|finetuning_task)"
    r"|(bos|eos|pad|unk|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token_id"
    r"|use_cache|use_bfloat16|gradient_checkpointing|initializer_.*|init_std"
    r"|max_position_embeddings|n_positions|n_ctx|model_max_length|pretraining_tp"
    r"|output_.*|return_dict.*|torchscript|pruned_heads|chunk_size_feed_forward"
    r"|tokenizer_class|prefix|task_specific_params|summary_.*|classifier_activation"
    r"|router_aux_loss_coef|router_jitter_noise|transformers\.js_config"
    # How to generate, which configs held before there was generation_config.json.
    r"|(max|min)_length|do_sample|early_stopping|num_beams|num_beam_groups"
    r"|temperature|top_[kp]|typical_p|(diversity|repetition|length)_penalty"
    r"|(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences"
    r"|remove_invalid_values|exponential_decay_length_penalty|(begin_)?suppress_tokens"
)

_SIZES = {
    "vocab_size": None, "hidden_size": None, "intermediate_size": None,
    "num_hidden_layers": None, "num_attention_heads": None, "quantization_config": None,
}  # fmt: skip
_DECODER = {
    **_SIZES, "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0, "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
_SLIDING = {"sliding_window": None, "layer_types": None}
_QWEN = {
    **_DECODER, **_SLIDING, "use_sliding_window": False, "max_window_layers": 28,
}  # fmt: skip
_EXPERTS = {
    "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": False, "mlp_only_layers": [],
}  # fmt: skip
_GEMMA = {
    **_DECODER, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256,
    "tie_word_embeddings": True, "hidden_activation": None,
    "use_bidirectional_attention": False,
}  # fmt: skip
_GEMMA2 = {
    **_GEMMA, **_SLIDING, "sliding_window": 4096, "query_pre_attn_scalar": 256,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
_OLMO2 = {**_DECODER, "rms_norm_eps": 1e-5}
_BERT = {
    **_SIZES, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2,
    "position_embedding_type": "absolute", "is_decoder": False,
    "add_cross_attention": False, "tie_word_embeddings": True,
}  # fmt: skip

# `model_type` -> every key that the class computes with, and its default.
_FAMILIES = {
    "llama": {**_DECODER, "mlp_bias": False},
    "mistral": {**_DECODER, "sliding_window": 4096},
    "mixtral": {
        **_DECODER, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
        "num_experts_per_tok": 2, "num_local_experts": 8,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "qwen3_moe": {**_QWEN, **_EXPERTS},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0,
        "final_logit_softcapping": None, "attn_logit_softcapping": None,
        "sliding_window_pattern": 6,
    },
    "phi3": {
        **_DECODER, "rms_norm_eps": 1e-5, "sliding_window": None,
        "partial_rotary_factor": 1.0,
    },
    "olmo": {**_DECODER, "clip_qkv": None},
    "olmo2": _OLMO2,
    "olmo3": {**_OLMO2, **_SLIDING, "rope_theta": 500_000.0, "sliding_window": 4096},
    "gpt_neox": {
        **_SIZES, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25, "use_parallel_residual": True,
        "attention_bias": True, "tie_word_embeddings": False, "is_decoder": False,
    },
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}  # fmt: skip

# A full layer after so many sliding ones, where `layer_types` is not said.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "olmo3": 4}
_TWO_ROPES = ("full_attention", "sliding_attention")
_ROPE_KEYS = (
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq",
    "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
    "original_max_position_embeddings",
)  # fmt: skip


def spell_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a parsed `config.json` says of the arithmetic, in one form.

    Two models can be merged where it is the same of both: of dictionaries in the old
    layout and the new, with defaults said or left out, with whatever notes.

    >>> said = spell_out({"model_type": "llama", "rope_theta": 5e5, "use_cache": True})
    >>> said["rope"], said["attention_bias"]
    ({'rope_theta': 500000.0}, False)
    """
    family = str(raw.get("model_type") or "")
    defaults = {} if "auto_map" in raw else _FAMILIES.get(family, {})
    said = {
        key: value
        for key, value in raw.items()
        if key not in _ROPE_KEYS and not _FREE.fullmatch(key)
    }
    if defaults:
        said = {k: said.get(k, v) for k, v in defaults.items() if k not in _ROPE_KEYS}
    else:  # of another family nobody here knows the defaults
        said = {k: v for k, v in said.items() if v is not None and v is not False}
    heads, width = said.get("num_attention_heads"), said.get("hidden_size")
    if said.get("head_dim") is None and _are_whole(heads, width) and heads:
        said["head_dim"] = width // heads
    if "hidden_activation" in said:  # Gemma's; its `hidden_act` is not followed
        said["hidden_act"] = said.pop("hidden_activation") or _GEMMA["hidden_act"]
    for key in ("use_bidirectional_attention", "attention_bias", "mlp_bias"):
        if key in said:
            said[key] = bool(said[key])
    if said.get("hidden_act") == "swish":
        said["hidden_act"] = "silu"
    _fill_layer_types(said, family)
    return said | {"model_type": family, "rope": _rope(raw, defaults)}


def _fill_layer_types(said, family) -> None:
    layers, window = said.get("num_hidden_layers"), said.get("sliding_window")
    first, is_used = (
        said.pop("max_window_layers", 0),
        said.pop("use_sliding_window", True),
    )
    every = said.pop("sliding_window_pattern", _FULL_EVERY.get(family))
    kinds = said.get("layer_types")
    if not is_used:
        window = None
    if not isinstance(kinds or [], list) or not _are_whole(every or 0):
        return  # of other types: compared as they are
    if not kinds and _are_whole(layers) and layers < 10_000:
        sliding = ["sliding_attention" if window is not None else "full_attention"]
        kinds = sliding * layers
        if every:
            kinds = [
                "full_attention" if (i + 1) % every == 0 else kind
                for i, kind in enumerate(kinds)
            ]
        elif "layer_types" in said and _are_whole(first):
            kinds = ["full_attention"] * min(first, layers) + kinds[first:]
    if kinds:
        said["layer_types"] = kinds
        window = window if "sliding_attention" in kinds else None
    said["sliding_window"] = window


def _rope(raw, defaults) -> dict[str, Any]:
    """Rotary positions: of one kind, or of full layers and sliding ones."""
    both = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    if not isinstance(both, Mapping) or not isinstance(scaling, Mapping):
        return {"rope_parameters": both, "rope_scaling": scaling}
    theta = raw.get("rope_theta") or raw.get("rotary_emb_base")
    theta = theta or defaults.get("rope_theta")
    share = raw.get("partial_rotary_factor") or raw.get("rotary_pct")
    common = {
        "rope_theta": theta,
        "partial_rotary_factor": share or defaults.get("partial_rotary_factor"),
    }
    near = raw.get("rope_local_base_freq") or defaults.get("rope_local_base_freq")
    if both.keys() & {*_TWO_ROPES}:
        inner = [both.get(kind) or {} for kind in _TWO_ROPES]
        if not all(isinstance(each, Mapping) for each in inner):
            return {"rope_parameters": both}
        full, sliding = map(dict, inner)
    else:
        full, sliding = {**both, **scaling}, {"rope_theta": near or theta}
    found = _one_rope(common | full, raw)
    if "sliding_window" not in defaults or "layer_types" not in defaults:
        return found
    if not (near or both.keys() & {*_TWO_ROPES}) and defaults is not _FAMILIES["olmo3"]:
        return found
    return {"full": found, "sliding": _one_rope(common | sliding, raw)}


def _one_rope(parameters, raw) -> dict[str, Any]:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    parameters["rope_type"] = kind
    original = "original_max_position_embeddings"
    if kind in ("yarn", "llama3", "longrope", "su"):  # at the top it comes first
        length = raw.get(original) or parameters.get(original)
        parameters[original] = length or raw.get("max_position_embeddings")
    elif kind == "dynamic":
        parameters[original] = raw.get("max_position_embeddings")
    unsaid = {"rope_type": "default", "partial_rotary_factor": 1, "truncate": True}
    return {
        key: value
        for key, value in sorted(parameters.items())
        if key != "type" and value is not None and unsaid.get(key) != value
    }


def _are_whole(*values) -> bool:
    return all(isinstance(value, int) for value in values)
