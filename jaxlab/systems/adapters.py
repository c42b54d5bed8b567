"""Tuning an adapter beside a frozen base: what changes of a system of a decoder.

    of_config   the model of a config: with adapters where `adapter.rank` says so
    open_base   the base, frozen, and the adapter that a run begins with
    split       the fields of an experiment of the whole -> those of its adapter

An experiment's parameters are then the adapter's tree alone: of the base there is no
gradient, no optimizer state and no checkpoint. It is given to the objective as
`frozen["base"]`, and what the objective itself reads as `frozen["inner"]`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, models
from jaxlab.core import errors, tree, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import lora


def of_config(
    config: ml_collections.ConfigDict, decoder: models.Decoder
) -> models.Decoder | lora.Adapted:
    """The model that a config trains.

    Raises:
        ArgumentError: settings of the adapter that mean nothing.
    """
    settings = lora.LoraConfig.from_section(config.adapter.to_dict())
    if settings is None:
        return decoder
    if config.adapter.base not in lora.KEPT_IN:
        raise errors.ArgumentError(
            f"adapter.base {config.adapter.base!r}; use one of "
            f"{', '.join(lora.KEPT_IN)}"
        )
    if config.get("trust") and config.trust.method != "plain":
        raise errors.ArgumentError(
            f"trust.method {config.trust.method} moves all parameters; set "
            "adapter.rank to 0, or trust.method to plain"
        )
    return lora.Adapted(decoder, settings)


def planned_base(config: ml_collections.ConfigDict) -> str:
    """How the base of a config's adapter is kept, for `planning.Untrained`; or ""."""
    return config.adapter.base if config.adapter.rank else ""


def open_base(
    config: ml_collections.ConfigDict,
    start: load.Loaded,
    mesh: jax.sharding.Mesh,
) -> tuple[load.Loaded, ml_collections.ConfigDict, Any]:
    """The start as a run with adapters has it, the config that says its base, and that.

    Args:
        config: of the run.
        start: what it starts from; its `params` are None where the run resumes.
        mesh: of the run.

    Returns:
        `start` with the model of `of_config` and, where the run begins, parameters
        {"base": frozen collections, "lora": what it begins with}; the config with
        `base`, what the base is; the collections. Where the config has no adapter, the
        first two as they are, and None.

    Raises:
        UserError: it starts from an adapter of another kind than the config asks for.
    """
    model = of_config(config, start.model)
    if model is start.model:
        plain = ml_collections.ConfigDict(config.to_dict())
        del plain.adapter  # it means nothing, and older runs lack it
        return start, plain, None
    before = load.adapter(config.init_from, model.config)
    path = config.init_from if before is None else before.base
    if before is None and start.params is not None:
        params = start.params
    else:
        params = load.params(path, mesh=mesh)
    base = {"path": str(path), "sha256": tree.digest(params)}
    said = ml_collections.ConfigDict(config.to_dict() | {"base": base})
    frozen = lora.freeze(start.model, params, config.adapter.base, mesh)
    if start.params is not None:
        params = {"base": frozen, "lora": _first(config, model, before)}
        start = start._replace(params=params)
    return start._replace(model=model), said, frozen


def reference(config: ml_collections.ConfigDict, model: Any, base: Any) -> types.Params:
    """What a run starts from, as a reference policy: the base without its adapter.

    A run that goes on from an adapter has that one beside it.
    """
    before = load.adapter(config.init_from, model.config)
    return {"base": base} if before is None else {"base": base, "lora": before.params}


def split(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of an experiment that need data, with an adapter's parameters alone.

    Args:
        data: fields of an Experiment of the whole model, and "base", of `open_base`;
            where that is None or absent, the fields stay as they are.
    """
    fields = {name: value for name, value in data.items() if name != "base"}
    if (base := data.get("base")) is None:
        return fields

    def of_whole(evaluate):
        return lambda params: evaluate({"base": base, "lora": params})

    start = fields["init_from"]
    return {
        **fields,
        "init_from": start and start["lora"],
        "frozen": {"base": base, "inner": fields.get("frozen")},
        "evals": {name: of_whole(each) for name, each in fields["evals"].items()},
    }


def _first(config, model, before) -> types.Params:
    if before is not None:
        if before.lora != model.lora:
            raise errors.UserError(
                f"{config.init_from} is an adapter of {before.lora}, and the config's "
                f"is of {model.lora}; give --config.adapter its values, or merge it "
                f"into its base first: jaxlab convert {config.init_from} OUT"
            )
        return before.params
    example = np.zeros((1, 8), np.int32)
    made = jax.jit(model.init)(jax.random.key(config.seed), example)
    return mesh_lib.unbox(made["params"])
