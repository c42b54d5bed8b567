"""Small published models: a Llama that writes what it is told, in a folder."""

import json
import pathlib

import numpy as np
import tokenizers

from jaxlab.core import safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
    "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOKENIZER = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}:{{ m['content'] }}]{% endfor %}"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer(extra: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """Of bytes, with <unk>, <s>, </s> and more special tokens from 259 on."""
    vocab = {text: i for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    for text in sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()):
        vocab[text] = len(vocab)
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<unk>", "<s>", "</s>", *extra])
    return made


def tensors(order: tuple[int, ...] = (), seed: int = 0) -> dict[str, np.ndarray]:
    """Those of CONFIG; the likeliest token after order[i] is order[i + 1]."""
    draw, wide, vocab = np.random.default_rng(seed), 32, CONFIG["vocab_size"]
    layer = "model.layers.0."
    shapes = {f"{layer}self_attn.{x}_proj.weight": (wide, wide) for x in "qkvo"}
    shapes |= {f"{layer}mlp.{x}_proj.weight": (8, wide) for x in ("gate", "up")}
    shapes |= {f"{layer}mlp.down_proj.weight": (wide, 8)}
    shapes |= {EMBED: (vocab, wide), HEAD: (vocab, wide)}
    norms = ("input_layernorm", "post_attention_layernorm")
    names = [f"{layer}{norm}.weight" for norm in norms] + ["model.norm.weight"]
    made = {name: 0.1 * draw.normal(size=shape) for name, shape in shapes.items()}
    if order:
        made = {name: np.zeros(shape) for name, shape in shapes.items()}
        for i, token in enumerate(order):
            made[EMBED][token, i] = 1
            made[HEAD][order[min(i + 1, len(order) - 1)], i] = 5
    made |= {name: np.ones(wide) for name in names}
    return {name: value.astype(np.float32) for name, value in made.items()}


def write(
    folder: pathlib.Path,
    values: dict[str, np.ndarray] | None = None,
    *,
    extra: tuple[str, ...] = (),
    settings: dict | None = None,
    generation: dict | None = None,
    **config,
) -> pathlib.Path:
    """A folder of config, weights and tokenizer.

    Args:
        folder: to be made.
        values: its tensors.
        extra: more special tokens.
        settings: of tokenizer_config.json.
        generation: of generation_config.json; None writes none.
        config: keys of config.json; `...` leaves one out.
    """
    folder.mkdir(parents=True)
    values = tensors() if values is None else values
    specs = {name: (value.shape, value.dtype) for name, value in values.items()}
    safetensors.write(folder / "model.safetensors", specs, values.__getitem__)
    raw = {k: v for k, v in (CONFIG | config).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text(tokenizer(extra).to_str())
    said = json.dumps(TOKENIZER | (settings or {}))
    (folder / "tokenizer_config.json").write_text(said)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
