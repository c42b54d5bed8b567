"""What vectors and scores depend on, as checksums: models by their files, and texts.

An index remembers what it was made from, {"encoder": sha256, "length": tokens, "files":
sha256, "texts": fields}, and is refused to another encoder:

    encoder    the weights, and the files beside them that end in .json or .model
    files      what else is followed: the modules' folders (1_Pooling), a packed
               tokenizer, a run's tokenizer; indices of before this was recorded lack it
    texts      `BertConfig.OF_TEXTS` that are not the default, of documents
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlab.core import errors, runs, tokenizer_files
from jaxlab.models.bert import sentence_files
from jaxlab.retrieval import index_files


def identity(*parts: Any) -> str:
    """A name for what scores depend on: texts, files of models, numbers."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def model_sha256(path: str | pathlib.Path) -> str:
    """Of the files that a model's answers depend on, by name."""
    kinds = ("*.safetensors", "*.json", "*.model")
    folder = pathlib.Path(path)
    if runs.has_checkpoints(folder):  # the last one decides
        kinds = (runs.CONFIG, f"{runs.CHECKPOINTS}/*/**/*", "data/*.json")
    return _digest(folder, (x for kind in kinds for x in folder.glob(kind)))


def made_from(
    path: str | pathlib.Path, length: int, of_documents: Mapping[str, Any]
) -> dict[str, Any]:
    """What an index remembers of its encoder.

    Args:
        path: of the encoder.
        length: of the longest rows.
        of_documents: what is done to their texts, if not the default.
    """
    folder = pathlib.Path(path)
    if runs.has_checkpoints(folder):
        more = tokenizer_files.find(runs.encoder_tokenizer_folder(folder))
    else:
        more = [*sentence_files.find(folder), *folder.glob("tokenizer.json.gz")]
    own: dict[str, Any] = {"encoder": model_sha256(path), "length": length}
    if more:
        own["files"] = _digest(folder, more)
    return own | ({"texts": dict(of_documents)} if of_documents else {})


def as_recorded(folder: str | pathlib.Path, own: dict[str, Any]) -> dict[str, Any]:
    """What `made_from` gave, as the index in `folder` would have it, made or begun."""
    try:
        recorded = index_files.read_made_from(folder)
    except errors.UserError:  # a damaged one: whoever opens it says so
        recorded = None
    if recorded is None or "files" in recorded:
        return own
    return {name: value for name, value in own.items() if name != "files"}


def refuse_other(
    folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Raises a UserError where an index was made from something else."""
    for name, word in (("encoder",) * 2, ("files", "encoder"), ("length",) * 2):
        if name in old and old[name] != new.get(name):
            raise errors.UserError(
                f"{folder} was made with another {word}; use that one, or build the "
                "index again"
            )
    old, new = (x.get("texts", {}) for x in (old, new))
    if other := sorted(x for x in old.keys() | new.keys() if old.get(x) != new.get(x)):
        shown = "; ".join(f"{x} {old.get(x)!r}, not {new.get(x)!r}" for x in other)
        raise errors.UserError(
            f"{folder} was made with {shown}; use the same, or build the index again"
        )


def _digest(folder: pathlib.Path, files: Iterable[pathlib.Path]) -> str:
    """Of files by name; they are read again only if one of them has changed."""
    chosen = sorted({x for x in files if x.is_file()})
    stats = ((x, x.stat()) for x in chosen)
    return _read(folder, tuple((x, s.st_size, s.st_mtime_ns) for x, s in stats))


@functools.cache
def _read(folder, files) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with open(file, "rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()
