"""Hugging Face models read here have the logits of transformers."""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.core import errors, safetensors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import Decoder, TransformerConfig, empty_cache, hf
from jaxlab.models import rope as rope_lib
from jaxlab.models.hf import config as config_lib
from tests.support import peers
from tests.support.hf_values import FAMILIES, VALUES, loaded

TOLERANCE = 1e-4  # every single mistake that was tried moves a logit by more


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, segment_ids=None, positions=None):
    return Decoder(config).apply({"params": params}, tokens, segment_ids, positions)


def expected(family):
    return peers.expected(VALUES / family)


def distance(a, b, mask=None):
    difference = np.abs(np.asarray(a) - np.asarray(b))
    return difference.max() if mask is None else difference[mask.astype(bool)].max()


# ---- parity with transformers ----


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_on_rows_of_different_lengths(family):
    config, params = loaded(family)
    values = expected(family)
    ours = logits(config, params, values["tokens"])
    assert distance(ours, values["logits"], values["mask"]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_and_packed_documents_are_those_of_transformers(family):
    config, params = loaded(family)
    values = expected(family)
    real = values["mask"].sum(axis=1)[1]
    padding = 10 - real
    segments = np.array([[0] * 4 + [1] * 6, [7] * padding + [8] * real])
    positions = np.array([[*range(4), *range(6)], [*range(10)]])
    tokens = np.stack([values["tokens"][0], np.roll(values["tokens"][1], padding)])
    packed, left = logits(config, params, tokens, segments, positions)
    assert distance(packed, values["packed"]) < TOLERANCE
    assert distance(left[padding:], values["left"][padding:]) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        ("olmo1", {"norm_epsilon": 1e-3}),
        ("olmo1_clip_tied", {"clip_qkv": None}),
        ("olmo2_gqa", {"norm_epsilon": 1e-3}),
        ("llama2_gqa", {"rope": rope_lib.Rope(theta=1e6)}),
        ("olmo3_window_yarn", {"window": 4}),
        ("olmo3_window_yarn", {"full_layers": (2,)}),
        ("olmo3_window_yarn", {"rope": rope_lib.Rope(theta=500.0)}),
        ("olmo3_window_yarn", {"window_rope": loaded("olmo3_window_yarn")[0].rope}),
        ("llama31_tied", {"rope": rope_lib.Rope(theta=500.0)}),
    ],
)
def test_the_reference_values_would_show_a_wrong_option(family, mistake):
    config, params = loaded(family)
    config = dataclasses.replace(config, **mistake)
    values = expected(family)
    ours = logits(config, params, values["tokens"])
    assert distance(ours, values["logits"], values["mask"]) > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmo1", "olmo2_gqa", "llama2_gqa"])
