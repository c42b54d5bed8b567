"""A model by its path: a run directory, a run in a bucket, or a Hugging Face folder.

    decoder(path)    a language model, ready for use
    encoder(path)    a bi-encoder: texts to vectors
    scorer(path)     a cross-encoder: a pair of texts to one number
    alike(paths)     several that can be averaged
    save(out, ...)   any of them as a Hugging Face folder

What a run is, and where its tokenizer lies, is asked of `core/runs.py`; a Hugging Face
folder says the same in its own words (`models/hf/folder.py`).
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlab import models
from jaxlab.core import checkpoint, errors, folders, runs, types
from jaxlab.core import paths as paths_lib
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import sections


class Loaded(NamedTuple):
    """A model that is ready for use.

    Attributes:
        config: a TransformerConfig or a BertConfig.
        model: the flax module of the config: `model.apply({"params": params}, ...)`.
        params: its parameters; None of what `architecture` returns.
        tokenizer: its own.
        template: of conversations; None where there is none.
    """

    config: models.TransformerConfig | models.BertConfig
    model: Any
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    template: Any = None


def decoder(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    tokenizer: str | pathlib.Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
    average: bool = False,
) -> Loaded:
    """A language model: the model is a `models.Decoder`.

    Args:
        path: a run directory, also in a bucket, gs://BUCKET/RUN; or a Hugging Face
            folder.
        step: which checkpoint of a run; None for the newest good one.
        tokenizer: where the folder has none of its own.
        mesh: where the parameters go, sharded; None for the first device.
        average: the moving average of a run's parameters, which `optim.ema` keeps.

    Raises:
        UserError: not a language model, no tokenizer, one with more tokens than the
            model has rows, one that the run was not trained with, unreadable
            weights, or a run without the average.
    """
    source = _source(path)
    source.check_decoder()
    own = source.read_tokenizer(tokenizer)
    config, weights = source.read_decoder(own, step, mesh, average)
    return Loaded(config, models.Decoder(config), weights, own)


def architecture(path: str | pathlib.Path, *, vocab: int | None = None) -> Loaded:
    """What a run of a language model trains, without its parameters.

    Args:
        path: a run directory.
        vocab: rows of its embedding, where the run left them to its tokenizer.

    Raises:
        UserError: it is something else.
    """
    run = _Run(path, runs.read(path))
    run.check_decoder()
    tokenizer = run.read_tokenizer()
    config = run.decoder_config(tokenizer, vocab)
    return Loaded(config, models.Decoder(config), None, tokenizer)


def params(
    path: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None
) -> types.Params:
    """The parameters alone, of a run or a Hugging Face folder of any kind.

    Raises:
        UserError: neither of the two, or unreadable weights.
    """
    return _source(path).read_params(None, mesh)


def alike(
    paths: Sequence[str | pathlib.Path], *, mesh: jax.sharding.Mesh | None = None
) -> list[Loaded]:
    """Language models that can be averaged.

    Raises:
        UserError: their tokenizers or architectures differ; the differences are named.
    """
    loaded = [decoder(path, mesh=mesh) for path in paths]
    first = loaded[0]
    for path, other in zip(paths[1:], loaded[1:], strict=True):
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise errors.UserError(
                f"{tokenizer_path(paths[0])} and {tokenizer_path(path)} are different "
                "tokenizers; merge models that share one"
            )
        ours, theirs = (dataclasses.asdict(one.config) for one in (first, other))
        lines = [
            f"{name} {ours[name]} and {theirs[name]}"
            for name in ours
            if name not in first.config.UNTIED and ours[name] != theirs[name]
        ]
        if lines:
            raise errors.UserError(
                f"{paths[0]} and {path} cannot be merged, they differ: "
                f"{'; '.join(lines)}"
            )
    return loaded


def encoder(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    of_texts: Mapping[str, Any] | None = None,
) -> Loaded:
    """A bi-encoder: the model is a `models.BertEncoder`.

    Inner products of its vectors are the similarity that it was made for;
    `config.query(text)` and `config.document(text)` are what its tokenizer reads.

    Args:
        path: a run of `encoders.embed`, or a Hugging Face folder.
        step: which checkpoint of a run; None for the newest good one.
        mesh: where the parameters go; None for the first device.
        of_texts: values of `BertConfig.OF_TEXTS` instead of its own.

    Raises:
        UserError: not an encoder, a cross-encoder, one whose vectors are compared by a
            distance, no tokenizer, or unreadable weights.
    """
    loaded = bert(path, step=step, mesh=mesh)
    if loaded.config.head == "score":
        raise errors.UserError(
            f"{path} scores pairs, it has no vectors of texts; give a bi-encoder"
        )
    try:
        config = dataclasses.replace(loaded.config, **(of_texts or {})).for_search
    except errors.ArgumentError as error:
        raise errors.UserError(f"{path}: {error}") from error
    return loaded._replace(config=config, model=models.BertEncoder(config))


def scorer(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
    """A cross-encoder: the model is a `models.BertScorer`, with one label.

    Args:
        path: a run of `encoders.rerank`, or a Hugging Face folder.
        step, mesh: as for `encoder`.

    Raises:
        UserError: not an encoder, one without a single score, no tokenizer, or
            unreadable weights.
    """
    loaded = bert(path, step=step, mesh=mesh)
    if loaded.config.head != "score" or len(loaded.config.labels) != 1:
        raise errors.UserError(
            f"{path} does not score pairs with one number; give a cross-encoder, e.g. "
            "a run of configs/refit.py:cross_encoder"
        )
    return loaded


def bert(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
    """An encoder with whatever head it has; arguments as for `encoder`."""
    source = _source(path)
    config, weights = source.read_bert(step, mesh)
    kind = models.BertScorer if config.head == "score" else models.BertEncoder
    return Loaded(config, kind(config), weights, source.read_tokenizer())


def save(
    out: str | pathlib.Path,
    loaded: Loaded,
    source: str | pathlib.Path,
    *,
    dtype: str = "float32",
) -> None:
    """Writes a Hugging Face folder with the tokenizer.

    Args:
        out: the folder, which must not exist.
        loaded: what is written.
        source: the model whose tokenizer files are copied as they are, if it is the
            tokenizer's folder.
        dtype: of the weights on disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = tokenizer_path(source)
        if not (own.is_dir() and _has_tokenizer(own)):
            loaded.tokenizer.save(folder)
            own = pathlib.Path(folder)
        models.hf.save(
            out, loaded.config, loaded.params, dtype=dtype, tokenizer_folder=own
        )


