"""`config.json` of BERT and RoBERTa <-> `BertConfig`.

A key that is absent has the value that transformers gives it. A key that would change
what is computed and is not understood is refused. Dropout, which only training would
see, is not read: `models/bert/encoder.py` has none, and a saved folder names none.
What sentence-transformers writes beside it: `sentence_files.py`.
"""

from collections.abc import Mapping
from typing import Any

from jaxlab.core import errors, value_types
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
    name = raw.get("model_type")
    return isinstance(name, str) and name in config_lib.FAMILIES


_KINDS = {
    "architectures": value_types.TEXTS.or_null(),
    **dict.fromkeys(_SIZES, value_types.SIZE),
    "num_hidden_layers": value_types.LAYERS,
    "max_position_embeddings": value_types.SIZE,
    "type_vocab_size": value_types.SIZE,
    "layer_norm_eps": value_types.POSITIVE,
    "initializer_range": value_types.NUMBER,
    "pad_token_id": value_types.TOKEN_ID.or_null(),
    "num_labels": value_types.SIZE,
    "id2label": value_types.TEXTS_BY_NUMBER.or_null(),
}


def from_json(raw: Mapping[str, Any]) -> BertConfig:
    """The config that a parsed `config.json` describes.

    The head is "score" or "none": whether there is a pooler, only the weights know.

    Raises:
        UserError: a model class, an option, a value of another type or a missing size
            that cannot be followed.

    >>> sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=64)
    >>> sizes.update(num_hidden_layers=2, num_attention_heads=4)
    >>> from_json({"model_type": "roberta", **sizes}).length
    510
    """
    value_types.check(raw, _KINDS)
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