def test_logits_loss_and_greedy_decoding_follow_larger_checkpoints(family, test_data):
    folder = test_data.parent / "vectors" / "olmo_tulu" / family
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    config, params = hf.load(folder)
    with np.load(folder / "expected.npz") as file:
        values = dict(file)
    tokens, mask = values["input_ids"], values["attention_mask"]
    ours = logits(config, params, tokens)
    assert distance(ours, values["logits"], mask) < TOLERANCE

    labels = values["labels"][:, 1:]
    logps = jax.nn.log_softmax(ours[:, :-1])
    picked = np.take_along_axis(logps, np.maximum(labels, 0)[..., None], -1)[..., 0]
    loss = -(picked * (labels >= 0)).sum() / (labels >= 0).sum()
    assert abs(loss - values["loss"]) < 1e-5

    lengths = values["packed_doc_lens"]
    segments = np.repeat(np.arange(len(lengths)), lengths)[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    packed = logits(config, params, tokens[:1], segments, positions)
    assert distance(packed[0], values["packed_logits_row0"]) < TOLERANCE

    legacy = json.loads((folder / "config_legacy.json").read_text())
    assert config_lib.from_json(legacy) == config
    assert greedy(config, params, values["greedy"][:, :9], 10) == list(
        values["greedy"][0]
    )


def greedy(config, params, prompt, new):
    step = jax.jit(
        functools.partial(Decoder(config).apply, method=Decoder.extend),
    )
    cache = empty_cache(config, 1, prompt.shape[1] + new)
    tokens, ids = jnp.asarray(prompt), list(prompt[0])
    for _ in range(new):
        valid = jnp.ones(tokens.shape, bool)
        scores, cache = step({"params": params}, tokens, cache, valid)
        tokens = scores.argmax(axis=-1)[:, None].astype(jnp.int32)
        ids.append(int(tokens[0, 0]))
    return ids


# ---- loading ----


def test_parameters_are_plain_float32_jax_arrays_by_default():
    _, params = loaded("olmo2_gqa")
    assert type(params) is dict
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert params["blocks"]["attn"]["k"]["kernel"].shape == (2, 24, 12)


def test_a_matrix_is_the_transposed_tensor_of_its_layer():
    _, params = loaded("llama2_gqa")
    raw = safetensors.read_folder(VALUES / "llama2_gqa")
    gate = raw["model.layers.1.mlp.gate_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["blocks"]["mlp"]["gate"]["kernel"][1], gate.T)


def test_a_mesh_shards_the_parameters_without_changing_them():
    _, params = loaded("olmo2_gqa")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, sharded = hf.load(VALUES / "olmo2_gqa", mesh=mesh)
    kernel = sharded["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 12, 14)
    jax.tree.map(np.testing.assert_array_equal, params, sharded)


def test_both_layouts_of_rotary_positions_read_the_same():
    raw = json.loads((VALUES / "llama31_tied" / "config.json").read_text())
    new = config_lib.from_json(raw)
    scaling = raw.pop("rope_parameters")
    theta = scaling.pop("rope_theta")
    old = raw | {"rope_theta": theta, "rope_scaling": scaling}
    assert config_lib.from_json(old) == new
    scaling["type"] = scaling.pop("rope_type")
    assert config_lib.from_json(old) == new
    assert new.rope.scaling == "llama3"
    assert new.rope.original_length == 32


def test_legacy_olmo3_scales_only_its_full_layers():
    raw = json.loads((VALUES / "olmo3_window_yarn" / "config.json").read_text())
    new = config_lib.from_json(raw)
    ropes = raw.pop("rope_parameters")
    full = ropes["full_attention"]
    raw |= {"rope_theta": full.pop("rope_theta"), "rope_scaling": full}
    assert config_lib.from_json(raw) == new
    assert new.rope.scaling == "yarn"
    assert new.window_rope == rope_lib.Rope(theta=500.0)
    assert new.full_layers == (1,)


def test_absent_keys_have_the_values_of_transformers():
    sizes = {
        "vocab_size": 48, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 8, "num_attention_heads": 4,
    }  # fmt: skip
    llama = config_lib.from_json(sizes | {"model_type": "llama"})
    assert (llama.norm_epsilon, llama.rope.theta, llama.eos_id) == (1e-6, 1e4, 2)
    assert (llama.kv_heads, llama.tied, llama.length) == (4, False, 2048)
    olmo3 = config_lib.from_json(sizes | {"architectures": ["Olmo3ForCausalLM"]})
    assert (olmo3.window, olmo3.full_layers) == (4096, (3, 7))
    assert (olmo3.rope.theta, olmo3.window_rope.theta) == (5e5, 5e5)


def test_of_several_end_tokens_all_are_kept():
    raw = json.loads((VALUES / "olmo1" / "config.json").read_text())
    config = config_lib.from_json(raw | {"eos_token_id": [5, 7]})
    assert config.eos_id == (5, 7)
    assert config_lib.to_json(config)["eos_token_id"] == [5, 7]
    assert config_lib.from_json(raw | {"eos_token_id": [5]}).eos_id == 5


def test_a_tied_checkpoint_may_store_its_head_when_it_is_the_embedding(tmp_path):
    folder = peers.copy("models/llama31_tied", tmp_path / "m")
    embedding = "model.embed_tokens.weight"
    peers.rewrite(folder, lambda t: t.update({"lm_head.weight": t[embedding]}))
    peers.rewrite(folder, lambda t: t.update({"rotary_emb.inv_freq": t[embedding][0]}))
    _, params = hf.load(folder)
    assert tree.differences([params, loaded("llama31_tied")[1]]) == []
    peers.rewrite(folder, lambda t: t.update({"lm_head.weight": t[embedding] * 2}))
    with pytest.raises(errors.UserError, match=r"lm_head.weight differs"):
        hf.load(folder)


def test_weights_that_are_not_finite_are_loaded(tmp_path):
    folder = peers.copy("models/olmo1", tmp_path / "m")
    peers.rewrite(folder, lambda t: t["lm_head.weight"].fill(np.nan))
    assert np.isnan(hf.load(folder)[1]["lm_head"]["kernel"]).all()


# ---- the live peer ----


@pytest.mark.oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_live_transformers_reads_and_writes_the_same_model(family, tmp_path):
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
    import make_reference_values as reference
    import torch
    import transformers

    theirs = reference.random_model(family, seed=11)
    tokens = np.random.default_rng(1).integers(3, 40, (2, 24)).astype(np.int32)

    def torch_logits(model):
        with torch.no_grad():
            return model(input_ids=torch.tensor(tokens).long()).logits.float().numpy()

    want = torch_logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="12KB")
    assert (tmp_path / "theirs" / safetensors.INDEX).is_file()
    config, params = hf.load(tmp_path / "theirs")
    assert distance(logits(config, params, tokens), want) < TOLERANCE

    for dtype in hf.DTYPES:
        # The weights are exact in bf16, and float16 has more bits: nothing is lost.
        folder = tmp_path / dtype
        hf.save(folder, config, params, dtype=dtype, shard_bytes=12_000)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
        assert str(model.dtype) == f"torch.{dtype}"
        assert distance(torch_logits(model.float()), want) < TOLERANCE
        assert model.config.rope_parameters == theirs.config.rope_parameters
        assert model.config.eos_token_id == theirs.config.eos_token_id


@pytest.mark.oracle
def test_live_transformers_reads_scalings_and_head_sizes_of_ours(tmp_path):
    import torch
    import transformers

    tokens = np.random.default_rng(1).integers(0, 40, (1, 40)).astype(np.int32)
    sizes = {"vocab": 40, "embed": 16, "layers": 2, "heads": 4, "mlp": 24}
    yarn = rope_lib.Rope(
        theta=300.0, scaling="yarn", factor=4.0, original_length=16, beta_fast=3.0
    )
    configs = [
        TransformerConfig(**sizes, rope=rope_lib.Rope(scaling="linear", factor=3.0)),
        TransformerConfig(**sizes, rope=yarn, head_dim=12, kv_heads=1),
        TransformerConfig(
            **sizes, rope=dataclasses.replace(yarn, truncate=False), length=64
        ),
        TransformerConfig(**sizes, norm="layernorm", head_dim=6, tied=True),
        TransformerConfig(
            **sizes, norm_position="post", qk_norm=True, head_dim=6, window=5,
            rope=yarn, window_rope=rope_lib.Rope(theta=90.0),
        ),
    ]  # fmt: skip
    for i, config in enumerate(configs):
        config = dataclasses.replace(config, initializer_std=0.3)
        params = Decoder(config).init(jax.random.key(0), tokens)["params"]
        params = nn.unbox(params)
        hf.save(tmp_path / str(i), config, params)
        assert hf.load(tmp_path / str(i))[0] == config
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
        with torch.no_grad():
            want = model(input_ids=torch.tensor(tokens).long()).logits.numpy()
        assert distance(logits(config, params, tokens), want) < TOLERANCE, config
