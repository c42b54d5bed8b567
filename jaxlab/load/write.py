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
from jaxlab.load import by_path
from jaxlab.load import source as source_lib
from jaxlab.models.hf import generation as generation_lib


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
    conversations the chat template is the format of these, whatever its start had.

    Args:
        out: the folder, which must not exist.
        loaded: what is written.
        source: the model that it is, or was made of.
        dtype: of the weights on disk.
        tokenizer: the folder or file that `loaded.tokenizer` was read from, if that is
            not the source's.
    """
    model = source_lib.find(source)
    own = pathlib.Path(tokenizer or model.tokenizer_path())
    with tempfile.TemporaryDirectory() as folder:
        if own.is_dir() and source_lib.has_tokenizer(own):
            tokenizer_files.copy(own, folder)
        else:
            loaded.tokenizer.save(folder)
        if (tuned := model.tuned_in()) is not None:
            style, begin = tuned
            begin = "none" if chat.begin_id(loaded.tokenizer, begin) is None else begin
            template = chat_templates.of_style(style, begin)
            tokenizer_files.set_chat_template(folder, template)
        models.hf.save(
            out,
            loaded.config,
            loaded.params,
            dtype=dtype,
            tokenizer_folder=folder,
            generation=loaded.generation,
        )


def save_tokenizer(
    workdir: str | pathlib.Path, tokenizer: tokenizer_lib.Tokenizer
) -> None:
    """Into a run directory that has not begun, so that it can be opened anywhere.

    One that has saved a checkpoint keeps its own: it is that of the weights.
    """
    if _has_begun(workdir):
        return
    target = runs.tokenizer_folder(workdir)
    if not paths_lib.is_remote(workdir):
        tokenizer.save(target)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
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
