"""Merges that need to know the model: from one kind of folder to the other, or of both.

Our trees stack the layers and transpose every matrix of a Hugging Face file. A merge of
one kind is streamed and then rewritten as the other, one tensor at a time; models of
both kinds are opened and averaged in memory.
"""

import argparse
import logging
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from jaxlab import load, merge, models
from jaxlab.commands import devices
from jaxlab.core import errors, folders, runs, tokenizer_files
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import orbax_folder
from jaxlab.models import sections
from jaxlab.models.hf import names

_log = logging.getLogger(__name__)


def average(plan: recipe_lib.Recipe, args: argparse.Namespace) -> None:
    """The weighted average of run directories and Hugging Face folders."""
    weights = [own.get("weight", plan.shared.get("weight")) for own in plan.each]
    is_number = all(isinstance(weight, float) for weight in weights)
    if plan.method != "linear" or not is_number or args.format == "orbax":
        raise errors.UserError(
            "run directories and Hugging Face folders together are only averaged, to a "
            "Hugging Face folder; `jaxlab convert` makes them alike"
        )
    out = pathlib.Path(args.out)
    folders.refuse_existing(out)
    with devices.using(args.mesh) as mesh:
        loaded = load.alike(plan.models, mesh=mesh)
        try:
            merged = merge.average([model.params for model in loaded], weights)
        except ValueError as error:  # such as weights that sum to 0
            raise errors.UserError(str(error)) from None
        dtype = plan.dtype or "float32"
        speaker = _speaker(plan, is_told=True)
        first = loaded[0]._replace(params=merged, generation=load.generation(speaker))
        load.save(out, first, speaker, dtype=dtype)
    print(f"{out}: the average of {len(loaded)} models, {dtype}")


def writer(
    plan: recipe_lib.Recipe,
) -> Callable[[Mapping[str, np.ndarray], pathlib.Path], None]:
    """Fills a folder with a merge of runs as a Hugging Face folder, or the reverse."""
    source = pathlib.Path(plan.tokenizer or plan.models[0])
    if runs.find(source) is not None:
        return lambda tensors, folder: _to_folder(plan, source, tensors, folder)
    return lambda tensors, folder: _to_run(source, tensors, folder)


def _speaker(plan, *, is_told: bool = False) -> str:
    """The model whose tokenizer and chat template a result has.

    That which the recipe names, unless it does not say how conversations are written,
    as a base does not: then the first that does.
    """
    if plan.tokenizer and load.chat_texts(plan.tokenizer):
        return plan.tokenizer
    said = {model: load.chat_texts(model) for model in plan.models}
    said = {model: texts for model, texts in said.items() if texts}
    speaker = next(iter(said), plan.tokenizer or plan.models[0])
    if is_told and any(texts != said[speaker] for texts in said.values()):
        _log.warning(
            "the chat templates of the models differ; the result has that of %s",
            speaker,
        )
    return speaker


def _to_folder(plan, source, tensors, folder) -> None:
    """Leaves of runs, mapped, as a Hugging Face folder."""
    embedding, speaker = tensors["embed/embedding"], _speaker(plan)
    described = load.architecture(source, vocab=embedding.shape[0])
    merged = described._replace(
        params=orbax_folder.nest(tensors), generation=load.generation(speaker)
    )
    load.save(folder / "model", merged, speaker, dtype=str(embedding.dtype))
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()


def _to_run(source, tensors, folder) -> None:
    """Tensors of a Hugging Face folder, mapped, as a run directory."""
    config = models.hf.read_config(source)
    if not isinstance(config, models.TransformerConfig):
        raise errors.UserError(
            f"{source} is an encoder, which no run has; leave out --format orbax"
        )
    section = sections.section(config)
    del section["window_rope"]  # which `rope` says
    if config.window_rope not in (None, config.rope):
        raise errors.UserError(
            f"{source} has other rotary positions in its sliding layers, which no run "
            "has; leave out --format orbax"
        )
    section |= {name: section[name] or 0 for name in ("clip_qkv", "window")}
    if config.tied and names.EMBEDDING not in tensors:  # the head is kept instead
        tensors = {**tensors, names.EMBEDDING: tensors[names.HEAD]}
    leaves = {}
    for leaf in names.leaves(config):
        values = [tensors[name] for name in leaf.names]
        values = [value.T if leaf.is_transposed else value for value in values]
        leaves[leaf.path] = np.stack(values) if leaf.is_stacked else values[0]
    (folder / "tokenizer").mkdir()
    tokenizer_files.copy(source, folder / "tokenizer")
    load.save_generation(folder, load.generation(source))
    config = {"system": runs.MERGE, "model": section, "tokenizer": "tokenizer"}
    orbax_folder.write(folder, leaves, config, {})
