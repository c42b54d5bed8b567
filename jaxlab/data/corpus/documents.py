"""Documents, and how they are read: text files, Dolma JSON lines, TFDS folders.

A document is the unit that is split into training and held-out text, that ends with an
end-of-text token in a token file, and that `jaxlab data inspect` names. Text is taken
as it is: not stripped, not normalised.

Dolma's format (Soldaini et al., 2024, arXiv:2402.00159; docs/data-format.md): one JSON
object per line with `id`, `text`, `source`; attributes and metadata are not read.
*Deviation*: `id` may be absent (it becomes `file:line`), and `source` is replaced by
where the document was read from, so that every token can be traced to its line.
"""

import functools
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxlab.core import errors, json_text, paths
from jaxlab.data import lines

_log = logging.getLogger(__name__)

JSON_LINES = re.compile(  # C4 and Dolma call their JSON lines .json.gz
    r"(\.(jsonl|ndjson)(\.gz|\.zst)?|\.json\.(gz|zst))$",
    re.IGNORECASE,
)
PLAIN_TEXT = re.compile(
    r"\.(txt|text|md|rst|tex|html|xml|csv|tsv|py|pyi|c|h|cc|cpp|hpp|cu|java|js|ts|go|rs"
    r"|rb|php|sh|sql|r|jl|scala|kt|swift|lua|pl|toml|yaml|yml|ini|cfg)$",
    re.IGNORECASE,
)
UNREAD = ("__pycache__", "__MACOSX")
TFDS = "dataset_info.json"  # a folder with this file is a prepared TFDS data set


class Document(NamedTuple):
    """One text with its origin.

    Attributes:
        id: unique within what it was read from.
        text: any Unicode text that UTF-8 can encode.
        source: where it was read: `file:line`, or package, file and licence.
        domain: the name of the collection it belongs to, or "".
    """

    id: str
    text: str
    source: str = ""
    domain: str = ""


def read_documents(
    path: str | pathlib.Path, *, domain: str = "", split: str | None = None
) -> Iterator[Document]:
    """Documents of a file, of a folder (files in sorted order) or of a TFDS folder.

    Args:
        path: a text file (one document), a JSON-lines file (one per line, plain, .gz or
            .zst), a folder of those, or a prepared TFDS folder (array_record).
        domain: written into every document.
        split: the TFDS split to read; None reads all splits in order.

    Raises:
        UserError: nothing at `path`; an empty file or folder; text that is not UTF-8
            (names the byte); a line that is not JSON or has no `text` (names the line).
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise errors.UserError(f"{path} does not exist; give a text file or a folder")
    if path.is_file():
        yield from read_file(path, path.name, domain)
    elif (path / TFDS).is_file():
        yield from _read_tfds(path, domain, split)
    else:
        for name in readable_files(list_files(path), path):
            yield from read_file(path / name, name, domain)


# ------------------------------------------------------------------ files


def list_files(path: str | pathlib.Path) -> dict[str, int]:
    """Bytes of every file below a folder by its name there, or of one file.

    Links are followed, to folders too; what leads to no file is named in a warning.
    """
    path = paths.path(path)
    if paths.is_remote(path):
        import fsspec

        store, root = fsspec.core.url_to_fs(str(path))
        with paths.explain_errors(path):
            entries = store.find(root, detail=True)
        return {
            name.removeprefix(root).lstrip("/") or path.name: entry["size"]
            for name, entry in entries.items()
            if not name.endswith("/")
        }
    if path.is_file():
        return {path.name: path.stat().st_size}
    left_out: dict[str, list[str]] = {}
    names = paths.list_files(path, left_out)
    for reason, own in left_out.items():
        for name in filter(is_visible, sorted(own)):
            _warn_once(f"{path / name} is not read: it {reason}")
    return names


def readable_files(names: Mapping[str, int], folder: str | pathlib.Path) -> list[str]:
    """The files of a folder that hold documents, in the order they are read in.

    Args:
        names: bytes of every file by its name, from `list_files`.
        folder: where they are, for messages.

    Raises:
        UserError: there is none.

    >>> readable_files({"b.txt": 1, ".c.txt": 3, "a/d.jsonl.gz": 9}, "corpus")
    ['a/d.jsonl.gz', 'b.txt']
    """
    files, skipped, empty = [], [], []
    for name in sorted(names, key=lambda name: name.split("/")):
        if not is_visible(name):
            continue
        if PLAIN_TEXT.search(name) and names[name] == 0:
            empty.append(name)  # an __init__.py, say; an empty .jsonl is a mistake
        elif JSON_LINES.search(name) or PLAIN_TEXT.search(name):
            files.append(name)
        else:
            skipped.append(name)
    warn_of_skipped(folder, skipped)
    if empty:
        _warn_once(f"{folder}: skipped {len(empty)} empty text files")
    if not files:
        if empty:
            return empty[:1]  # its reader says what is wrong
        raise errors.UserError(
            f"{folder} holds no document; put .txt, .md, .py or .jsonl files there"
        )
    return files


def is_visible(name: str) -> bool:
    """Whether a file, by its name in a folder, is for reading, unlike .cache/x.txt."""
    parts = name.split("/")
    return not any(part.startswith(".") or part in UNREAD for part in parts)


def warn_of_skipped(folder: str | pathlib.Path, names: Iterable[str]) -> None:
    """Says which files of a folder are not read: a few of each kind; once."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        path = pathlib.PurePosixPath(name)
        kinds.setdefault(path.suffix or path.name, []).append(name)
    for kind, own in kinds.items():
        shown = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if own[3:] else "")
        _warn_once(f"{folder}: skipped files of kind {kind}: {shown}")


