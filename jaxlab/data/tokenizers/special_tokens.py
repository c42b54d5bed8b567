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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors

_log = logging.getLogger(__name__)

_BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]")
_END = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_PAD = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
MODEL_FILES = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model")
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


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json over added_tokens.json."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config |= _read_json(folder / name)
    added = {
        token_text(entry): int(number)
        for number, entry in config.get("added_tokens_decoder", {}).items()
    }
    added |= _read_json(folder / "added_tokens.json")
    return config | ({"added_tokens": added} if added else {})


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{path} is not JSON ({error}); restore it") from None


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
    settings = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": False,
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


def token_text(entry: Any) -> str | None:
    """The text of a token that is written as a string or as {"content": ...}."""
    return entry.get("content") if isinstance(entry, Mapping) else entry
