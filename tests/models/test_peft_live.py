"""Adapters that peft itself makes, of every kind that is read: equal logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import load, models
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import lora
from jaxlab.models.hf import peft as folders
from tests.support import published

DECODER = models.TransformerConfig(
    vocab=300, embed=32, layers=3, heads=4, kv_heads=2, mlp=64, length=64,
    eos_id=2, bos_id=1,
)  # fmt: skip
TOKENS = np.arange(3, 35, dtype=np.int32).reshape(2, 16)
ATTENTION = ["q_proj", "v_proj"]
KINDS = {
    "plain": {"target_modules": ATTENTION},
    "all": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": [*ATTENTION, "up_proj"],
        "rank_pattern": {"up_proj": 2, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"v_proj": 32},
    },
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [0, 2]},
    "whole modules": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "norms": {"target_modules": ATTENTION, "modules_to_save": ["norm"]},
    "embeddings": {"target_modules": ["embed_tokens", "down_proj"]},
    "head": {"target_modules": ["lm_head", "o_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = tmp_path_factory.mktemp("base")
    tokenizer = published.write(home / "tokenizer")
    made = jax.jit(models.Decoder(DECODER).init)(jax.random.key(0), TOKENS)["params"]
    params = jax.tree.map(lambda x: x * 5, mesh_lib.unbox(made))
    models.hf.save(home / "hf", DECODER, params, tokenizer_folder=tokenizer)
    return home / "hf"


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_peft_have_the_logits_of_peft(kind, base, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(r=4, lora_alpha=8, **KINDS[kind])
    theirs = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value += 0.1 * torch.randn_like(value)
        expected = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    theirs.save_pretrained(tmp_path / "adapter")
    opened = load.decoder(tmp_path / "adapter")
    found = opened.model.apply({"params": opened.params}, jnp.asarray(TOKENS))
    plain = load.decoder(base)
    before = plain.model.apply({"params": plain.params}, jnp.asarray(TOKENS))
    assert np.abs(before - expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, atol=2e-4)
    read = folders.read(tmp_path / "adapter")
    if kind not in ("plain", "all"):
        with pytest.raises(errors.UserError, match="jaxlab convert"):
            folders.as_tree(read, DECODER)
        return
    config, tree = folders.as_tree(read, DECODER)
    beside = lora.Adapted(models.Decoder(DECODER), config)
    params = {"base": {"params": plain.params}, "lora": tree}
    found = beside.apply({"params": params}, jnp.asarray(TOKENS))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.oracle
def test_peft_reads_an_adapter_that_is_written_here(base, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = lora.LoraConfig(4, 8.0, targets=("q", "o", "down"), rank_stabilized=True)
    model = lora.Adapted(models.Decoder(DECODER), config)
    fresh = mesh_lib.unbox(model.init(jax.random.key(0), TOKENS)["params"])
    draw = np.random.default_rng(0)
    made = jax.tree.map(lambda x: np.float32(0.2 * draw.normal(size=x.shape)), fresh)
    folders.save(tmp_path / "adapter", config, made, str(base))
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        tmp_path / "adapter",
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    params = {"base": {"params": load.decoder(base).params}, "lora": made}
    found = model.apply({"params": params}, jnp.asarray(TOKENS))
    np.testing.assert_allclose(found, expected, atol=2e-4)
