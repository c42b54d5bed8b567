"""A config.json with values of other types is one line that names the key."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxlab.core import errors
from jaxlab.models.bert import json as json_lib
from jaxlab.models.hf import config as config_lib
from tests.support.hf_values import FAMILIES, VALUES

RAW = {
    name: json.loads((VALUES / name / "config.json").read_text()) for name in FAMILIES
}
JUNK = st.sampled_from(
    [None, "", "1e-05", "2", True, -1, 0, 1.5, 2**70, float("nan"), float("inf"), [],
     [None], ["x"], {}, {"a": []}, [[1]]]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    family=st.sampled_from(FAMILIES),
    place=st.integers(0, 99),
    inner=st.booleans(),
    value=JUNK,
)
@example(family="llama31_tied", place=0, inner=True, value="2.0")
def test_any_value_of_another_type_is_followed_or_refused(family, place, inner, value):
    raw = json.loads(json.dumps(RAW[family]))
    part = raw
    if inner:
        nested = [key for key in raw if isinstance(raw[key], dict) and raw[key]]
        part = raw[nested[place % len(nested)]] if nested else raw
    part[[*part][place % len(part)]] = value
    try:
        config = config_lib.from_json(raw)
    except errors.UserError as error:
        message = str(error)
    else:
        assert config_lib.from_json(config_lib.to_json(config)) == config
        return
    assert "config.json" in message
    assert "\n" not in message


_FAMILIES, _STEMS = ("bert", "roberta"), ("Bert", "Roberta")
BERT = {
    "architectures": [f"{name}ForSequenceClassification" for name in _STEMS],
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": 1,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 1,
    "initializer_range": 0.02, "hidden_act": "gelu", "id2label": {"0": "x"},
}  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(key=st.sampled_from(sorted(BERT)), value=JUNK, family=st.sampled_from(_FAMILIES))
def test_an_encoders_config_of_other_types_is_followed_or_refused(key, value, family):
    raw = BERT | {"model_type": family, key: value}
    if not json_lib.is_named(raw):
        return
    try:
        json_lib.from_json(raw)
    except errors.UserError as error:
        message = str(error)
    else:
        return
    assert "config.json" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size is '32', it must be a whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null, it must be a number above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', it must be true"),
        ({"eos_token_id": ["2"]}, "eos_token_id is ['2'], it must be a token id or a"),
        (
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            "rope_scaling.factor is '2', it must be a number above 0",
        ),
        ({"rope_parameters": [1]}, "rope_parameters is [1], it must be an object"),
    ],
)
def test_the_key_the_value_and_the_type_are_named(changes, message):
    with pytest.raises(errors.UserError) as caught:
        config_lib.from_json(RAW["llama2_gqa"] | changes)
    assert f"config.json: {message}" in str(caught.value)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_an_original_length_at_the_top_comes_first(kind):
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 32}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    raw = RAW["llama2_gqa"] | {"rope_scaling": scaling, "rope_parameters": None}
    top = raw | {"original_max_position_embeddings": 16}
    assert config_lib.from_json(raw).rope.original_length == 32
    assert config_lib.from_json(top).rope.original_length == 16
