"""Configs that say the same in other words are one; those that do not are two."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.models.hf import defaults

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 12, "num_attention_heads": 4,
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "gemma2", "gemma3_text", "olmo3", "gpt_neox")
SCALING = {"rope_type": "linear", "factor": 2.0}
# Pairs that say the same of every family with rotary positions.
SAME = (
    ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}),
    ({"rope_scaling": SCALING}, {"rope_scaling": {"type": "linear", "factor": 2}}),
    ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default"}}),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4}, "max_position_embeddings": 16},
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
        },
    ),
    ({}, {"attention_bias": False, "quantization_config": None}),
    ({}, {"head_dim": None, "num_key_value_heads": 4}),
)
# What a trainer, or another version of transformers, writes beside it.
NOTES = {
    "unsloth_version": "1", "unsloth_fixed": True, "_name_or_path": "x",
    "transformers_version": "4.31", "torch_dtype": "float16", "use_cache": False,
    "temperature": 0.6, "do_sample": True, "attention_dropout": 0.1,
    "eos_token_id": [1, 2], "max_position_embeddings": 99, "architectures": ["X"],
    "classifier_dropout": None, "output_attentions": True, "pretraining_tp": 1,
}  # fmt: skip
OTHER = {
    "rope_theta": 123.0, "rope_scaling": SCALING, "hidden_act": "relu",
    "num_attention_heads": 2, "tie_word_embeddings": "neither",
    "quantization_config": {"bits": 4}, "model_type": "bert",
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    family=st.sampled_from(FAMILIES),
    pair=st.sampled_from(SAME),
    notes=st.sets(st.sampled_from(sorted(NOTES))),
)
def test_other_words_and_notes_change_nothing(family, pair, notes):
    if family == "gpt_neox" and "attention_bias" in pair[1]:
        return  # there it is true where it is not said
    if family.startswith("gemma") and "head_dim" in pair[1]:
        return  # there it is 256 where it is not said
    first, second = ({"model_type": family, **SIZES, **half} for half in pair)
    noted = {key: NOTES[key] for key in notes} | second
    if "rope_scaling" in first and "max_position_embeddings" in first:
        noted["max_position_embeddings"] = second["max_position_embeddings"]
    assert defaults.spell_out(first) == defaults.spell_out(noted)


@pytest.mark.parametrize("key", OTHER)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_changes_the_arithmetic_is_a_difference(family, key):
    plain = {"model_type": family, **SIZES}
    if (family, key) in {("gemma2", "hidden_act"), ("gemma3_text", "hidden_act")}:
        return  # they follow hidden_activation
    other = plain | {key: OTHER[key]}
    assert defaults.spell_out(plain) != defaults.spell_out(other)


def test_windows_that_no_layer_has_are_none():
    qwen = {"model_type": "qwen2", **SIZES}
    off = {"sliding_window": 8, "max_window_layers": 3, "use_sliding_window": False}
    on = off | {"use_sliding_window": True}
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 9
    assert defaults.spell_out(qwen) == defaults.spell_out(qwen | off)
    assert defaults.spell_out(qwen) != defaults.spell_out(qwen | on)
    said = {"sliding_window": 8, "layer_types": kinds, "use_sliding_window": True}
    assert defaults.spell_out(qwen | on) == defaults.spell_out(qwen | said)
    mistral = {"model_type": "mistral", **SIZES}
    assert defaults.spell_out(mistral | {"sliding_window": None}) != (
        defaults.spell_out(mistral)
    )


def test_of_an_unknown_family_false_null_and_absent_are_one():
    raw = {"model_type": "new", **SIZES, "depth_scale": 2.0}
    same = raw | {"use_gate": False, "gate_bias": None, "transformers_version": "9"}
    assert defaults.spell_out(raw) == defaults.spell_out(same)
    assert defaults.spell_out(raw) != defaults.spell_out(raw | {"use_gate": True})
    assert defaults.spell_out(raw) != defaults.spell_out(raw | {"depth_scale": 1.0})


@pytest.mark.oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_fills_in_the_same(family):
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    changes = (
        {}, {"rope_theta": 5e5}, {"num_key_value_heads": 2}, {"sliding_window": 8},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5},
    )  # fmt: skip
    for change in changes:
        if family == "gpt_neox" and "rope_theta" in change:
            continue  # it calls it rotary_emb_base
        raw = {"model_type": family, **SIZES, **change}
        filled = auto.CONFIG_MAPPING[family].from_dict(dict(raw)).to_dict()
        assert defaults.spell_out(raw) == defaults.spell_out(filled), change
