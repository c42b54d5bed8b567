"""Merges that need to know the model: from one kind of folder to the other, or of both.

Our trees stack the layers and transpose every matrix of a Hugging Face file. A merge of
one kind is streamed and then rewritten as the other, one tensor at a time; models of
both kinds are opened and averaged in memory.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from jaxlab import load, merge, models
from jaxlab.commands import devices
from jaxlab.core import errors
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import orbax_folder, outputs
from jaxlab.models import sections as sections_lib
from jaxlab.models.hf import names


def average(plan: recipe_lib.Recipe, args: argparse.Namespace) -> None:
    """The weighted average of run directories and Hugging Face folders."""
    weights = [own.get("weight", plan.shared.get("weight")) for own in plan.each]
    is_number = all(isinstance(weight, float) for weight in weights)
    if plan.method != "linear" or not is_number or args.format == "orbax":
        raise errors.UserError(
            "run directories and Hugging Face folders together are only averaged, to a "
            "Hugging Face folder; `jaxlab convert` makes them alike"
        )
    with devices.using(args.mesh) as mesh:
        opened = load.open_alike(plan.models, mesh=mesh)
        try:
            merged = merge.average([model.params for model in opened], weights)
        except ValueError as error:  # such as weights that sum to 0
            raise errors.UserError(str(error)) from None
        dtype = plan.dtype or "float32"
        out = pathlib.Path(args.out)
        load.save(out, opened[0], merged, plan.models[0], dtype=dtype)
    print(f"{out}: the average of {len(opened)} models, {dtype}")


def writer(
    plan: recipe_lib.Recipe, out: str | os.PathLike
) -> Callable[[Mapping[str, np.ndarray], pathlib.Path], None]:
    """Fills a folder with a merge of runs as a Hugging Face folder, or the reverse."""
    source = pathlib.Path(plan.tokenizer or plan.models[0])
    if load.is_run(source):
        return lambda tensors, folder: _to_folder(source, tensors, folder)
    return lambda tensors, folder: _to_run(source, tensors, folder, pathlib.Path(out))


def _to_folder(source, tensors, folder) -> None:
    """Leaves of runs, mapped, as a Hugging Face folder."""
    found = tokenizer_lib.load(load.tokenizer_path(source))
    section = load.run_config(source).model
    section.vocab = tensors["embed/embedding"].shape[0]
    decoder = models.Decoder(sections_lib.transformer_config(section, found))
    params = orbax_folder.nested(tensors)
    opened = load.Opened(decoder, params, found)
    dtype = str(tensors["embed/embedding"].dtype)
    load.save(folder / "model", opened, params, source, dtype=dtype)
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()


def _to_run(source, tensors, folder, out) -> None:
    """Tensors of a Hugging Face folder, mapped, as a run directory."""
    config = models.hf.read_config(source)
    if not isinstance(config, models.TransformerConfig):
        raise errors.UserError(
            f"{source} is an encoder, which no run has; leave out --format orbax"
        )
    section = dataclasses.asdict(config)
    for name in ("eos_id", "pad_id", "bos_id", "window_rope"):  # the tokenizer's; rope
        del section[name]
    if config.window_rope not in (None, config.rope):
        raise errors.UserError(
            f"{source} has other rotary positions in its sliding layers, which no run "
            "has; leave out --format orbax"
        )
    section |= {name: section[name] or 0 for name in ("clip_qkv", "window")}
    leaves = {}
    for leaf in names.leaves(config):
        values = [tensors[name] for name in leaf.names]
        values = [value.T if leaf.is_transposed else value for value in values]
        leaves[leaf.path] = np.stack(values) if leaf.is_stacked else values[0]
    (folder / "tokenizer").mkdir()
    outputs.copy_extras(source, folder / "tokenizer")
    data = {"files": ["not kept"], "tokenizer": str(out.absolute() / "tokenizer")}
    orbax_folder.write(folder, leaves, {"model": section, "data": data}, {})
