"""A llama in a GGUF file -> (config, params), dequantised a tensor at a time.

What differs from a Hugging Face folder: names; sizes of the metadata's own spelling;
and the rows of the query and key matrices, which llama.cpp stores for interleaved
rotary positions, pair (0, 1), (2, 3), ... within a head, where ours are half-split,
pairs (i, i + d/2):  file row 2i + s of a head = our row i + s d/2.
Source: llama.cpp's convert_hf_to_gguf.py (`LlamaModel.permute`).
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxlab.core import errors, gguf_file, types
from jaxlab.models.config import TransformerConfig
from jaxlab.models.hf import config as config_lib
from jaxlab.models.hf import folder as folder_lib

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.weight")
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}
# What changes the arithmetic and is not computed: entry -> its value that changes none.
_PLAIN = {
    "rope.scaling.type": "none",
    "attention.sliding_window": 0,
    "expert_count": 0,
    "logit_scale": 1.0,
    "attention.scale": None,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
}


def load(
    path: str | os.PathLike, *, dtype: Any = None, mesh: Mesh | None = None
) -> tuple[TransformerConfig, types.Params]:
    """Reads a GGUF file of a llama, whatever its weights are quantised to.

    Args:
        path: the file.
        dtype, mesh: as for `models.hf.load`.

    Raises:
        UserError: it is damaged, of another architecture, or `gguf` is not installed.
    """
    file = gguf_file.read(path)
    config = _config(path, file)
    tensors = {}
    for name, tensor in file.tensors.items():
        if (known := _name(name)) in tensors:
            raise errors.UserError(f"{path} has {known} twice; download it again")
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}
        of_rope = heads.get(known.split(".")[-2]) if known.count(".") > 2 else None
        tensors[known] = _Tensor(tensor, of_rope)
    return config, folder_lib.assemble(path, config, tensors, dtype, mesh)


def read_config(path: str | os.PathLike) -> TransformerConfig:
    """The config of a GGUF file, without its weights.

    Raises:
        UserError: as `load`.
    """
    return _config(path, gguf_file.read(path))


class _Tensor(NamedTuple):
    """A tensor of the file in our layout; numpy's slicing, computed when asked."""

    source: gguf_file.Tensor
    heads: int | None  # of a matrix whose rows are permuted
    is_transposed: bool = False

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.shape
        return shape[::-1] if self.is_transposed else shape

    @property
    def T(self) -> "_Tensor":  # noqa: N802
        return self._replace(is_transposed=not self.is_transposed)

    def __getitem__(self, index):
        return np.asarray(self)[index]

    def __array__(self, dtype=None, copy=None):
        values = self.source.read()
        if self.heads is not None:
            rows, inner = values.shape
            pairs = values.reshape(self.heads, rows // self.heads // 2, 2, inner)
            values = pairs.swapaxes(1, 2).reshape(rows, inner)
        return values.T if self.is_transposed else values


def _name(name: str) -> str:
    """transformers' name of a tensor; one that is not known keeps its own."""
    if block := _BLOCK.fullmatch(name):
        if inner := _INNER.get(block[2]):
            return f"model.layers.{int(block[1])}.{inner}.weight"
    elif outer := _OUTER.get(name.removesuffix(".weight")):
        return f"{outer}.weight"
    return name


def _config(path, file: gguf_file.File) -> TransformerConfig:
    said = file.metadata
    if (family := said.get("general.architecture")) != "llama":
        raise errors.UserError(
            f"{path} is of the architecture {family!r}, only llama is read from GGUF; "
            "give the model's Hugging Face folder"
        )
    for key, plain in _PLAIN.items():
        if (value := said.get(f"llama.{key}", plain)) != plain:
            raise errors.UserError(
                f"{path}: llama.{key} {value!r} is not supported; give the model's "
                "Hugging Face folder"
            )
    if "rope_freqs.weight" in file.tensors:
        raise errors.UserError(
            f"{path} scales its rotary positions by rope_freqs.weight, which is not "
            "supported; give the model's Hugging Face folder"
        )
    raw = {
        key: _plain(said[f"llama.{entry}"])
        for key, entry in _SIZES.items()
        if f"llama.{entry}" in said
    }
    if "token_embd.weight" in file.tensors:
        raw.setdefault("vocab_size", file.tensors["token_embd.weight"].shape[0])
    for key, entry in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        raw[f"{key}_token_id"] = said.get(f"tokenizer.ggml.{entry}_token_id")
    raw["tie_word_embeddings"] = "output.weight" not in file.tensors
    try:
        config = config_lib.from_json({"model_type": "llama", **raw})
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error}") from None
    turned = said.get("llama.rope.dimension_count", config.head_dim)
    if turned != config.head_dim or config.head_dim % 2:
        raise errors.UserError(
            f"{path}: llama.rope.dimension_count {turned!r} for heads of "
            f"{config.head_dim}; only whole heads are rotated here"
        )
    return config


def _plain(value: Any) -> Any:
    """A float that was a float32 as it was written: 1e-5, not 9.999999747e-06."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return value.tolist() if isinstance(value, np.ndarray) else value


def metadata(path: str | os.PathLike) -> Mapping[str, Any]:
    """What a file says of itself; its tokenizer is in there."""
    return gguf_file.read(path).metadata
