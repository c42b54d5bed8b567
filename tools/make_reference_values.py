"""Makes the small reference values under `tests/values/` from heavy peers.

    pip install -e '.[oracles]' && python tools/make_reference_values.py

The tests read the values, so that running them needs no torch and no transformers.
`models/FAMILY/` is a random tiny checkpoint as transformers saves it, and
`expected.npz` with, in f32 from transformers on CPU:

    tokens i32[2, 10]     mask i32[2, 10]: row 1 is padded on the right
    logits f32[2, 10, V]  under that mask
    left f32[10, V]       row 1 again, its padding moved to the left
    packed f32[10, V]     row 0 as documents of 4 and 6 tokens, each on its own

Weights are several times larger than at initialisation, so that any single mistake
(rotary layout, norm place, window, ...) moves a logit by far more than 1e-4.
"""

import argparse
import pathlib
import shutil
import tempfile

import numpy as np

VALUES = pathlib.Path(__file__).parents[1] / "tests" / "values"

# Two kv heads under four heads, so that their grouping matters.
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 4.0,
    "beta_slow": 1.0, "original_max_position_embeddings": 64, "attention_factor": 1.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip

# Name -> (model_type, keys of its config).
FAMILIES = {
    "olmo1": ("olmo", SIZES),
    "olmo1_clip_tied": (
        "olmo",
        SIZES | {"clip_qkv": 0.8, "tie_word_embeddings": True},
    ),
    "olmo2_gqa": ("olmo2", GROUPED | {"rms_norm_eps": 1e-6}),
    "olmo3_window_yarn": (
        "olmo3",
        GROUPED
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 3,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "llama2_gqa": ("llama", GROUPED | {"rms_norm_eps": 1e-5}),
    "llama31_tied": (
        "llama",
        GROUPED
        | {"head_dim": 8, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=VALUES)
    out = parser.parse_args().out
    make_models(out / "models")


def make_models(out: pathlib.Path) -> None:
    """Checkpoints of every family, bf16, and what transformers computes with them."""
    for seed, name in enumerate(FAMILIES):
        model = random_model(name, seed)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        values = expected(model, seed)  # before bfloat16(), which rounds inv_freq too
        with tempfile.TemporaryDirectory() as scratch:
            model.bfloat16().save_pretrained(scratch)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(pathlib.Path(scratch) / file, folder / file)
        np.savez_compressed(folder / "expected.npz", **values)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(
            f"{name}: {size / 1e3:.0f} kB, logits {np.ptp(values['logits']):.1f} wide"
        )


def random_model(name: str, seed: int, **overrides):
    """A transformers model of a family with random weights, exact in bf16."""
    import torch
    import transformers

    kind, keys = FAMILIES[name]
    config = transformers.AutoConfig.for_model(kind, **(keys | overrides))
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 1 + 0.3 * noise
            else:
                value = 1.5 * noise / parameter.shape[1] ** 0.5
            parameter.copy_(value.bfloat16())
    return model.float().eval()


def expected(model, seed: int) -> dict[str, np.ndarray]:
    """What `expected.npz` holds; see the top of the file."""
    import torch

    tokens = np.random.default_rng(seed).integers(3, 40, (2, 10)).astype(np.int32)
    mask = np.ones((2, 10), np.int32)
    mask[1, 7:] = 0
    tokens[mask == 0] = 1

    def logits(tokens, mask=None):
        ids = torch.tensor(np.atleast_2d(tokens)).long()
        mask = None if mask is None else torch.tensor(np.atleast_2d(mask)).long()
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).logits.numpy()

    documents = [logits(tokens[0, :4])[0], logits(tokens[0, 4:])[0]]
    return {
        "tokens": tokens,
        "mask": mask,
        "logits": logits(tokens, mask),
        "left": logits(np.roll(tokens[1], 3), np.roll(mask[1], 3))[0],
        "packed": np.concatenate(documents),
    }


if __name__ == "__main__":
    main()
