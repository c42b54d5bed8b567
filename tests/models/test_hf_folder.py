"""Hugging Face folders: what is written, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import errors, safetensors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import TransformerConfig, hf
from tests.support import peers
from tests.support.hf_values import FAMILIES, VALUES, loaded

# ---- errors ----


def drop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; supported are Olmo"),
        ({"hidden_size": ...}, "lacks hidden_size"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logits_scaling": 8.0}, "logits_scaling 8.0 is not supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not"),
        (
            {"model_type": "mistral"},
            "'mistral' and architectures Llama.* are different",
        ),
        ({"num_key_value_heads": 3}, "4 heads do not share 3 kv_heads"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "linear rope lacks factor"),
        ({"rope_scaling": {"type": "default", "mscale": 1.0}}, "rope with mscale"),
        ({"vocab_size": 41}, r"embed_tokens.weight is \[40, 24\], not \[41, 24\]"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors .* and 3 more"),
        ({"num_hidden_layers": 1}, "has 9 tensors that config.json does not call"),
        ({"head_dim": 8}, r"k_proj.weight is \[12, 24\], not \[16, 24\]"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs"),
    ],
)
def test_a_config_that_cannot_be_followed_is_one_clear_error(
    tmp_path, changes, message
):
    folder = peers.copy("models/llama2_gqa", tmp_path / "m")
    peers.edit(folder / "config.json", **changes)
    with pytest.raises(errors.UserError, match=message) as error:
        hf.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "1 layer_types for 3"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types has linear_attention"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "su"}}},
            "rope type 'su'",
        ),
    ],
)
def test_layer_types_that_cannot_be_followed_are_refused(tmp_path, changes, message):
    folder = peers.copy("models/olmo3_window_yarn", tmp_path / "m")
    peers.edit(folder / "config.json", **changes)
    with pytest.raises(errors.UserError, match=message):
        hf.load(folder)


def test_an_adapter_beside_a_model_is_not_passed_by(tmp_path):
    folder = peers.copy("models/llama2_gqa", tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        errors.UserError, match="adapter beside the model, which is not"
    ):
        hf.load(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"nowhere does not exist; give"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(errors.UserError, match=r"has no config\.json; give"):
        hf.load(tmp_path)
    folder = peers.copy("models/olmo1", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(errors.UserError, match=r"neither model.safetensors nor"):
        hf.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(errors.UserError, match="is not JSON"):
        hf.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(errors.UserError, match="is not a JSON object"):
        hf.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-100], "cut short"),
        (lambda data: data + b"0", "cut short"),
        (lambda data: data[:100], "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: data[:8] + b"x" + data[9:], "header cannot be read"),
        (lambda data: data.replace(b'"BF16"', b'"F8_Z"', 1), "stored as F8_Z"),
        (lambda data: data.replace(b'"BF16"', b'"F32" ', 1), "does not fill"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    folder = peers.copy("models/olmo1", tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(errors.UserError, match=message):
        hf.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.layers.1.mlp.up_proj.weight"), "lacks 1 tensors"),
        (lambda t: t.update({"score.weight": t["lm_head.weight"]}), "score.weight"),
        (
            lambda t: t.update({"lm_head.weight": np.ones((40, 24), np.int8)}),
            "lm_head.weight are integers",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = peers.copy("models/olmo1", tmp_path / "m")
    peers.rewrite(folder, change)
    with pytest.raises(errors.UserError, match=message):
        hf.load(folder)


def test_a_missing_shard_and_a_broken_index_are_refused(tmp_path):
    config, params = loaded("olmo1")
    hf.save(tmp_path / "m", config, params, shard_bytes=20_000)
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    shards[1].unlink()
    message = f"lacks 1 of {len(shards)} shards: model-00002"
    with pytest.raises(errors.UserError, match=message):
        hf.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(errors.UserError, match="has no weight_map"):
        hf.load(tmp_path / "m")


# ---- saving ----


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_gives_the_same_bits_and_config(family, tmp_path):
    config, params = loaded(family)
    hf.save(tmp_path / "m", config, params)
    again, back = hf.load(tmp_path / "m")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, back)
    # The reference weights are bf16: their bytes must come back as they were.
    hf.save(tmp_path / "b", config, params, dtype="bfloat16")
    old, new = (safetensors.read_folder(f) for f in (VALUES / family, tmp_path / "b"))
    assert old.keys() == new.keys()
    assert all(old[name].tobytes() == new[name].tobytes() for name in old)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
def test_every_dtype_survives_a_round_trip_bit_by_bit(dtype, tmp_path):
    config, params = loaded("olmo2_gqa")
    stored = jnp.dtype(dtype or "bfloat16")
    params = jax.tree.map(lambda x: (x * 1.001).astype(stored), params)
    hf.save(tmp_path / "m", config, params, dtype=dtype, shard_bytes=9_000)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    _, back = hf.load(tmp_path / "m", dtype=stored)
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert tree.differences([params, back]) == []
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["torch_dtype"] == raw["dtype"] == stored.name


def test_shards_hold_at_most_the_bytes_asked_for(tmp_path):
    config, params = loaded("olmo1")
    hf.save(tmp_path / "m", config, params, shard_bytes=20_000)
    index = json.loads((tmp_path / "m" / safetensors.INDEX).read_text())
    tensors = safetensors.read_folder(tmp_path / "m")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for file in set(index["weight_map"].values()):
        shard = safetensors.read(tmp_path / "m" / file)
        assert sum(x.nbytes for x in shard.values()) <= 20_000


def test_sharded_parameters_are_saved_as_if_they_were_whole(tmp_path):
    config, params = loaded("llama2_gqa")
    mesh = mesh_lib.make_mesh({"fsdp": 4, "tensor": 2})
    _, sharded = hf.load(VALUES / "llama2_gqa", mesh=mesh)
    hf.save(tmp_path / "one", config, params)
    hf.save(tmp_path / "many", config, sharded)
    for name in ("config.json", "model.safetensors"):
        one, many = (tmp_path / f / name for f in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()


def test_overwriting_replaces_the_checkpoint_and_keeps_other_files(tmp_path):
    config, params = loaded("olmo1")
    folder = tmp_path / "m"
    hf.save(folder, config, params, shard_bytes=20_000)
    (folder / "README.md").write_text("mine")
    with pytest.raises(errors.UserError, match="use overwrite=True"):
        hf.save(folder, config, params)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    hf.save(folder, config, doubled, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    assert not list(folder.glob("model-*")), "shards of the old checkpoint are gone"
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder)[1], doubled)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_is_no_checkpoint_is_never_overwritten(tmp_path):
    config, params = loaded("olmo1")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(errors.UserError, match="is not a Hugging Face checkpoint"):
        hf.save(tmp_path, config, params, overwrite=True)


def test_a_save_that_fails_leaves_nothing_behind(tmp_path):
    config, params = loaded("olmo1")
    huge = jax.tree.map(lambda x: x * 1e6, params)
    with pytest.raises(errors.UserError, match="beyond float16's 65504"):
        hf.save(tmp_path / "m", config, huge, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_tokenizer_files_travel_along(tmp_path):
    config, params = loaded("olmo1")
    with pytest.raises(errors.UserError, match="has no tokenizer files"):
        hf.save(tmp_path / "m", config, params, tokenizer_folder=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "weights.bin").write_text("no")
    hf.save(tmp_path / "m", config, params, tokenizer_folder=tmp_path)
    names = sorted(file.name for file in (tmp_path / "m").iterdir())
    assert names == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_position": "post"},
        {"norm_epsilon": 1e-6},
        {"norm": "rmsnorm", "clip_qkv": 8.0},
        {"window": 4},
        {"is_causal": False},
    ],
)
def test_a_config_that_no_family_has_is_refused(changes, tmp_path):
    config = dataclasses.replace(loaded("olmo1")[0], **changes)
    with pytest.raises(errors.UserError, match="no Hugging Face family"):
        hf.save(tmp_path / "m", config, {})


def test_parameters_of_another_model_are_refused(tmp_path):
    config, params = loaded("olmo1")
    rest = {k: v for k, v in params.items() if k != "lm_head"}
    with pytest.raises(errors.UserError, match="tree 1 lacks lm_head/kernel"):
        hf.save(tmp_path / "m", config, rest)
    with pytest.raises(errors.UserError, match="dtype int8"):
        hf.save(tmp_path / "m", config, params, dtype="int8")
    odd = TransformerConfig(vocab=40, embed=26, layers=1, heads=4, head_dim=6, mlp=8)
    with pytest.raises(errors.UserError, match="not a multiple of its 4 heads"):
        hf.save(tmp_path / "m", odd, {})
