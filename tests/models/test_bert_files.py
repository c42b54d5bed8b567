"""Files of encoders and rerankers: what is read, written and refused."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from jaxlab import merge
from jaxlab.core import errors, safetensors, tree
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import BertConfig, hf
from jaxlab.models.bert import json as json_lib
from tests.support import peers
from tests.support.bert_values import (
    KINDS,
    TOLERANCE,
    VALUES,
    loaded,
    run,
    shapes,
    vectors,
)

# ---- loading and saving ----


def test_what_is_loaded_is_what_the_model_makes():
    for kind in KINDS:
        config, params = loaded(kind)
        assert tree.differences([shapes(config, kind), params]) == []
    assert [loaded(kind)[0].head for kind in KINDS] == [
        "pooler",
        "score",
        "score",
        "none",
    ]
    raw = safetensors.read_folder(VALUES / "bert")
    up = raw["encoder.layer.1.intermediate.dense.weight"].astype(np.float32)
    _, params = loaded("bert")
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"][1], up.T)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_gives_the_same_bits_and_config(kind, tmp_path):
    config, params = loaded(kind)
    hf.save(tmp_path / "m", config, params, shard_bytes=9_000)
    again, back = hf.load(tmp_path / "m")
    assert again == config == hf.read_config(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, params, back)
    hf.save(tmp_path / "b", config, params, dtype="bfloat16")
    old, new = (safetensors.read_folder(f) for f in (VALUES / kind, tmp_path / "b"))
    assert old.keys() == new.keys()
    assert all(old[name].tobytes() == new[name].tobytes() for name in old)


def test_the_files_of_sentence_transformers_set_the_pooling(tmp_path):
    config, params = loaded("bert")
    assert (config.pooling, config.normalize, config.row_length) == ("cls", True, 12)
    for pooling, normalize in (("mean", False), ("none", True), ("none", False)):
        chosen = dataclasses.replace(config, pooling=pooling, normalize=normalize)
        hf.save(tmp_path / "m", chosen, params, overwrite=True)
        assert hf.read_config(tmp_path / "m") == chosen
    plain, _ = loaded("xlm_roberta")
    assert (plain.pooling, plain.normalize, plain.row_length) == ("mean", False, 16)
    newer = peers.copy("bert/bert", tmp_path / "newer")
    (newer / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (newer / "sentence_bert_config.json").write_text("{}")
    for limit, length in ((7, 7), (1e30, 16)):
        settings = json.dumps({"model_max_length": limit})
        (newer / "tokenizer_config.json").write_text(settings)
        config = hf.read_config(newer)
        assert (config.pooling, config.row_length) == ("mean", length)


def test_a_scorer_that_replaces_an_encoder_leaves_no_pooling_behind(tmp_path):
    hf.save(tmp_path / "m", *loaded("bert"))
    assert (tmp_path / "m" / "modules.json").is_file()
    hf.save(tmp_path / "m", *loaded("bert_scorer"), overwrite=True)
    names = sorted(file.name for file in (tmp_path / "m").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_checkpoints_of_pretraining_load_as_encoders(tmp_path, caplog):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.edit(folder / "config.json", architectures=["BertForPreTraining"])

    def as_published(tensors):
        named = {
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        named["cls.predictions.bias"] = np.zeros(40, np.float32)
        named["bert.embeddings.position_ids"] = np.arange(16)[None]
        return named

    peers.rewrite(folder, as_published)
    with caplog.at_level("INFO"):
        config, params = hf.load(folder)
    assert "left out, heads of pre-training: cls.predictions.bias" in caplog.text
    assert config == loaded("bert")[0]
    jax.tree.map(np.testing.assert_array_equal, params, loaded("bert")[1])


def test_absent_keys_have_the_values_of_transformers():
    sizes = {
        "vocab_size": 48, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 8, "num_attention_heads": 4,
    }  # fmt: skip
    roberta = json_lib.from_json(sizes | {"model_type": "roberta"})
    assert (roberta.pad_id, roberta.length, roberta.token_types) == (1, 510, 2)
    name = "BertForSequenceClassification"
    plain = json_lib.from_json(sizes | {"model_type": "bert", "architectures": [name]})
    assert (plain.pad_id, plain.length, plain.norm_epsilon) == (0, 512, 1e-12)
    assert plain.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "names BertForQuest"),
        ("bert", {"model_type": "deberta", "architectures": ...}, "deberta; supported"),
        ("bert", {"hidden_size": ...}, "lacks hidden_size"),
        ("bert", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_typ"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"num_attention_heads": 3}, "embed 16 is not a multiple of 3 heads"),
        ("bert", {"vocab_size": 41}, r"weight is \[40, 16\], not \[41, 16\]"),
        ("bert", {"num_hidden_layers": 1}, "has 16 tensors that config.json does not"),
        ("xlm_roberta", {"pad_token_id": None}, "RoBERTa counts by it"),
        ("roberta_scorer", {"architectures": ["RobertaModel"]}, "has 4 tensors"),
        (
            "bert",
            {"architectures": ["BertForSequenceClassification"]},
            "lacks 2 tensors that config.json calls for: classifier.bias",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_one_clear_error(
    tmp_path, kind, changes, message
):
    folder = peers.copy(f"bert/{kind}", tmp_path / "m")
    peers.edit(folder / "config.json", **changes)
    with pytest.raises(errors.UserError, match=message) as error:
        hf.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": np.ones(2)}, "does not call for: extra"),
        ({"pooler.dense.bias": ...}, "lacks 1 tensors .* pooler.dense.bias"),
        ({"bert.pooler.dense.bias": np.ones(16)}, "pooler.dense.bias under two names"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, changes, message):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.rewrite(
        folder,
        lambda tensors: {k: v for k, v in (tensors | changes).items() if v is not ...},
    )
    with pytest.raises(errors.UserError, match=message):
        hf.load(folder)


def test_modules_that_are_not_computed_are_refused(tmp_path):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.edit(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(errors.UserError, match="pools by cls and max; supported are"):
        hf.load(folder)
    module = {"idx": 1, "name": "1", "path": "1_Dense", "type": "models.Dense"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(errors.UserError, match="has a Dense module; supported are"):
        hf.load(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(errors.UserError, match="is not JSON"):
        hf.load(folder)


def test_configs_that_contradict_themselves_are_refused():
    sizes = {"vocab": 8, "embed": 8, "layers": 1, "heads": 2, "mlp": 8}
    for changes, message in (
        ({"pooling": "max"}, "pooling 'max'; use one of"),
        ({"row_length": 513}, "row_length 513 is beyond the 512 positions"),
        ({"labels": ()}, "labels is empty"),
        ({"layers": 0}, "layers is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BertConfig(**(sizes | changes))


def test_encoders_are_merged_like_any_tree(tmp_path):
    config, params = loaded("bert")
    other = jax.tree.map(lambda x: 3 * x, params)
    hf.save(tmp_path / "m", config, merge.average([params, other]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6),
        hf.load(tmp_path / "m")[1],
        params,
    )


# ---- live transformers ----


def reference():
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
    import make_reference_values

    return make_reference_values


@pytest.mark.oracle
@pytest.mark.parametrize("stem", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("task", ["Model", "ForSequenceClassification", "ForMaskedLM"])
def test_live_transformers_reads_ours_and_we_read_theirs(
    stem, task, tmp_path, monkeypatch
):
    import transformers

    tool = reference()
    keys = tool.BERT_SIZES if stem == "Bert" else tool.ROBERTA_SIZES
    keys = keys | {"max_position_embeddings": 18, "num_labels": 1}
    monkeypatch.setitem(tool.BERTS, "live", (stem + task, keys, {}))
    theirs = tool.random_bert("live", seed=5)
    values = tool.bert_expected(theirs, seed=6)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="12KB")
    assert (tmp_path / "theirs" / safetensors.INDEX).is_file()
    config, params = hf.load(tmp_path / "theirs")
    batch = values["tokens"], values["mask"].astype(bool), values["token_types"]
    ours = vectors(config, params, *batch)
    np.testing.assert_allclose(ours, values["vectors"], atol=TOLERANCE)
    if config.head == "score":
        ours = run(config, "logits", params, *batch)
        np.testing.assert_allclose(ours, values["logits"], atol=TOLERANCE)

    hf.save(tmp_path / "ours", config, params)
    made = getattr(transformers, stem + task.replace("ForMaskedLM", "Model"))
    call = {} if config.head != "none" else {"add_pooling_layer": False}
    model, report = made.from_pretrained(
        tmp_path / "ours", output_loading_info=True, **call
    )
    assert not any(report.values()), report
    again = tool.bert_expected(model.eval(), seed=6)
    for name, value in again.items():
        np.testing.assert_allclose(value, values[name], atol=1e-5)


@pytest.mark.oracle
def test_live_transformers_agrees_on_real_pairs_and_a_saved_minilm(minilm, tmp_path):
    import torch
    import transformers

    config, params = hf.load(minilm)
    hf.save(tmp_path / "m", config, params, tokenizer_folder=minilm)
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report.values()), report
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    first = ["what is the capital?", "", "東京の人口は"]
    second = ["Paris is the capital of France. " * 20, "Zürich", "日本 \N{SNOWMAN} ок"]
    rows = text_rows.encode_pairs(tokenizer_lib.load(minilm), first, second, 48)
    batch = theirs(
        first, second, truncation="only_second", max_length=48,
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    np.testing.assert_array_equal(rows.tokens, batch["input_ids"])
    np.testing.assert_array_equal(rows.mask, batch["attention_mask"])
    np.testing.assert_array_equal(rows.token_types, batch["token_type_ids"])
    with torch.no_grad():
        want = model.eval()(**batch).last_hidden_state.numpy()
    ours = np.asarray(run(config, "hidden", params, *rows[:3]))
    assert np.abs(ours - want)[rows.mask].max() < TOLERANCE
