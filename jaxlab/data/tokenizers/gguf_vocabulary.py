"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder.

    tokenizer.ggml.model          gpt2: byte-level BPE (llama: SentencePiece, not read)
    tokenizer.ggml.pre            how text is split before pairs are merged, by name
    tokenizer.ggml.tokens, merges, token_type (3: control, 4: a user's)
    tokenizer.ggml.*_token_id     bos, eos, eot, eom, padding
    tokenizer.chat_template       and tokenizer.chat_template.NAME

The patterns behind a name of `pre` are those of the published tokenizer.json files.
"""

import json
from collections.abc import Mapping
from typing import Any

from jaxlab.core import errors

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER = 3, 4
_IDS = ("bos", "eos", "eot", "eom", "padding")
_FIX = "give a tokenizer's folder with --tokenizer"
_CONFIG = "tokenizer_config.json"


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return [split, _bytes(False)]


_SPLITS = {
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": _split(_CL100K % "{1,3}"),
    "qwen2": _split(_CL100K % ""),
}


def files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> content of the files that a tokenizer's folder has.

    Raises:
        UserError: a tokenizer of another kind, or one that is damaged.
    """
    said = {
        key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()
    }
    if (model := said.get("model")) != "gpt2":
        raise errors.UserError(
            f"tokenizer.ggml.model {model!r} is not read from GGUF; {_FIX}"
        )
    if (pre := said.get("pre")) not in _SPLITS:
        raise errors.UserError(
            f"tokenizer.ggml.pre {pre!r} is none of {', '.join(_SPLITS)}; {_FIX}"
        )
    tokens, merges = _texts(said, "tokens"), _texts(said, "merges")
    if len(set(tokens)) < len(tokens):
        raise errors.UserError(f"tokenizer.ggml.tokens has a token twice; {_FIX}")
    kinds = list(said.get("token_type", ()))[: len(tokens)]
    added = [
        {
            "id": number,
            "content": tokens[number],
            "special": bool(kind == _CONTROL),
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for number, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER)
    ]
    found = {
        "tokenizer.json": _model(pre, tokens, merges, added),
        _CONFIG: _config(metadata, said, tokens),
    }
    return {name: json.dumps(value).encode() for name, value in found.items()}


def generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json would say: every token that ends a text."""
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _IDS}
    ends = [ids[name] for name in ("eos", "eot", "eom") if type(ids[name]) is int]
    said = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    said = {name: value for name, value in said.items() if type(value) is int}
    return said | {"eos_token_id": list(dict.fromkeys(ends))}


def _texts(said, key) -> list[str]:
    texts = said.get(key, [])
    if not isinstance(texts, list):
        raise errors.UserError(f"tokenizer.ggml.{key} is not a list of texts; {_FIX}")
    return texts


def _id(said, key, tokens) -> int | None:
    number = said.get(key)
    if number is None or (type(number) is int and 0 <= number < len(tokens)):
        return number
    raise errors.UserError(
        f"tokenizer.ggml.{key} {number!r} is none of {len(tokens):,} tokens; {_FIX}"
    )


def _model(pre, tokens, merges, added) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[pre]},
        "post_processor": None,
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [pair.split(" ", 1) for pair in merges],
        },
    }


def _config(metadata, said, tokens) -> dict[str, Any]:
    ids = {name: _id(said, f"{name}_token_id", tokens) for name in _IDS}
    texts = {
        name: None if ids[key] is None else tokens[ids[key]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    said_bos = said.get("add_bos_token", said.get("pre") == "llama-bpe")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": said_bos is True,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": text for name, text in texts.items() if text is not None},
    }
    key = "tokenizer.chat_template"
    templates = {
        name.removeprefix(f"{key}.") if name != key else "default": text
        for name, text in metadata.items()
        if isinstance(text, str) and (name == key or name.startswith(f"{key}."))
    }
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [
            {"name": name, "template": text} for name, text in templates.items()
        ]
    return config
