"""Opening models for use: run directories and Hugging Face folders alike.

A run's `config.json` says what `train` was told: its `model` section and its tokenizer
make the TransformerConfig, its `data` section says where the tokenizer and the held-out
text are. A Hugging Face folder says the same in its own words (`models/hf/folder.py`).
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections

from jaxlab import models
from jaxlab.core import checkpoint, errors, folders, runs, types
from jaxlab.core import paths as paths_lib
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import sections as sections_lib

# Fields of TransformerConfig that change no number that a trained model computes, but
# in rounding; models that differ in them can be merged.
_FREE = (
    "attention", "remat", "scan", "fuse_projections", "loss_block_bytes", "dtype",
    "initializer", "initializer_std", "length",
)  # fmt: skip


class Opened(NamedTuple):
    """A model that is ready for use."""

    decoder: models.Decoder
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer


def open_model(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    tokenizer: str | pathlib.Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Opened:
    """Opens a run directory or a Hugging Face folder.

    Args:
        path: of either; of a run also in a bucket, gs://BUCKET/RUN.
        step: which checkpoint of a run; None for the newest good one.
        tokenizer: where the folder has none of its own.
        mesh: where the parameters go, sharded; None for the first device.

    Raises:
        UserError: neither of the two, no tokenizer, one with more tokens than the model
            has rows, one that the run was not trained with, or unreadable weights.
    """
    own = tokenizer_path(path)
    if is_run(path):
        found = tokenizer_lib.load(own)
        if tokenizer and tokenizer_lib.load(tokenizer).fingerprint != found.fingerprint:
            raise errors.UserError(
                f"{path} was trained with {own}, not with {tokenizer}; leave out "
                "--tokenizer"
            )
        params = checkpoint.load_params(path, step, mesh)
        section = run_config(path).model
        # As it was made: `vocab` 0 was rounded up for the mesh of then.
        section.vocab = params["embed"]["embedding"].shape[0]
        config = sections_lib.transformer_config(section, found)
        return Opened(models.Decoder(config), params, found)
    if step is not None:
        raise errors.UserError(f"{path} is a Hugging Face folder, it has no --step")
    if tokenizer is None and not _has_tokenizer(own):
        raise errors.UserError(f"{path} has no tokenizer; give one with --tokenizer")
    if not isinstance(models.hf.read_config(path), models.TransformerConfig):
        raise errors.UserError(f"{path} is an encoder; this needs a language model")
    found = tokenizer_lib.load(tokenizer or own)
    sections_lib.check_vocab(found, models.hf.read_config(path).vocab)
    config, params = models.hf.load(path, mesh=mesh)
    return Opened(models.Decoder(config), params, found)


def open_alike(
    paths: Sequence[str | pathlib.Path], *, mesh: jax.sharding.Mesh | None = None
) -> list[Opened]:
    """Opens models that can be averaged.

    Raises:
        UserError: their tokenizers or architectures differ; the differences are named.
    """
    opened = [open_model(path, mesh=mesh) for path in paths]
    first = opened[0]
    for path, other in zip(paths[1:], opened[1:], strict=True):
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise errors.UserError(
                f"{tokenizer_path(paths[0])} and {tokenizer_path(path)} are different "
                "tokenizers; merge models that share one"
            )
        ours = dataclasses.asdict(first.decoder.config)
        theirs = dataclasses.asdict(other.decoder.config)
        lines = [
            f"{name} {ours[name]} and {theirs[name]}"
            for name in ours
            if name not in _FREE and ours[name] != theirs[name]
        ]
        if lines:
            raise errors.UserError(
                f"{paths[0]} and {path} cannot be merged, they differ: "
                f"{'; '.join(lines)}"
            )
    return opened


def save(
    out: pathlib.Path,
    opened: Opened,
    params: types.Params,
    source: str | pathlib.Path,
    *,
    dtype: str = "float32",
) -> None:
    """Writes a Hugging Face folder with the tokenizer.

    Args:
        out: the folder, which must not exist.
        opened: its decoder's config and its tokenizer are written.
        params: the weights.
        source: the model whose tokenizer files are copied as they are, if it is the
            tokenizer's folder.
        dtype: of the weights on disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = tokenizer_path(source)
        if not (own.is_dir() and _has_tokenizer(own)):
            opened.tokenizer.save(folder)
            own = pathlib.Path(folder)
        models.hf.save(
            out, opened.decoder.config, params, dtype=dtype, tokenizer_folder=own
        )


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a folder is a run directory; False for a Hugging Face folder.

    Raises:
        UserError: neither.
    """
    raw = _config_json(path)
    if "model_type" in raw:
        if paths_lib.is_remote(path):
            raise errors.UserError(
                f"{path} is a Hugging Face folder; copy it to a local folder"
            )
        return False
    if isinstance(raw.get("model"), Mapping) and isinstance(raw.get("data"), Mapping):
        return True
    raise errors.UserError(
        f"{path} is neither a run directory nor a Hugging Face folder: its config.json "
        "has neither model and data nor model_type"
    )


def run_config(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config that a run was started with."""
    # Domains are keys of data.weights, and their names may have dots.
    return ml_collections.ConfigDict(_config_json(path), allow_dotted_keys=True)


def tokenizer_path(path: str | pathlib.Path) -> pathlib.Path:
    """Where a model's tokenizer is: a local folder or file; a copy of a bucket's."""
    if not is_run(path):
        return pathlib.Path(path)
    if paths_lib.is_remote(path):
        kept = paths_lib.path(path) / "data" / "tokenizer"
        if not paths_lib.is_folder(kept):
            raise errors.UserError(f"{kept} is missing; restore it from a copy")
        copy = paths_lib.cache("tokenizers", *kept.parts[2:])
        folders.copy_files(kept, copy)
        return copy
    data = run_config(path).data
    if "files" not in data:  # a run that started from a model keeps that one's
        return pathlib.Path(data.get("folder") or f"{path}/data") / "tokenizer"
    if data.files:
        return pathlib.Path(data.tokenizer)
    return runs.data_folder(data, path) / "tokenizer"


def held_out(path: str | pathlib.Path) -> dict[str, token_files.TokenFile]:
    """Domain -> held-out token file of a run; {} where it kept none.

    Raises:
        UserError: its prepared data was removed, or is on another machine.
    """
    data = run_config(path).data if is_run(path) else {"files": True}
    if "files" not in data or data["files"]:
        return {}
    folder = runs.data_folder(data, path)
    if paths_lib.is_remote(path) and not folder.is_dir():
        raise errors.UserError(f"the text of {path} was not prepared here; give --data")
    return dict(prepared.open_folder(folder).held_out)


def _has_tokenizer(folder: pathlib.Path) -> bool:
    names = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model")
    return any((folder / name).is_file() for name in names)


def _config_json(path: str | pathlib.Path) -> dict:
    if not paths_lib.is_folder(path):
        raise errors.UserError(
            f"model {path} does not exist; give a run directory or a Hugging Face "
            "folder"
        )
    file = paths_lib.path(path) / "config.json"
    try:
        text = paths_lib.read_text(file)
        raw = None if text is None else json.loads(text)
    except ValueError:
        text, raw = "", None
    if text is None:
        raise errors.UserError(
            f"{path} has no config.json; give a run directory or a Hugging Face folder"
        )
    if not isinstance(raw, dict):
        raise errors.UserError(f"{file} is damaged; restore it from a copy")
    return raw
