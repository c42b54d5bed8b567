"""Opening bi-encoders and cross-encoders: runs and Hugging Face folders alike.

    RUN/config.json     has `encoder`: the BertConfig that was trained
    RUN/tokenizer/      a copy, so that a run needs nothing but itself
    RUN/checkpoints/    the parameters

A Hugging Face folder says the same in its own words (`models/hf/folder.py`).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxlab import models
from jaxlab.core import checkpoint, errors, types
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

# Of BertConfig: how it is computed, not what; a run says it in its `model` section.
FREE = ("dtype", "attention", "remat", "scan")


class Opened(NamedTuple):
    """An encoder that is ready for use."""

    config: models.BertConfig
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer


def load_encoder(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Opened:
    """A bi-encoder: the params are those of `BertEncoder(config)`.

    Args:
        path: a run of `encoders.embed`, or a Hugging Face folder.
        step: which checkpoint of a run; None for the newest good one.
        mesh: where the parameters go; None for the first device.

    Raises:
        UserError: no encoder, a cross-encoder, no tokenizer, or unreadable weights.
    """
    opened = load(path, step=step, mesh=mesh)
    if opened.config.head == "score":
        raise errors.UserError(
            f"{path} scores pairs, it has no vectors of texts; give a bi-encoder"
        )
    return opened


def load_scorer(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Opened:
    """A cross-encoder: the params are those of `BertScorer(config)`, with one label.

    Args:
        path: a run of `encoders.rerank`, or a Hugging Face folder.
        step, mesh: as for `load_encoder`.

    Raises:
        UserError: no encoder, one without a single score, no tokenizer, or unreadable
            weights.
    """
    opened = load(path, step=step, mesh=mesh)
    if opened.config.head != "score" or len(opened.config.labels) != 1:
        raise errors.UserError(
            f"{path} does not score pairs with one number; give a cross-encoder, e.g. "
            "a run of configs/refit.py:cross_encoder"
        )
    return opened


def prior(path: str | pathlib.Path) -> float:
    """The weight of the bi-encoder's score in what a run says of a pair; 0 of a folder.

    A run's config has it as `eval.prior`; older ones have `prior` alone.
    """
    run = _run(pathlib.Path(path))
    if run is None:
        return 0.0
    return float(run.get("eval", {}).get("prior", run.get("prior", 0.0)))


def save(out: str | pathlib.Path, path: str | pathlib.Path) -> None:
    """Writes a run as a Hugging Face folder that transformers reads.

    Args:
        out: the folder, which must not exist.
        path: the run.
    """
    opened = load(path)
    folder = pathlib.Path(path)
    source = folder / "tokenizer" if _run(folder) else folder
    models.hf.save(out, opened.config, opened.params, tokenizer_folder=source)


def described(config: models.BertConfig) -> dict[str, Any]:
    """What a run's config.json holds of its model, under `encoder`."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in FREE}


def load(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Opened:
    """An encoder with whatever head it has; arguments as `load_encoder`."""
    folder = pathlib.Path(path)
    run = _run(folder)
    if run is None:
        if step is not None:
            raise errors.UserError(f"{path} is a Hugging Face folder, it has no step")
        config, params = models.hf.load(path, mesh=mesh)
        if not isinstance(config, models.BertConfig):
            raise errors.UserError(f"{path} is a language model; this needs an encoder")
        return Opened(config, params, tokenizer_lib.load(folder))
    config = models.BertConfig(**run["encoder"])
    params = checkpoint.load_params(folder, step, mesh)
    return Opened(config, params, tokenizer_lib.load(folder / "tokenizer"))


def _run(folder: pathlib.Path) -> Mapping[str, Any] | None:
    """The config.json of a run of an encoder; None for anything else."""
    if not folder.is_dir():
        raise errors.UserError(
            f"no folder {folder}; give a run of an encoder or a Hugging Face folder"
        )
    try:
        raw = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None  # `hf.load` says what is missing
    is_run = isinstance(raw, Mapping) and isinstance(raw.get("encoder"), Mapping)
    return raw if is_run else None
