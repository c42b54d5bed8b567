"""Which ids begin, end and pad a text: the rules of the published families.

    family      end of text             padding             begin
    OLMo 1      50279 <|endoftext|>     1 <|padding|>       none
    OLMo 2, 3   100257 <|endoftext|>    100277 <|pad|>      none
    Llama 1, 2  2 </s>                  0 <unk>             1 <s>
    Llama 3     <|end_of_text|>         a reserved token    <|begin_of_text|>
    BERT        [SEP]                   [PAD]               [CLS]

What a folder's tokenizer_config.json or special_tokens_map.json says comes first; the
names above are looked for otherwise.

The trap: OLMo's 2024 configurations name the tokenizer file
`allenai_eleuther-ai-gpt-neox-20b-pii-special.json` and the end-of-text id 50279. There
50279 is `|||IP_ADDRESS|||` and `<|endoftext|>` is 0, so text encoded with it ends in
one token and is trained on another. `allenai_gpt-neox-olmo-dolma-v1_5.json` is the
same vocabulary with the two names in their places.
"""

import json
import logging
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors, json_text, paths

_log = logging.getLogger(__name__)

_BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]")
_END = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_PAD = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
MODEL_FILES = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model")
_SWITCHES = ("add_bos_token", "add_prefix_space", "legacy")
_PII_NAME, _PII_ID = "|||IP_ADDRESS|||", 50279


class SpecialTokens(NamedTuple):
    """Ids and texts of the special tokens; `bos` is None where texts begin bare."""

    bos: tuple[int, str] | None
    eos: tuple[int, str]
    pad: tuple[int, str]


def find(
    id_of: Callable[[str], int | None],
    config: Mapping[str, Any],
    path: pathlib.Path,
) -> SpecialTokens:
    """The special tokens of a vocabulary.

    Args:
        id_of: token text -> id, or None.
        config: what `read_config` found beside the vocabulary; {} if nothing.
        path: of the vocabulary, for messages.

    Raises:
        UserError: no end-of-text token, a configured token that the vocabulary lacks,
            or the trap above without a configuration that says what is meant.
    """
    if id_of(_PII_NAME) == _PII_ID:
        if token_text(config.get("eos_token")) is None:
            raise errors.UserError(
                f"{path} is OLMo's PII tokenizer: its id 50279 is |||IP_ADDRESS|||, "
                "not the end of text; use allenai_gpt-neox-olmo-dolma-v1_5.json"
            )
        _log.warning(
            "%s is OLMo's PII tokenizer (50279 is |||IP_ADDRESS|||); texts end with %s",
            path,
            token_text(config["eos_token"]),
        )

    def choose(field: str, names: tuple[str, ...]) -> tuple[int, str] | None:
        if field in config:
            name = token_text(config[field])
            if name is None:
                return None
            if id_of(name) is None:
                raise errors.UserError(
                    f"{path} lacks {name!r}, which tokenizer_config.json calls its "
                    f"{field}; correct the name or add the token"
                )
            return id_of(name), name
        return next(((id_of(n), n) for n in names if id_of(n) is not None), None)

    end = choose("eos_token", _END)
    if end is None:
        raise errors.UserError(
            f"{path} has no end-of-text token that is known here; name it as eos_token "
            "in a tokenizer_config.json beside it"
        )
    pad = choose("pad_token", (*_PAD, "<unk>")) or end
    return SpecialTokens(choose("bos_token", _BEGIN), end, pad)


class Added(NamedTuple):
    """A token beyond a model's own vocabulary, as transformers' AddedToken.

    Attributes:
        id: its number.
        special: it is no text: texts that spell it are encoded as characters, and it is
            dropped when ids are decoded. Others are one token wherever they stand.
        lstrip, rstrip: it takes the white space before, or behind it, too.
        single_word: only where it is not a part of a word.
    """

    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def pattern(self, text: str) -> str:
        """What it is in a text, as a regular expression."""
        word = re.escape(text)
        if self.single_word:
            word = rf"(?<!\w){word}(?!\w)"
        return r"\s*" * self.lstrip + word + r"\s*" * self.rstrip


