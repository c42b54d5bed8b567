"""Which files of a model's folder are its tokenizer's, chat templates included.

Whoever writes a model takes them along: `convert`, `merge`, the start of a run.
Standard library only: `jaxlab merge` copies them without jax.
"""

import gzip
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Mapping

from jaxlab.core import errors, json_text, links

CONFIG = "tokenizer_config.json"
MODELS = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model")
_NAMES = re.compile(
    r"tokenizer.*|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template.*|.*\.model"
)
_TEMPLATE = "chat_template.jinja"
_JSON_TEMPLATE = "chat_template.json"  # of models that also take images
_MORE_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
_PACKED = "tokenizer.json.gz"
_MOST_BYTES = 1 << 27  # the largest that is known has 40 MB; 15 times as much memory


def find(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The files of a folder that belong to a tokenizer; [] where there is none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if _NAMES.fullmatch(file.name)]
    files += (folder / _MORE_TEMPLATES).glob("*.jinja")
    return sorted(file for file in files if file.is_file())


def copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the tokenizer of a folder into another, which exists.

    A packed tokenizer.json, which nobody else reads, is unpacked.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    for file in find(source):
        links.refuse_outside(file, source)
        to = target / file.relative_to(source)
        to.parent.mkdir(exist_ok=True)
        if file.name != _PACKED:
            shutil.copyfile(file, to)
        elif not (source / "tokenizer.json").is_file():
            try:
                data = read(file)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                raise errors.UserError(
                    f"{file} is damaged or cut short; restore it from a copy"
                ) from None
            (target / "tokenizer.json").write_bytes(data)


def read(file: pathlib.Path) -> bytes:
    """What is in a file of a tokenizer, unpacked.

    Raises:
        UserError: more than any tokenizer has.
        BadGzipFile, EOFError, zlib.error: a damaged .gz.
    """
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        data = stream.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise errors.UserError(
            f"{file} holds more than {_MOST_BYTES:,} bytes, which no tokenizer does; "
            "download it again"
        )
    return data


def chat_templates(folder: str | os.PathLike) -> dict[str, str]:
    """Name -> Jinja text of a folder's chat templates; {} where it has none.

    The one that is used where none is asked for is called "default".

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    folder, found = pathlib.Path(folder), {}
    if not folder.is_dir():
        return found
    config = json_text.read_object(folder / CONFIG, "restore it from a copy") or {}
    other = json_text.read_object(folder / _JSON_TEMPLATE, "restore it from a copy")
    said = config.get("chat_template") or (other or {}).get("chat_template")
    if isinstance(said, str) and said:
        found["default"] = said
    for entry in said if isinstance(said, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
            found[str(entry.get("name"))] = entry["template"]
    if isinstance(said, Mapping):
        found |= {name: text for name, text in said.items() if isinstance(text, str)}
    files = {"default": folder / _TEMPLATE}
    files |= {f.stem: f for f in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            links.refuse_outside(file, folder)
            try:
                found[name] = file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise errors.UserError(
                    f"{file} is damaged (not UTF-8 at byte {error.start}); restore it "
                    "from a copy"
                ) from None
    return found


def set_pad_token(folder: str | os.PathLike, text: str) -> None:
    """Names the token that fills rows, in the tokenizer_config.json of a folder."""
    file = pathlib.Path(folder) / CONFIG
    config = json_text.read_object(file, "restore it from a copy") or {}
    file.write_text(json_text.dumps(config | {"pad_token": text}), "utf-8")


def set_chat_templates(folder: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Makes templates, by name, the only ones of a folder.

    One alone is a chat_template.jinja, and for older readers in tokenizer_config.json,
    too; of several that has a list.
    """
    folder = pathlib.Path(folder)
    for name in (_TEMPLATE, _JSON_TEMPLATE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / _MORE_TEMPLATES, ignore_errors=True)
    config = json_text.read_object(folder / CONFIG, "restore it from a copy") or {}
    config["chat_template"] = [{"name": n, "template": t} for n, t in texts.items()]
    if [*texts] == ["default"]:
        config["chat_template"] = texts["default"]
        (folder / _TEMPLATE).write_text(texts["default"], "utf-8", newline="")
    (folder / CONFIG).write_text(json_text.dumps(config), "utf-8")
