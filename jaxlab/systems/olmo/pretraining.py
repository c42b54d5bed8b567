"""OLMo: open pre-training, with data order, checkpoints and evaluation in the open.

Groeneveld et al. 2024 (arXiv:2402.00838); OLMo 2: arXiv:2501.00656.

    corpus -> token files -> Loader (order = f(seed, epoch)) -> next_token -> AdamW

Deviations: the reported loss is the true mean over labels (OLMo divides by B T; set
`loss_denominator="olmo"` for its number); instances with long repeats are not masked.
"""

import functools
import pathlib
from typing import Any

import jax
import ml_collections

from jaxlab import load, models, objectives
from jaxlab.core import checkpoint, errors, paths, process, runs, tokenizer_files, types
from jaxlab.data.batches import loader
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import sections as sections_lib
from jaxlab.systems import corpora, experiments, trust_regions
from jaxlab.systems.planning import untrained as planning


def pretrain(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The experiment that `configs/olmo.py` describes."""
    with process.leader_first("corpus"):
        corpus = corpora.open_corpus(config.data, workdir)
        if paths.is_remote(workdir):
            load.save_tokenizer(workdir, corpus.tokenizer)
        _keep_generation(config.init_from, workdir, corpus.tokenizer)
    model_config = sections_lib.transformer_config(config.model, corpus.tokenizer, mesh)
    model = models.Decoder(model_config)
    batches = corpora.make_loader(config.data, corpus.train)
    windows = corpora.held_out_windows(workdir)
    return experiment(
        config,
        model,
        batches=batches,
        init_from=_start(config.init_from, workdir, mesh),
        evals=corpora.perplexity_evals(
            model, corpus.held_out, config.data, config.eval_batches, windows
        ),
        config={
            **config.to_dict(),
            "data_order": batches.fingerprint,
            "data_shares": batches.shares(config.steps),  # what the run will have read
            **({"held_out_windows": windows} if windows else {}),
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
    if config.data.length > model.config.length:
        raise errors.UserError(
            f"data.length {config.data.length} is longer than model.length "
            f"{model.config.length}; raise model.length or cut data.length"
        )
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def _build(model, config, /, **data: Any) -> types.Experiment:
    objective = objectives.next_token(
        model.apply, z_loss=config.z_loss, loss_denominator=config.loss_denominator
    )
    plain = experiments.of_decoder(config, model, objective, **data)
    method = config.trust.method
    if method != "plain" and config.loss_denominator != "labels":
        raise errors.UserError(
            f"trust.method {method} divides by labels; set loss_denominator to labels"
        )
    task = functools.partial(objectives.language_model, z_loss=config.z_loss)
    return trust_regions.from_section(plain, config.trust, task)


def untrained(
    config: ml_collections.ConfigDict, model: models.Decoder
) -> planning.Untrained:
    """What `jaxlab plan --aot` compiles."""
    data = config.data
    spec = loader.batch_spec(
        data.batch_size, data.length, data.layout, data.document_mask
    )
    return planning.Untrained(experiment(config, model, batches=None), spec)


def _keep_generation(path: str, workdir: pathlib.Path, tokenizer: Any) -> None:
    """What a published start says of ending a text, if that is in the same tokens."""
    if not path or checkpoint.steps(runs.checkpoints(workdir)):
        return
    own = load.tokenizer_path(path)
    if not tokenizer_files.find(own):  # weights alone
        return
    if tokenizer_lib.load(own).fingerprint == tokenizer.fingerprint:
        load.save_generation(workdir, load.generation(path))


def _start(
    path: str, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Params | None:
    """Parameters to start from: of a run directory or a Hugging Face folder.

    None where nothing is named, and where the run will resume anyway.
    """
    if not path or checkpoint.steps(runs.checkpoints(workdir)):
        return None
    return load.params(path, mesh=mesh)