def save_tokenizer(
    workdir: str | pathlib.Path, tokenizer: tokenizer_lib.Tokenizer
) -> None:
    """Into a run directory that has not begun, so that it can be opened anywhere.

    One that has saved a checkpoint keeps its own: it is that of the weights.
    """
    if jax.process_index() != 0 or checkpoint.steps(runs.checkpoints(workdir)):
        return
    target = runs.tokenizer_folder(workdir)
    if not paths_lib.is_remote(workdir):
        tokenizer.save(target)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        folders.copy_files(pathlib.Path(folder), target)


def held_out(path: str | pathlib.Path) -> dict[str, token_files.TokenFile]:
    """Domain -> held-out token file of a run; {} where it kept none.

    Raises:
        UserError: its prepared data was removed, or is on another machine.
    """
    run = runs.find(path)
    folder = None if run is None else run.data
    if folder is None:
        return {}
    if paths_lib.is_remote(run.folder) and not folder.is_dir():
        raise errors.UserError(f"the text of {path} was not prepared here; give --data")
    return dict(prepared.open_folder(folder).held_out)


def tokenizer_path(path: str | pathlib.Path) -> pathlib.Path:
    """Where a model's tokenizer is: a local folder or file; a copy of a bucket's."""
    return _source(path).tokenizer_path()


