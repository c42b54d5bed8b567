"""Opens models by their path: `decoder`, `encoder`, `scorer`, several `alike`.

What a run is, and where its tokenizer lies, is asked of `core/runs.py`; a Hugging Face
folder says the same in its own words (`models/hf/folder.py`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlab import models
from jaxlab.core import errors, runs, types
from jaxlab.core import paths as paths_lib
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.load import source as source_lib
from jaxlab.models.hf import generation as generation_lib


class Loaded(NamedTuple):
    """A model that is ready for use.

    Attributes:
        config: a TransformerConfig or a BertConfig.
        model: the flax module of the config: `model.apply({"params": params}, ...)`.
        params: its parameters; None of what `architecture` returns.
        tokenizer: its own.
        template: of conversations; None where there is none.
        generation: what its generation_config.json says; {} where it has none.
        step: of a language model's run, which checkpoint was read; None of a folder.
    """

    config: models.TransformerConfig | models.BertConfig
    model: Any
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    template: Any = None
    generation: Mapping[str, Any] = {}
    step: int | None = None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a text: the tokenizer's, and those of the model."""
        own, said = self.tokenizer.eos_id, generation_lib.eos_ids(self.generation)
        return (own, *(i for i in said if i != own))


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
    source = source_lib.find(path)
    source.check_decoder()
    own = source.read_tokenizer(tokenizer)
    said = source.read_generation()
    config, weights, read = source.read_decoder(own, step, mesh, average)
    model = models.Decoder(config)
    return Loaded(config, model, weights, own, generation=said, step=read)


def architecture(path: str | pathlib.Path, *, vocab: int | None = None) -> Loaded:
    """What a run of a language model trains, without its parameters.

    Args:
        path: a run directory.
        vocab: rows of its embedding, where the run left them to its tokenizer.

    Raises:
        UserError: it is something else.
    """
    run = source_lib.Run(path, runs.read(path))
    run.check_transformer()
    tokenizer = run.read_tokenizer()
    config, said = run.decoder_config(tokenizer, vocab), run.read_generation()
    return Loaded(config, models.Decoder(config), None, tokenizer, generation=said)


def params(
    path: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None
) -> types.Params:
    """The parameters alone, of a run or a Hugging Face folder of any kind.

    Raises:
        UserError: neither of the two, or unreadable weights.
    """
    return source_lib.find(path).read_params(None, mesh)


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
                f"{source_lib.find(paths[0]).tokenizer_path()} and "
                f"{source_lib.find(path).tokenizer_path()} are different "
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
    return as_encoder(path, bert(path, step=step, mesh=mesh), of_texts)


def as_encoder(
    path: str | pathlib.Path, loaded: Loaded, of_texts: Mapping[str, Any] | None = None
) -> Loaded:
    """What `bert` opened as a bi-encoder; as `encoder` says."""
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
    """A cross-encoder or a reward model: texts to one number.

    The model is a `models.BertScorer` with one label, of pairs of texts; or a
    `models.Scorer`, of conversations, whose config is a TransformerConfig.

    Args:
        path: a run of `encoders.rerank` or `tulu.reward`, or a Hugging Face folder.
        step, mesh: as for `encoder`.

    Raises:
        UserError: not an encoder, one without a single score, no tokenizer, or
            unreadable weights.
    """
    source = source_lib.find(path)
    if source.is_reward:
        own, said = source.read_tokenizer(), source.read_generation()
        config, weights, read = source.read_decoder(own, step, mesh)
        model = models.Scorer(config)
        return Loaded(config, model, weights, own, generation=said, step=read)
    loaded = bert(path, step=step, mesh=mesh)
    if loaded.config.head != "score" or len(loaded.config.labels) != 1:
        raise errors.UserError(
            f"{path} does not score pairs with one number; give a cross-encoder, e.g. "
            "a run of configs/refit.py:cross_encoder"
        )
    return loaded


def is_reward(path: str | pathlib.Path) -> bool:
    """Whether a path is of a reward model, which `scorer` opens.

    Raises:
        UserError: neither a run nor a Hugging Face folder.
    """
    return source_lib.find(path).is_reward


def bert(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
    """An encoder with whatever head it has; arguments as for `encoder`."""
    source = source_lib.find(path)
    config, weights = source.read_bert(step, mesh)
    kind = models.BertScorer if config.head == "score" else models.BertEncoder
    return Loaded(config, kind(config), weights, source.read_tokenizer())


def held_out(path: str | pathlib.Path) -> dict[str, token_files.TokenFile]:
    """Domain -> held-out token file of a run; {} where it kept none.

    Raises:
        UserError: its prepared data was removed, or is on another machine.
    """
    source = source_lib.find(path)
    run = source.run if isinstance(source, source_lib.Run) else None
    folder = None if run is None else run.data
    if folder is None:
        return {}
    if paths_lib.is_remote(run.folder) and not folder.is_dir():
        raise errors.UserError(f"the text of {path} was not prepared here; give --data")
    return dict(prepared.open_folder(folder).held_out)


def generation(path: str | pathlib.Path) -> dict[str, Any]:
    """What a model says of generating, as `Loaded.generation` has it."""
    return source_lib.find(path).read_generation()
