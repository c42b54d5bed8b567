"""Adapters by their path: a run that tuned one, or a folder of peft."""

import pathlib
from typing import NamedTuple

import jax

from jaxlab import models
from jaxlab.core import types
from jaxlab.load import source as source_lib
from jaxlab.models import lora
from jaxlab.models.hf import peft


class Adapter(NamedTuple):
    """An adapter, not merged.

    Attributes:
        base: the path of the model that it is of.
        lora: what it is.
        params: its tree.
    """

    base: str
    lora: lora.LoraConfig
    params: types.Params


def adapter(
    path: str | pathlib.Path,
    config: models.TransformerConfig | None = None,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Adapter | None:
    """What can be tuned on, or exported; None where a path is a whole model.

    Args:
        path: of a run, a folder of peft, or anything else that `load` opens.
        config: of its base; None where it is read from there.
        step: which checkpoint of a run.
        mesh: where a run's adapter goes.

    Raises:
        UserError: it is unreadable, or has other matrices by layer.
    """
    source = source_lib.find(path)
    if isinstance(source, source_lib.Run):
        if (of := source.adapter()) is None:
            return None
        params = source.read_adapter(step, mesh)[1]
        return Adapter(of.base, of.lora, params)
    if not isinstance(source, source_lib.Adapted):
        return None
    read = peft.read(path)
    if config is None:
        tokenizer = source.read_tokenizer()
        config = source.base().read_decoder(tokenizer, step, mesh)[0]
    return Adapter(read.base, *peft.as_tree(read, config))
