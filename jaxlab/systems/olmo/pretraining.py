"""OLMo: open pre-training, with data order, checkpoints and evaluation in the open.

Groeneveld et al. 2024 (arXiv:2402.00838); OLMo 2: arXiv:2501.00656.

    corpus -> token files -> Loader (order = f(seed, epoch)) -> next_token -> AdamW

Deviations: the reported loss is the true mean over labels (OLMo divides by B T; set
`loss_denominator="olmo"` for its number); instances with long repeats are not masked.
"""

import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, models, objectives, optim
from jaxlab.core import checkpoint, errors, folders, paths, process, runs, types
from jaxlab.data import prepared
from jaxlab.data.batches import loader, mixture
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.evals import perplexity
from jaxlab.models import sections as sections_lib
from jaxlab.systems import trust_methods, trust_regions
from jaxlab.systems.planning import untrained as planning


def pretrain(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The experiment that `configs/olmo.py` describes."""
    with process.leader_first("corpus"):
        corpus = open_corpus(config.data, workdir)
        if paths.is_remote(workdir):
            keep_tokenizer(corpus.tokenizer, workdir)
    model_config = sections_lib.transformer_config(config.model, corpus.tokenizer, mesh)
    if config.data.length > model_config.length:
        raise errors.UserError(
            f"data.length {config.data.length} is longer than model.length "
            f"{model_config.length}; raise model.length or cut data.length"
        )
    model = models.Decoder(model_config)
    batches = batches_of(config.data, corpus.train)
    return experiment(
        config,
        model,
        batches=batches,
        init_from=_start(config.init_from, workdir, mesh),
        evals=perplexity_evals(
            model, corpus.held_out, config.data, config.eval_batches
        ),
        config={
            **config.to_dict(),
            "data_order": batches.fingerprint,
            "data_shares": batches.shares(config.steps),  # what the run will have read
        },
    )


def experiment(
    config: ml_collections.ConfigDict, model: models.Decoder, /, **data: Any
) -> types.Experiment:
    """What a config trains.

    Args:
        config: the whole of it.
        model: of its sizes.
        **data: the fields of an Experiment that need data or a run directory.
    """
    objective = objectives.next_token(
        model.apply, z_loss=config.z_loss, loss_denominator=config.loss_denominator
    )
    found = of_decoder(config, model, objective, **data)
    region = trust_methods.TrustConfig(**plain(config.trust))
    if region.method != "plain" and config.loss_denominator != "labels":
        raise errors.UserError(
            f"trust.method {region.method} divides by labels; set "
            "loss_denominator to labels"
        )
    return trust_regions.of_decoder(found, region, z_loss=config.z_loss)


def untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles."""
    data = config.data
    spec = loader.batch_spec(
        data.batch_size, data.length, data.layout, data.document_mask
    )
    return planning.Untrained(experiment(config, model, batches=None), spec)


def of_decoder(
    config: ml_collections.ConfigDict,
    model: models.Decoder,
    objective: types.Objective,
    /,
    **data: Any,
) -> types.Experiment:
    """An experiment of any objective of a decoder; arguments as of `experiment`."""
    tx, rate = optim.build(optim.OptimConfig(**plain(config.optim)), config.steps)
    return types.Experiment(
        model=model,
        objective=objective,
        tx=tx,
        steps=config.steps,
        example=(np.zeros((1, 8), np.int32),),
        micro_batches=config.micro_batches,
        seed=config.seed,
        flops_per_token=model.config.flops_per_token(config.data.length),
        learning_rate=rate,
        **data,
    )


def open_corpus(
    data: ml_collections.ConfigDict, workdir: pathlib.Path
) -> prepared.Prepared:
    """The corpus a data config names: token files, a folder of text, or "embedded".

    A `data.folder` without a source is read as `jaxlab data prepare` left it.

    Raises:
        UserError: nothing is named, or a file is missing.
    """
    if data.files:
        files = [
            token_files.TokenFile.open(path, data.files_dtype or None, eos_id=None)
            for path in data.files
        ]
        if not data.tokenizer:
            raise errors.UserError("data.files needs data.tokenizer, which made them")
        tokenizer = tokenizer_lib.load(data.tokenizer)
        # A list, not names: a path that is repeated is up-weighted, as in OLMo.
        train = {f"{i}:{file.name}": file for i, file in enumerate(files)}
        return prepared.Prepared(tokenizer, train, {})
    if not data.source and data.folder:
        return prepared.open_folder(data.folder)
    if not data.source:
        raise errors.UserError(
            "no data: set --config.data.source to a folder of text (a subfolder a "
            "domain) or to embedded, or --config.data.files to token files"
        )
    return prepared.prepare(
        data.source,
        runs.data_folder(data, workdir),
        tokenizer=data.tokenizer,
        vocab_size=data.vocab_size,
        held_out_fraction=data.held_out_fraction,
        max_bytes_per_domain=data.max_bytes_per_domain or None,
        seed=data.split_seed,
        parts=data.parts,
    )


def keep_tokenizer(
    tokenizer: tokenizer_lib.Tokenizer, workdir: str | pathlib.Path
) -> None:
    """Into a run directory that has none, so that it can be opened anywhere."""
    kept = paths.path(workdir) / "data" / "tokenizer"
    if jax.process_index() != 0 or checkpoint.steps(runs.checkpoints(workdir)):
        return  # else it is that of the weights
    if not paths.is_remote(workdir):
        tokenizer.save(kept)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        folders.copy_files(pathlib.Path(folder), kept)


def batches_of(
    data: ml_collections.ConfigDict, files: Mapping[str, token_files.TokenFile]
) -> loader.Loader:
    """The loader of a data config over named token files."""
    weights = dict(data.weights)
    if unknown := sorted(set(weights) - set(files)):
        raise errors.UserError(
            f"data.weights names {', '.join(unknown)}; the domains are "
            f"{', '.join(files)}"
        )
    names = [name for name in files if not weights or weights.get(name)]
    mixed = mixture.Mixture(
        [files[name] for name in names],
        [weights[name] for name in names] if weights else None,
        names,
    )
    return loader.Loader(
        mixed,
        length=data.length,
        batch_size=data.batch_size,
        seed=data.seed,
        layout=data.layout,
        document_mask=data.document_mask,
    )


def perplexity_evals(
    model: models.Decoder,
    held_out: Mapping[str, token_files.TokenFile],
    data: ml_collections.ConfigDict,
    max_batches: int,
) -> dict:
    """Domain -> function of params that returns its held-out perplexity.

    `max_batches` 0 evaluates nothing.
    """
    if not max_batches:
        return {}
    return {
        name: functools.partial(
            lambda batches, params: perplexity.evaluate(model.apply, params, batches),
            list(loader.eval_batches(file, data.length, data.batch_size, max_batches)),
        )
        for name, file in held_out.items()
    }


def plain(config: ml_collections.ConfigDict) -> dict:
    """A config section as keyword arguments."""
    return config.to_dict()


def _start(
    path: str, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Params | None:
    """Parameters to start from: of a run directory or a Hugging Face folder.

    None where nothing is named, and where the run will resume anyway.
    """
    if not path or checkpoint.steps(runs.checkpoints(workdir)):
        return None
    return load.params(path, mesh=mesh)
