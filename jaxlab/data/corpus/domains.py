"""Domains of a corpus: a subfolder NAME or a file NAME.jsonl[.gz|.zst] each.

Files called NAME.train.jsonl, NAME.val.jsonl, NAME.test.jsonl ... belong to one split:
those of another split than the one asked for are left out. What is neither a domain nor
hidden is named in a warning, since it is not read.
"""

import functools
import logging
import os
import pathlib

from jaxlab.core import errors, paths
from jaxlab.data.corpus import documents as documents_lib

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "valid", "validation", "dev", "test")


def find_domains(
    source: str | os.PathLike, *, split: str = "train"
) -> dict[str, pathlib.Path]:
    """Domain name -> its folder or JSON-lines file, sorted by name.

    Args:
        source: a folder of domains; or a single file, which is one domain.
        split: which of NAME.train.jsonl, NAME.val.jsonl ... to take.

    Raises:
        UserError: no folder, no domain in it, two of one name, or a name that is not
            UTF-8.
    """
    source = paths.path(source)
    if source.is_file():
        _require_utf8(source)
        return {source.name.split(".")[0] or "text": source}
    if not source.is_dir():
        raise errors.UserError(
            f"{source} is not a folder; give one subfolder per domain"
        )
    domains: dict[str, pathlib.Path] = {}
    others, of_other_splits = [], []
    for path in sorted(source.iterdir()):
        name, of_split = path.name, None
        if path.name.startswith(".") or path.name in documents_lib.UNREAD:
            continue
        if not path.is_dir():
            if not (path.is_file() and documents_lib.JSON_LINES.search(path.name)):
                others.append(path.name)
                continue
            name = documents_lib.JSON_LINES.sub("", path.name)
            stem, _, last = name.rpartition(".")
            if stem and last.lower() in SPLITS:
                name, of_split = stem, last.lower()
        if of_split not in (None, split):
            of_other_splits.append(path.name)
            continue
        if name in domains:
            raise errors.UserError(
                f"domain {name!r} is both {domains[name].name} and {path.name} in "
                f"{source}; rename one"
            )
        _require_utf8(path)
        domains[name] = path
    if not domains:
        raise errors.UserError(
            f"{source} holds no domain{_list_some(others + of_other_splits)}; put one "
            "subfolder or one NAME.jsonl per domain"
        )
    if others:
        _warn_once(
            f"{source}: not read, for it is neither a subfolder nor NAME.jsonl"
            f"{_list_some(others)}; to read it, put it into a subfolder"
        )
    if of_other_splits:
        _warn_once(
            f"{source}: not read, for it is not {split}{_list_some(of_other_splits)}"
        )
    return dict(sorted(domains.items()))


def _require_utf8(path: pathlib.Path) -> None:
    """A domain's name stands in files, tables and flags."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise errors.UserError(
            f"the name of {os.fsencode(path)!r} is not UTF-8; rename it"
        ) from None
    if errors.has_commands(path.name):
        raise errors.UserError(
            f"the name of {str(path)!r} holds a control character; rename it"
        )


def _list_some(names: list[str]) -> str:
    """A few of the names."""
    more = f" and {len(names) - 5} more" if names[5:] else ""
    return f": {', '.join(names[:5])}{more}" if names else ""


@functools.cache
def _warn_once(text: str) -> None:
    """A corpus is looked at several times."""
    _log.warning("%s", text)


def read_domains(
    folder: str | os.PathLike, *, split: str = "train"
) -> dict[str, list[documents_lib.Document]]:
    """Documents by domain, all of them in memory.

    Raises:
        UserError: a domain without text (named), and everything that `find_domains`
            and `documents.read_documents` raise.
    """
    domains = {}
    for name, path in find_domains(folder, split=split).items():
        documents = list(documents_lib.read_documents(path, domain=name))
        if not any(document.text.strip() for document in documents):
            raise errors.UserError(
                f"domain {name!r} ({path}) holds no text; add documents or remove it"
            )
        domains[name] = documents
    return domains