# ------------------------------------------------------------------ what a path is


def _source(path: str | pathlib.Path) -> "_Run | _Published":
    run = runs.find(path)
    return _Published(path) if run is None else _Run(path, run)


class _Run(NamedTuple):
    """A run directory, read as `decoder` and `bert` want it."""

    path: str | pathlib.Path
    run: runs.Run

    def tokenizer_path(self) -> pathlib.Path:
        path = self.run.tokenizer()
        if not paths_lib.is_remote(path):
            return path
        if not paths_lib.is_folder(path):
            raise errors.UserError(f"{path} is missing; restore it from a copy")
        copy = paths_lib.cache("tokenizers", *path.parts[2:])
        folders.copy_files(path, copy)
        return copy

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        own = tokenizer_lib.load(self.tokenizer_path())
        if given and tokenizer_lib.load(given).fingerprint != own.fingerprint:
            raise errors.UserError(
                f"{self.path} was trained with {self.run.tokenizer()}, not with "
                f"{given}; leave out --tokenizer"
            )
        return own

    def check_decoder(self) -> None:
        self._check_kind("a language model", "decoder")

    def read_decoder(self, tokenizer, step, mesh, average=False):
        weights = self.read_params(step, mesh, average)
        # As it was made: `vocab` 0 was rounded up for the mesh of then.
        rows = weights["embed"]["embedding"].shape[0]
        return self.decoder_config(tokenizer, rows), weights

    def decoder_config(self, tokenizer, vocab: int | None) -> models.TransformerConfig:
        section = dict(self.run.config["model"])
        section["vocab"] = section["vocab"] if vocab is None else vocab
        return sections.transformer_config(section, tokenizer)

    def read_bert(self, step, mesh):
        self._check_kind("an encoder", "encoder", "scorer")
        config = models.BertConfig(**self.run.config["encoder"])
        return config, self.read_params(step, mesh)

    def read_params(self, step, mesh, average=False) -> types.Params:
        return checkpoint.load_params(self.run.folder, step, mesh, average=average)

    def _check_kind(self, wanted: str, *kinds: str) -> None:
        if self.run.kind not in kinds or self.run.system == runs.FIT:
            raise errors.UserError(
                f"{self.path} is a run of {self.run.system}; this needs {wanted}"
            )


class _Published(NamedTuple):
    """A Hugging Face folder, read as `decoder` and `bert` want it."""

    path: str | pathlib.Path

    def tokenizer_path(self) -> pathlib.Path:
        return pathlib.Path(self.path)

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        if not (given or _has_tokenizer(self.tokenizer_path())):
            raise errors.UserError(
                f"{self.path} has no tokenizer; give one with --tokenizer"
            )
        return tokenizer_lib.load(given or self.path)

    def check_decoder(self) -> None:
        config = models.hf.read_config(self.path)
        if not isinstance(config, models.TransformerConfig):
            raise errors.UserError(
                f"{self.path} is an encoder; this needs a language model"
            )

    def read_decoder(self, tokenizer, step, mesh, average=False):
        if average:
            raise errors.UserError(
                f"{self.path} is a Hugging Face folder, it has no --average"
            )
        rows = models.hf.read_config(self.path).vocab
        sections.check_vocab(tokenizer, rows)  # before the weights are read
        return self._read(step, mesh)

    def read_bert(self, step, mesh):
        config, weights = self._read(step, mesh)
        if not isinstance(config, models.BertConfig):
            raise errors.UserError(
                f"{self.path} is a language model; this needs an encoder"
            )
        return config, weights

    def read_params(self, step, mesh) -> types.Params:
        return self._read(step, mesh)[1]

    def _read(self, step, mesh):
        if step is not None:
            raise errors.UserError(
                f"{self.path} is a Hugging Face folder, it has no --step"
            )
        return models.hf.load(self.path, mesh=mesh)


def _has_tokenizer(folder: pathlib.Path) -> bool:
    names = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model")
    return any((folder / name).is_file() for name in names)