def added_tokens(config: Mapping[str, Any]) -> dict[str, Added]:
    """The tokens that a folder adds, by their text; of `read_config`'s."""
    fields = [name for name in Added._fields if name != "id"]
    entries = (config.get("added_tokens_decoder") or {}).values()
    flags = {e["content"]: e for e in entries if isinstance(e, Mapping)}
    special = {token_text(v) for k, v in config.items() if k.endswith("_token")}
    more = config.get("additional_special_tokens") or []
    special |= {token_text(entry) for entry in more}
    return {
        text: Added(number, **{f: bool(flags[text].get(f)) for f in fields})
        if text in flags
        else Added(number, text in special)
        for text, number in config.get("added_tokens", {}).items()
    }


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json over added_tokens.json.

    Raises:
        UserError: a file that is no JSON object, or a token that is none.
    """
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = _read_json(folder / name)
        for key, value in values.items():
            if key.endswith("_token") and not key.startswith("add_"):
                _require_token(value, f"{folder / name}: {key}")
            if key in _SWITCHES and not isinstance(value, bool | None):
                raise errors.UserError(
                    f"{folder / name}: {key} is {value!r}; write true or false"
                )
        config |= values
    added = {}
    place = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise errors.UserError(f"{place} is not an object of tokens by id; restore it")
    for number, entry in decoder.items():
        _require_token(entry, f"{place}: {number}", required=True)
        added[token_text(entry)] = _id(number, f"{place}: {number}")
    file = folder / "added_tokens.json"
    for text, number in _read_json(file).items():
        added[text] = _id(number, f"{file}: {text}")
    if not isinstance(config.get("additional_special_tokens") or [], list):
        raise errors.UserError(
            f"{folder}: additional_special_tokens is not a list; restore it"
        )
    return config | ({"added_tokens": added} if added else {})


def _require_token(entry: Any, place: str, *, required: bool = False) -> None:
    if entry is None and not required:
        return
    if not isinstance(token_text(entry), str | None if not required else str):
        raise errors.UserError(f"{place} is {entry!r}, which is no token; restore it")


def _id(number: Any, place: str) -> int:
    try:
        value = int(number)
    except (TypeError, ValueError):
        value = -1
    if not 0 <= value < 1 << 31:
        raise errors.UserError(f"{place} has no id of a token ({number!r}); restore it")
    return value


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object; null says nothing, as transformers writes it now and then."""
    data = paths.read_bytes(path)
    if data is None:
        return {}
    value = json_text.parse(data, path, "restore it")
    if not isinstance(value, dict | None):
        raise errors.UserError(
            f"{path} is damaged: it is not a JSON object; restore it"
        )
    return value or {}


def write_files(
    folder: pathlib.Path,
    model: tuple[str, bytes],
    special: SpecialTokens,
    config: Mapping[str, Any],
    tokenizer_class: str,
) -> None:
    """Writes a tokenizer's folder as transformers does.

    Args:
        folder: made if need be; another tokenizer's files in it are replaced.
        model: name and content of the model file.
        special: named in tokenizer_config.json and special_tokens_map.json.
        config: further settings to keep, e.g. a chat template.
        tokenizer_class: for transformers, where `config` names none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*MODEL_FILES, "added_tokens.json"):  # would be mixed with the new
        (folder / stale).unlink(missing_ok=True)
    (folder / model[0]).write_bytes(model[1])
    names = {
        "bos_token": special.bos and special.bos[1],
        "eos_token": special.eos[1],
        "pad_token": special.pad[1],
    }
    added = config.get("added_tokens", {})
    # What the source did not say of a token in front stays unsaid: the class decides.
    bare = {"add_bos_token": False} if special.bos is None else {}
    settings = {
        "tokenizer_class": tokenizer_class,
        **bare,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **{name: value for name, value in config.items() if name != "added_tokens"},
        **names,
    }
    known = {name: text for name, text in names.items() if text is not None}
    files = {"tokenizer_config.json": settings, "special_tokens_map.json": known}
    if added:
        files["added_tokens.json"] = dict(added)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, "utf-8")


def adds_bos(config: Mapping[str, Any]) -> bool:
    """Whether texts begin with bos, where there is one; unless the folder says no."""
    return config.get("add_bos_token") is not False


def token_text(entry: Any) -> str | None:
    """The text of a token that is written as a string or as {"content": ...}."""
    return entry.get("content") if isinstance(entry, Mapping) else entry
