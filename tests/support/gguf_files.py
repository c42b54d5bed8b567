"""GGUF files of small llamas, as llama.cpp's converter writes them."""

import json
import pathlib

import gguf
import numpy as np

from jaxlab.core import safetensors
from tests.support import published

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
)
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_OUTER = {
    published.EMBED: "token_embd.weight",
    published.HEAD: "output.weight",
    "model.norm.weight": "output_norm.weight",
}


def write(
    file: pathlib.Path,
    folder: pathlib.Path,
    *,
    kind: str = "F32",
    template: str = TEMPLATE,
    **more,
) -> pathlib.Path:
    """Packs a published llama's folder.

    Args:
        file: to be written.
        folder: of `published.write`.
        kind: of the matrices whose rows are whole blocks of it.
        template: of conversations.
        more: entries of the metadata; dots are written as __.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    heads = config["num_attention_heads"]
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template(template)
    for key, value in more.items():
        key = key.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, value in safetensors.read_folder(folder).items():
        _add_tensor(writer, name, np.array(value), config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer, model):
    vocab = model["model"]["vocab"]
    vocab |= {token["content"]: token["id"] for token in model["added_tokens"]}
    special = {token["id"] for token in model["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if vocab[text] in special else 1 for text in tokens])


def _add_tensor(writer, name, value, config, kind):
    short = _OUTER.get(name)
    if short is None:
        layer, _, stem = name.removeprefix("model.layers.").partition(".")
        short = f"blk.{layer}.{_NAMES[stem.removesuffix('.weight')]}.weight"
    heads = config["num_attention_heads"]
    if "attn_k." in short:
        heads = config.get("num_key_value_heads", heads)
    if "attn_q." in short or "attn_k." in short:
        rows, inner = value.shape
        halves = value.reshape(heads, 2, rows // heads // 2, inner)
        value = halves.swapaxes(1, 2).reshape(rows, inner)
    quantised = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantised]
    if value.ndim < 2 or value.shape[-1] % block:
        quantised = gguf.GGMLQuantizationType.F32
    packed = gguf.quants.quantize(np.ascontiguousarray(value), quantised)
    writer.add_tensor(short, packed, raw_dtype=quantised)