@functools.cache
def _warn_once(text: str) -> None:
    """A corpus is read several times: for its rule, for a tokenizer, for its tokens."""
    _log.warning("%s", text)


def read_file(path: pathlib.Path, name: str, domain: str) -> Iterator[Document]:
    """Documents of one file, which is called `name` in their ids."""
    with path.open("rb") as stream:
        is_empty = not stream.read(1)
    if is_empty:
        raise errors.UserError(
            f"{path} is empty (0 bytes); remove it or put text in it"
        )
    if JSON_LINES.search(path.name):
        yield from _read_json_lines(path, name, domain)
    elif ".array_record" in path.name:
        raise errors.UserError(f"{path} is one shard; give the TFDS folder it lies in")
    else:
        text = lines.read_whole(path)
        yield Document(name, text, str(path), domain)


def _read_json_lines(path: pathlib.Path, name: str, domain: str) -> Iterator[Document]:
    for number, row in lines.read_json(path):
        body = _text_field(row, f"{path}:{number}")
        name_and_line = f"{name}:{number}"
        identity = row.get("id")
        yield Document(
            name_and_line if identity is None else str(identity),
            body,
            f"{path}:{number}",
            domain,
        )


def _text_field(row: Any, place: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        fields = f"fields: {', '.join(row)}" if isinstance(row, dict) else "no object"
        raise errors.UserError(
            f'{place} has no string field "text" ({fields}); rename the field'
        )
    return lines.require_utf8(row["text"], place)


def _read_tfds(
    folder: pathlib.Path, domain: str, split: str | None
) -> Iterator[Document]:
    """Reads a prepared TFDS folder without TensorFlow (array_record only)."""
    import tensorflow_datasets as tfds

    _refuse_foreign_features(folder)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # protobuf's own, when dataset_info.json is damaged
        raise errors.UserError(_tfds_damage(folder, error)) from None
    try:
        features = list(builder.info.features or ())
        if "text" not in features:
            raise errors.UserError(
                f"{folder} has no feature text (features: {', '.join(features)}); "
                "rename the feature"
            )
        for name in [split] if split else list(builder.info.splits):
            for number, row in enumerate(builder.as_data_source(name)):
                yield _tfds_document(row, folder, f"{name}:{number}", domain)
    except NotImplementedError:
        raise errors.UserError(
            f"{folder} is not array_record; prepare it with file_format='array_record'"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.UserError(_tfds_damage(folder, error)) from None


def _refuse_foreign_features(folder: pathlib.Path) -> None:
    """TFDS imports the module of every class that features.json names.

    Raises:
        UserError: one is not of TFDS itself.
    """
    file = folder / "features.json"
    asked = [json_text.read_object(file, "prepare the data set again")]
    while asked:
        value = asked.pop()
        asked += value.values() if isinstance(value, dict) else ()
        asked += value if isinstance(value, list) else ()
        name = value.get("pythonClassName", "") if isinstance(value, dict) else ""
        if name and not str(name).startswith("tensorflow_datasets.core.features."):
            raise errors.UserError(
                f"{file} asks for {name}, code that is not of TFDS; prepare the data "
                "set again with its own features"
            )


def _tfds_damage(folder: pathlib.Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{folder} cannot be read by TFDS ({reason}); prepare it again"


def _tfds_document(
    row: dict[str, Any], folder: pathlib.Path, place: str, domain: str
) -> Document:
    source = f"{folder}:{place}"
    text, identity = row["text"], row.get("id", place)
    if isinstance(text, bytes):
        text = lines.decode(text, source)
    if not isinstance(text, str):
        raise errors.UserError(f"{source} has no text; prepare the data set again")
    if isinstance(identity, bytes):
        identity = identity.decode("utf-8", "replace")
    return Document(str(identity), text, source, domain)
