"""Makes the small reference values under `tests/values/` from heavy peers.

    pip install -e '.[oracles]' && python tools/make_reference_values.py

The tests read the values, so that running them needs no torch and no transformers.
`models/FAMILY/` is a random tiny checkpoint as transformers saves it, and
`expected.npz` with, in f32 from transformers on CPU:

    tokens i32[2, 10]     mask i32[2, 10]: row 1 is padded on the right
    logits f32[2, 10, V]  under that mask
    left f32[10, V]       row 1 again, its padding moved to the left
    packed f32[10, V]     row 0 as documents of 4 and 6 tokens, each on its own

`bert/KIND/` is the same for encoders, and `expected.npz` holds

    tokens, mask, token_types i32[3, 10]: row 1 is padded; row 2 has the padding's id
                                          as a real token
    hidden f32[3, 10, D]    of the last layer
    vectors f32[3, D]       mean of the real tokens, as sentence-transformers has it
    logits f32[3, labels]   of scorers

and `bert/minilm.npz` real sentences and their vectors by the real all-MiniLM-L6-v2,
which --minilm names; without it the file stays as it is.

Weights are several times larger than at initialisation, so that any single mistake
(rotary layout, norm place, window, ...) moves a logit by far more than 1e-4.
"""

import argparse
import json
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

# Positions 0 .. 15, after padding's two or none.
BERT_SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20,
    "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-2,
}  # fmt: skip
ROBERTA_SIZES = BERT_SIZES | {"max_position_embeddings": 18, "type_vocab_size": 1}

# Name -> (transformers' class, keys of its config, keys of the call).
BERTS = {
    "bert": ("BertModel", BERT_SIZES | {"max_position_embeddings": 16}, {}),
    "bert_scorer": (
        "BertForSequenceClassification",
        BERT_SIZES | {"max_position_embeddings": 16, "num_labels": 1},
        {},
    ),
    "roberta_scorer": (
        "RobertaForSequenceClassification",
        ROBERTA_SIZES | {"num_labels": 1},
        {},
    ),
    "xlm_roberta": ("XLMRobertaModel", ROBERTA_SIZES, {"add_pooling_layer": False}),
}
# What sentence-transformers 2 writes beside a model, as in the published MiniLM.
MODULES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "models.Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
}
SENTENCES = (
    "The capital of France is Paris.",
    "Zero-dimensional biomaterials show inductive properties.",
    "",
    "Was ist die Hauptstadt von Frankreich?",
    "東京は日本の首都です — été 😀",
    "a sentence that is far too long for the encoder " * 40,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=VALUES)
    parser.add_argument("--minilm", type=pathlib.Path, help="folder of the real model")
    args = parser.parse_args()
    make_models(args.out / "models")
    make_berts(args.out / "bert")
    if args.minilm:
        np.savez_compressed(args.out / "bert" / "minilm.npz", **sentences(args.minilm))


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


def make_berts(out: pathlib.Path) -> None:
    """Tiny encoders and scorers, bf16, and what transformers computes with them."""
    for seed, name in enumerate(BERTS):
        model = random_bert(name, seed)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "expected.npz", **bert_expected(model, seed))
        with tempfile.TemporaryDirectory() as scratch:
            model.bfloat16().save_pretrained(scratch)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(pathlib.Path(scratch) / file, folder / file)
    (out / "bert" / "1_Pooling").mkdir()
    for name, value in MODULES.items():
        (out / "bert" / name).write_text(json.dumps(value, indent=2) + "\n")


def random_bert(name: str, seed: int, **overrides):
    """A transformers encoder with random weights, exact in bf16."""
    import torch
    import transformers

    kind, keys, call = BERTS[name]
    made = getattr(transformers, kind)
    config = made.config_class(**(keys | overrides))
    config._attn_implementation = "eager"
    model = made(config, **call)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 0.3 * value + (1 if path.endswith("weight") else 0)
            elif "embeddings" not in path:
                value *= 1.5 / parameter.shape[1] ** 0.5
            parameter.copy_(value.bfloat16())
    return model.float().eval()


def bert_expected(model, seed: int) -> dict[str, np.ndarray]:
    """What an encoder's `expected.npz` holds; see the top of the file."""
    import torch

    config = model.config
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, config.vocab_size, (3, 10)).astype(np.int32)
    mask = np.ones((3, 10), np.int32)
    mask[1, 7:] = 0
    tokens[mask == 0] = tokens[2, 4] = config.pad_token_id
    token_types = np.zeros((3, 10), np.int32)
    token_types[:, 4:] = config.type_vocab_size - 1
    inputs = {
        "input_ids": tokens, "attention_mask": mask, "token_type_ids": token_types,
    }  # fmt: skip
    inputs = {name: torch.tensor(value).long() for name, value in inputs.items()}
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        weight = inputs["attention_mask"][..., None].float()
        vectors = (hidden * weight).sum(1) / weight.sum(1)
        values = {
            "tokens": tokens,
            "mask": mask,
            "token_types": token_types,
            "hidden": hidden.numpy(),
            "vectors": vectors.numpy(),
        }
        if hasattr(model, "classifier"):
            values["logits"] = model(**inputs).logits.numpy()
    return values


def sentences(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """SENTENCES and their vectors: cut at 256 tokens, mean of the tokens, norm 1."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        list(SENTENCES), padding=True, truncation=True, max_length=256,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
        weight = inputs["attention_mask"][..., None].float()
        vectors = (hidden * weight).sum(1) / weight.sum(1)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return {"sentences": np.array(SENTENCES), "vectors": vectors.numpy()}


if __name__ == "__main__":
    main()
