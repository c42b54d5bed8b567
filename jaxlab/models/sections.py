"""The `model` section of a run's config <-> the TransformerConfig that it makes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.models.bert.config import BertConfig
from jaxlab.models.config import TransformerConfig
from jaxlab.models.rope import Rope

_IDS = ("eos_id", "pad_id", "bos_id")  # the tokenizer's, not the section's


def transformer_config(
    section: Mapping[str, Any], tokenizer: Any = None, mesh: Mesh | None = None
) -> TransformerConfig:
    """The model of a config; `vocab` 0 means the tokenizer's, padded to 128 rows.

    Args:
        section: the `model` section; a mapping, also ml_collections'.
        tokenizer: has `vocab_size` and the special ids. None, which only planning
            does, needs a section with a `vocab`.
        mesh: a vocabulary that is rounded up is divisible by its shards.

    Raises:
        UserError: the tokenizer has more tokens than the model has rows.
    """
    values = dict(section)
    for name in ("rope", "window_rope"):  # the second only of a run that was converted
        if values.get(name):
            values[name] = Rope(**values[name])
    for name in ("kv_heads", "clip_qkv", "window"):
        values[name] = values[name] or None  # a config has no None to override
    if tokenizer is None:
        return TransformerConfig(**values)
    if not values["vocab"]:
        values["vocab"] = mesh_lib.padded_vocab(tokenizer.vocab_size, mesh, 128)
    check_vocab(tokenizer, values["vocab"])
    return TransformerConfig(
        **values, **{name: getattr(tokenizer, name) for name in _IDS}
    )


def section(config: TransformerConfig) -> dict[str, Any]:
    """The section that `transformer_config` makes `config` of, without token ids."""
    values = dataclasses.asdict(config)
    plain = ("head",) if config.head == "tokens" else ()  # as in older runs
    return {name: x for name, x in values.items() if name not in (*_IDS, *plain)}


def encoder_section(config: BertConfig) -> dict[str, Any]:
    """The `encoder` section of a run's config: what it is, not how it is computed.

    `BertConfig(**section)` makes it again; how, the run says in its `model` section.
    What it does to texts is there where it is not the default, as in older runs.
    """
    values = dataclasses.asdict(config)
    left_out = {*config.FREE, *config.OF_TEXTS} - {*config.of_texts}
    return {name: value for name, value in values.items() if name not in left_out}


def check_vocab(tokenizer: Any, rows: int) -> None:
    """Raises UserError where a tokenizer has ids beyond the rows of a model."""
    if tokenizer.vocab_size > rows:
        raise errors.UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary "
            f"{rows}; set vocab_size to at least {tokenizer.vocab_size}"
        )
