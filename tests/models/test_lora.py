"""Adapters beside a frozen base: peft's values, its folders, and what they cost."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import models
from jaxlab.core import errors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import lora
from jaxlab.models.hf import peft

SIZES = {"vocab": 96, "embed": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 128}
DECODER = models.Decoder(models.TransformerConfig(**SIZES))
TOKENS = np.arange(48, dtype=np.int32).reshape(2, 24)


@pytest.fixture(scope="module")
def base():
    return mesh_lib.unbox(jax.jit(DECODER.init)(jax.random.key(0), TOKENS))


def random_tree(model, seed=1):
    """An adapter whose B is not zero."""
    fresh = mesh_lib.unbox(model.init(jax.random.key(seed), TOKENS)["params"])
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), fresh
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens=TOKENS):
    return model.apply({"params": params}, tokens)


def test_a_fresh_adapter_changes_nothing(base):
    model = lora.Adapted(DECODER, lora.LoraConfig(4))
    fresh = mesh_lib.unbox(model.init(jax.random.key(0), TOKENS)["params"])
    plain = logits(DECODER, base["params"])
    np.testing.assert_array_equal(logits(model, {"base": base}), plain)
    np.testing.assert_allclose(
        logits(model, {"base": base, "lora": fresh}), plain, atol=1e-6
    )


@pytest.mark.parametrize("targets", [lora.MATRICES, ("q", "down"), ("o",)])
@pytest.mark.parametrize("is_rs", [False, True])
def test_beside_the_base_is_as_merged_into_it(base, targets, is_rs):
    config = lora.LoraConfig(4, 8.0, targets=targets, rank_stabilized=is_rs)
    model = lora.Adapted(DECODER, config)
    adapter = random_tree(model)
    beside = logits(model, {"base": base, "lora": adapter})
    merged = logits(DECODER, lora.merge(base["params"], adapter, config))
    np.testing.assert_allclose(beside, merged, atol=1e-5)
    assert np.abs(beside - logits(DECODER, base["params"])).max() > 0.05


@pytest.mark.parametrize("more", [{"remat": "full"}, {"scan": False}])
def test_gradients_do_not_depend_on_how_it_is_computed(base, more):
    config = lora.LoraConfig(4)
    plain = lora.Adapted(DECODER, config)
    changed = models.TransformerConfig(**SIZES, **more)
    other = lora.Adapted(models.Decoder(changed), config)
    adapter = random_tree(plain)

    def loss(model, adapter):
        params = {"base": base, "lora": adapter}
        return jnp.mean(model.apply({"params": params}, TOKENS) ** 2)

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(loss, model)))(adapter)
        for model in (plain, other)
    )
    for path, value in tree.flatten(ours).items():
        np.testing.assert_allclose(tree.flatten(theirs)[path], value, atol=2e-6)
        assert np.abs(value).max() > 0


def test_dropout_needs_a_key_and_follows_it(base):
    model = lora.Adapted(DECODER, lora.LoraConfig(4, dropout=0.5))
    small = jax.tree.map(lambda x: 0.3 * x, random_tree(model))
    params = {"base": base, "lora": small}
    still = logits(model, params)
    keys = [jax.random.key(i) for i in (0, 0, 1)]
    first, again, other = (logits(model, {**params, "key": key}) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    many = [logits(model, {**params, "key": jax.random.key(i)}) for i in range(64)]
    away = np.abs(np.mean(many, axis=0) - still).max()
    assert away < 0.5 * np.abs(first - still).max()  # dropped in the mean: nothing


def test_no_product_of_the_step_has_the_shape_of_a_gradient_of_the_base(base):
    model = lora.Adapted(DECODER, lora.LoraConfig(4))

    def loss(adapter):
        params = {"base": base, "lora": adapter}
        return jnp.mean(model.apply({"params": params}, TOKENS) ** 2)

    def whole(params):
        return jnp.mean(DECODER.apply({"params": params}, TOKENS) ** 2)

    adapter = random_tree(model)
    flops = [
        jax.jit(jax.grad(function)).lower(given).compile().cost_analysis()["flops"]
        for function, given in ((loss, adapter), (whole, base["params"]))
    ]
    assert flops[0] < 0.8 * flops[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 4, "alpha": 0.0}, "alpha"),
        ({"rank": 4, "dropout": 1.5}, "dropout"),
        ({"rank": 4, "targets": ("q", "x")}, "use some of q, k, v, o, gate, up, down"),
        ({"rank": 4, "targets": ()}, "use some of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(errors.UserError, match=message):
        lora.LoraConfig(**settings)


# ---- folders of peft


@pytest.fixture(scope="module")
def vectors(test_data):
    folder = test_data.parent / "vectors" / "peft"
    if not folder.is_dir():
        pytest.skip("the values of peft, vectors/peft, are not there")
    return folder


def _expected(folder):
    with np.load(folder / "expected.npz") as values:
        return dict(values)


def _masked_logits(model, params, tokens, mask):
    found = logits(model, params, jnp.asarray(tokens, jnp.int32))
    return np.where(mask[..., None] == 1, found, 0)


@pytest.mark.parametrize("name", ["lora_r4", "rslora_r4_all"])
def test_peft_folders_give_the_logits_of_peft(vectors, name):
    config, params = models.hf.load(vectors / "base")
    given, decoder = _expected(vectors / "base"), models.Decoder(config)
    tokens, mask = given["input_ids"], given["attention_mask"]
    expected = _expected(vectors / name)
    adapter = peft.read(vectors / name)
    assert pathlib.Path(adapter.base).resolve() == (vectors / "base").resolve()
    wanted = np.where(mask[..., None] == 1, expected["logits"], 0)
    merged = peft.merge(adapter, config, params)
    found = _masked_logits(decoder, merged, tokens, mask)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    settings, made = peft.as_tree(adapter, config)
    beside = lora.Adapted(decoder, settings)
    both = {"base": {"params": params}, "lora": made}
    found = _masked_logits(beside, both, tokens, mask)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    scales = json.loads((vectors / name / "facts.json").read_text())["scale"]
    assert {adapter.scale(module) for module in scales} == set(scales.values())


@pytest.mark.parametrize("name", ["lora_r4", "rslora_r4_all"])
def test_gradients_are_those_of_peft(vectors, name):
    config, params = models.hf.load(vectors / "base")
    given, expected = _expected(vectors / "base"), _expected(vectors / name)
    settings, made = peft.as_tree(peft.read(vectors / name), config)
    model = lora.Adapted(models.Decoder(config), settings)
    tokens, labels = given["input_ids"], given["labels"][:, 1:]

    def loss(adapter):
        both = {"base": {"params": params}, "lora": adapter}
        logps = jax.nn.log_softmax(model.apply({"params": both}, tokens)[:, :-1])
        picked = jnp.take_along_axis(logps, jnp.maximum(labels, 0)[..., None], 2)
        return -jnp.sum(picked[..., 0] * (labels >= 0)) / jnp.sum(labels >= 0)

    value, gradient = jax.jit(jax.value_and_grad(loss))(made)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-5)
    inner = {"attn": "self_attn", "mlp": "mlp"}
    for room, matrices in gradient["blocks"].items():
        for matrix, pair in matrices.items():
            for layer in range(config.layers):
                stem = f"grad/model.layers.{layer}.{inner[room]}.{matrix}_proj.lora_"
                for half in "ab":
                    wanted = expected[f"{stem}{half.upper()}.weight"].T
                    most = np.abs(wanted).max()
                    found = pair[half][layer]
                    np.testing.assert_allclose(found, wanted, atol=1e-4 * most)


def test_a_folder_that_is_written_is_read_again(vectors, tmp_path):
    config, _ = models.hf.load(vectors / "base")
    settings, made = peft.as_tree(peft.read(vectors / "rslora_r4_all"), config)
    peft.save(tmp_path / "out", settings, made, str(vectors / "base"))
    again, read = peft.as_tree(peft.read(tmp_path / "out"), config)
    assert again == settings
    for path, value in tree.flatten(made).items():
        np.testing.assert_array_equal(tree.flatten(read)[path], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'; only LORA is read"),
        ({"use_dora": True}, "use_dora is not computed here"),
        ({"bias": "all"}, "bias is not computed here"),
        ({"r": 0}, "adapter_config.json: r"),
        ({"lora_alpha": "8"}, "adapter_config.json: lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern does not map modules"),
        ({"alpha_pattern": [1]}, "alpha_pattern does not map modules"),
    ],
)
def test_another_kind_of_adapter_is_refused(vectors, tmp_path, changes, message):
    folder = tmp_path / "adapter"
    shutil.copytree(vectors / "lora_r4", folder)
    file = folder / "adapter_config.json"
    file.chmod(0o644)
    folder.chmod(0o755)
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(said))
    with pytest.raises(errors.UserError, match="adapter") as caught:
        peft.read(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
