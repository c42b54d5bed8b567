"""Writes what belongs to a model: a Hugging Face folder, a tokenizer of a new run."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from jaxlab import models
from jaxlab.core import checkpoint, folders, json_text, runs, tokenizer_files
from jaxlab.core import paths as paths_lib
from jaxlab.data.examples import chat, chat_templates
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.load import adapters, by_path, padding
from jaxlab.load import source as source_lib
from jaxlab.models.hf import generation as generation_lib
from jaxlab.models.hf import peft


def save(
    out: str | pathlib.Path,
    loaded: by_path.Loaded,
    source: str | pathlib.Path,
    *,
    dtype: str = "float32",
    tokenizer: str | pathlib.Path | None = None,
) -> None:
    """Writes a Hugging Face folder with the tokenizer.

    The tokenizer's files are copied as they are. Of a run that was tuned on
    conversations the chat template is the format of these, whatever its start had, and
    every token that ends a turn or a text is in generation_config.json.

    Args:
        out: the folder, which must not exist.
        loaded: what is written.
        source: the model that it is, or was made of.
        dtype: of the weights on disk.
        tokenizer: the folder or file that `loaded.tokenizer` was read from, if that is
            not the source's.
    """
    with tempfile.TemporaryDirectory() as folder:
        generation = _write_tokenizer(folder, loaded, source, tokenizer)
        config = loaded.config
        if isinstance(config, models.TransformerConfig) and config.head == "score":
            config = padding.choose(loaded, folder)
        models.hf.save(
            out,
            config,
            loaded.params,
            dtype=dtype,
            tokenizer_folder=folder,
            generation=generation,
        )


def save_adapter(
    out: str | pathlib.Path, path: str | pathlib.Path, *, step: int | None = None
) -> adapters.Adapter | None:
    """Writes an adapter as a folder of peft, with tokenizer and chat template.

    Returns:
        It; None, and nothing is written, where there is none.
    """
    if (adapter := adapters.adapter(path, step=step)) is None:
        return None
    source = source_lib.find(path)
    tokenizer, said = source.read_tokenizer(), source.read_generation()
    described = by_path.Loaded(None, None, None, tokenizer, generation=said)
    with tempfile.TemporaryDirectory() as folder:
        said = _write_tokenizer(folder, described, path, None)
        if said:
            file = pathlib.Path(folder, generation_lib.FILE)
            file.write_text(json_text.dumps(said), "utf-8")
        peft.save(out, adapter.lora, adapter.params, adapter.base, files=folder)
    return adapter


def _write_tokenizer(folder, loaded, source, tokenizer) -> Mapping[str, Any]:
    """A model's tokenizer with the template that it was tuned in; how it generates."""
    model = source_lib.find(source)
    own = pathlib.Path(tokenizer or model.tokenizer_path())
    if own.is_dir() and source_lib.has_tokenizer(own):
        tokenizer_files.copy(own, folder)
    else:
        loaded.tokenizer.save(folder)
    tuned = model.tuned_in()
    if tuned is None:
        return loaded.generation
    if tuned[0] != chat.OWN:
        text = chat_templates.of_tokenizer(loaded.tokenizer, *tuned)
        tokenizer_files.set_chat_templates(folder, {"default": text})
    return generation_lib.with_eos(loaded.generation, loaded.eos_ids)


def save_tokenizer(
    workdir: str | pathlib.Path,
    tokenizer: tokenizer_lib.Tokenizer,
    templates: Mapping[str, str] | None = None,
) -> None:
    """Into a run directory that has not begun, so that it can be opened anywhere.

    One that has saved a checkpoint keeps its own: it is that of the weights.

    Args:
        workdir: the run directory.
        tokenizer: its tokenizer.
        templates: its chat templates by name; None: what the tokenizer's config says.
    """
    if _has_begun(workdir):
        return
    target = runs.tokenizer_folder(workdir)
    with tempfile.TemporaryDirectory() as folder:
        here = folder if paths_lib.is_remote(workdir) else target
        tokenizer.save(here)
        if templates is not None:
            tokenizer_files.set_chat_templates(here, templates)
        if paths_lib.is_remote(workdir):
            folders.copy_files(pathlib.Path(folder), target)


def save_generation(workdir: str | pathlib.Path, said: Mapping[str, Any]) -> None:
    """Into a run directory that has not begun: what its start says of generating."""
    if said and not _has_begun(workdir):
        file = paths_lib.path(workdir) / generation_lib.FILE
        paths_lib.make_folder(file.parent)
        folders.write_text(file, json_text.dumps(said))


def _has_begun(workdir) -> bool:
    """Also true of the hosts that do not write."""
    return jax.process_index() != 0 or bool(checkpoint.steps(runs.checkpoints(workdir)))
