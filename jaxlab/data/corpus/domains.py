"""Domains of a corpus: a subfolder NAME or a file NAME.jsonl[.gz|.zst] each.

Files called NAME.train.jsonl, NAME.val.jsonl, NAME.test.jsonl ... belong to one split:
those of another split than the one asked for are left out.
"""

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
        UserError: no folder, no domain in it, or two of one name.
    """
    source = paths.path(source)
    if source.is_file():
        return {source.name.split(".")[0]: source}
    if not source.is_dir():
        raise errors.UserError(
            f"{source} is not a folder; give one subfolder per domain"
        )
    domains: dict[str, pathlib.Path] = {}
    for path in sorted(source.iterdir()):
        name, of_split = path.name, None
        if path.name.startswith((".", "__")):
            continue
        if path.is_file():
            if not documents_lib.JSON_LINES.search(path.name):
                continue
            name = documents_lib.JSON_LINES.sub("", path.name)
            stem, _, last = name.rpartition(".")
            if stem and last in SPLITS:
                name, of_split = stem, last
        if of_split not in (None, split):
            _log.info("%s is of split %s, not %s: left out", path, of_split, split)
            continue
        if name in domains:
            raise errors.UserError(
                f"domain {name!r} is both {domains[name].name} and {path.name} in "
                f"{source}; rename one"
            )
        domains[name] = path
    if not domains:
        raise errors.UserError(
            f"{source} holds no domain; put one subfolder or one NAME.jsonl per domain"
        )
    return dict(sorted(domains.items()))


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
