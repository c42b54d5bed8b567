"""`config.json` of BERT and RoBERTa, and sentence-transformers' files <-> `BertConfig`.

A key that is absent has the value that transformers gives it. A key that would change
what is computed and is not understood is refused. Dropout, which only training would
see, is not read: `models/bert/encoder.py` has none, and a saved folder names none.

Pooling is described beside the weights, in `modules.json`, `1_Pooling/config.json` and
`sentence_bert_config.json` (where texts are cut).
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from jaxlab.core import errors
from jaxlab.models.bert import config as config_lib
from jaxlab.models.bert.config import BertConfig

_SIZES = {
    "vocab_size": "vocab",
    "hidden_size": "embed",
    "intermediate_size": "mlp",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}
# Keys that change the arithmetic, and the only values that `BertEncoder` computes.
_SUPPORTED = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
_CLASSES = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_SCORE = "ForSequenceClassification"


def is_named(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of one of these families."""
    return raw.get("model_type") in config_lib.FAMILIES


def from_json(raw: Mapping[str, Any]) -> BertConfig:
    """The config that a parsed `config.json` describes.

    The head is "score" or "none": whether there is a pooler, only the weights know.

    Raises:
        UserError: a model class, an option or a missing size that cannot be followed.

    >>> sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=64)
    >>> sizes.update(num_hidden_layers=2, num_attention_heads=4)
    >>> from_json({"model_type": "roberta", **sizes}).length
    510
    """
    family = raw["model_type"]
    head = "score" if _class_of(raw) == _SCORE else "none"
    for key, values in _SUPPORTED.items():
        if raw.get(key, values[0]) not in values:
            raise errors.UserError(
                f"config.json: {key} {raw[key]!r} is not supported, only {values[0]!r}"
            )
    if missing := [key for key in _SIZES if key not in raw]:
        raise errors.UserError(f"config.json lacks {', '.join(missing)}")
    pad_id = raw.get("pad_token_id", 0 if family == "bert" else 1)
    if pad_id is None and family != "bert":
        raise errors.UserError(
            "config.json: pad_token_id is null; RoBERTa counts by it"
        )
    first = 0 if family == "bert" else pad_id + 1
    try:
        return BertConfig(
            **{field: raw[key] for key, field in _SIZES.items()},
            length=raw.get("max_position_embeddings", 512) - first,
            token_types=raw.get("type_vocab_size", 2),
            family=family,
            head=head,
            labels=_labels(raw) if head == "score" else ("LABEL_0",),
            norm_epsilon=raw.get("layer_norm_eps", 1e-12),
            pad_id=pad_id or 0,
            initializer_std=raw.get("initializer_range", 0.02),
        )
    except ValueError as error:
        raise errors.UserError(f"config.json: {error}") from error


def to_json(config: BertConfig) -> dict[str, Any]:
    """The `config.json` of a config."""
    kind = _SCORE if config.head == "score" else "Model"
    raw = {
        "architectures": [config_lib.FAMILIES[config.family] + kind],
        "model_type": config.family,
        **{key: getattr(config, field) for key, field in _SIZES.items()},
        "max_position_embeddings": config.length + config.first_position,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon,
        "initializer_range": config.initializer_std,
        "hidden_act": "gelu",
        "pad_token_id": config.pad_id,
    }
    if config.head == "score":
        raw["id2label"] = {str(i): name for i, name in enumerate(config.labels)}
        raw["label2id"] = {name: i for i, name in enumerate(config.labels)}
    return raw


def with_pooling(config: BertConfig, folder: pathlib.Path) -> BertConfig:
    """The config with the pooling that sentence-transformers wrote beside it.

    Without a modules.json it is the mean, as sentence-transformers has it.

    Raises:
        UserError: a module or a pooling that is not computed here.
    """
    if config.head == "score" or not (folder / "modules.json").is_file():
        return config
    chosen: dict[str, Any] = {"pooling": "none"}
    for module in _read_json(folder / "modules.json"):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            chosen["pooling"] = _pooling(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            chosen["normalize"] = True
        elif kind != "Transformer":
            raise errors.UserError(
                f"{folder / 'modules.json'} has a {kind} module; supported are "
                "Transformer, Pooling and Normalize"
            )
    # Newer versions (6.2 does) leave the length to the tokenizer, whose "none" is 1e30.
    lengths = [
        _read_json(folder / file).get(key)
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        )
        if (folder / file).is_file()
    ]
    length = next(filter(None, lengths), config.length)
    chosen["row_length"] = int(min(length, config.length))
    return dataclasses.replace(config, **chosen)


def write_pooling(config: BertConfig, folder: pathlib.Path) -> None:
    """Writes what `with_pooling` and sentence-transformers read."""
    if config.head == "score":
        return
    modules = [("Transformer", "")]
    if config.pooling != "none":
        modules.append(("Pooling", "1_Pooling"))
        (folder / "1_Pooling").mkdir()
        flags = {
            "word_embedding_dimension": config.embed,
            "pooling_mode_cls_token": config.pooling == "cls",
            "pooling_mode_mean_tokens": config.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        _write_json(folder / "1_Pooling" / "config.json", flags)
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    described = [
        {
            "idx": i, "name": str(i), "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (kind, path) in enumerate(modules)
    ]  # fmt: skip
    _write_json(folder / "modules.json", described)
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.row_length, "do_lower_case": False},
    )


def _class_of(raw):
    """What follows the family's stem in the name of the model class."""
    stem = config_lib.FAMILIES[raw["model_type"]]
    supported = [stem + kind for kind in _CLASSES]
    architectures = raw.get("architectures") or [supported[0]]
    for kind, name in zip(_CLASSES, supported, strict=True):
        if name in architectures:
            return kind
    raise errors.UserError(
        f"config.json names {', '.join(architectures)}; supported are "
        f"{', '.join(supported)}"
    )


def _labels(raw):
    names = raw.get("id2label")
    if not names:  # two is what transformers takes them to be
        return tuple(f"LABEL_{i}" for i in range(raw.get("num_labels", 2)))
    return tuple(names[key] for key in sorted(names, key=int))


def _pooling(file):
    raw = _read_json(file)
    modes = [
        re.sub(r"^pooling_mode_|_tokens?$", "", name)
        for name, value in raw.items()
        if name.startswith("pooling_mode_") and value
    ]
    if raw.get("pooling_mode"):  # newer versions name it
        modes = [raw["pooling_mode"]]
    if modes not in (["mean"], ["cls"]):
        raise errors.UserError(
            f"{file} pools by {' and '.join(map(str, modes)) or 'nothing'}; supported "
            "are mean and cls"
        )
    return modes[0]


def _read_json(file):
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"{file} cannot be read as JSON; download it again"
        ) from error


def _write_json(file, value):
    file.write_text(json.dumps(value, indent=2) + "\n")
