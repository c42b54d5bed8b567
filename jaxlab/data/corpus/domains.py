"""Domains of a corpus: a subfolder NAME or a file NAME.jsonl[.gz|.zst] each.

Files called NAME.train.jsonl, NAME.val.jsonl, NAME.test.jsonl ... belong to one split:
those of another split than the one asked for are left out. What is neither a domain nor
hidden is named in a warning, since it is not read. NAME.val.jsonl (.valid, .validation,
.dev) beside NAME.train.jsonl, NAME.jsonl or the folder NAME is the domain's held-out
text, read where documents are held out; so is NAME/val.jsonl beside NAME/train.jsonl,
where a folder has no other JSON lines.
"""

import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterable

from jaxlab.core import errors, links, paths
from jaxlab.data.corpus import documents as documents_lib

_log = logging.getLogger(__name__)

_TEXT = re.compile(
    f"{documents_lib.JSON_LINES.pattern}|{documents_lib.PLAIN_TEXT.pattern}",
    re.IGNORECASE,
)

HELD_OUT_SPLITS = ("val", "valid", "validation", "dev")
SPLITS = ("train", *HELD_OUT_SPLITS, "test")


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
        is_link = not paths.is_remote(path) and path.is_symlink()
        if is_link and (why := links.reason_to_skip(path, source)):
            _warn_once(f"{path} is not read: it {why}")
            continue
        if not path.is_dir():
            if not (path.is_file() and documents_lib.JSON_LINES.search(path.name)):
                others.append(path.name)
                continue
            name, of_split = _parse(documents_lib.JSON_LINES.sub("", path.name))
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
    if split == "train":  # what is held-out text is not forgotten
        siblings = [source / name for name in others + of_other_splits]
        taken = {
            path.name
            for domain in domains.values()
            for path in _held_out_candidates(domain, siblings)
        }
        others = [name for name in others if name not in taken]
        of_other_splits = [name for name in of_other_splits if name not in taken]
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


def held_out_file(path: str | os.PathLike) -> pathlib.Path | None:
    """The file that is a domain's held-out text: its name with .val, say, beside it.

    Args:
        path: of the domain, one of `find_domains`.

    Raises:
        UserError: there are two.
    """
    path = paths.path(path)
    try:
        siblings = sorted(path.parent.iterdir()) if path.name else []
    except OSError:  # whoever reads the domain says what is wrong
        siblings = []
    found = [*_held_out_candidates(path, siblings), *_held_out_within(path)]
    if len(found) > 1:
        raise errors.UserError(
            f"{found[0]} and {found[1].relative_to(path.parent)} are both held-out "
            f"text of {path.name}; remove or rename one"
        )
    for file in found:
        _require_utf8(file)
    return found[0] if found else None


def held_out_files(source: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Domain name -> its held-out text, for those that have such a file."""
    found = {n: held_out_file(path) for n, path in find_domains(source).items()}
    return {name: file for name, file in found.items() if file is not None}


def warn_of_unread(path: str | os.PathLike, reason: str) -> None:
    """Says that a domain's held-out text, if it has a file of it, is not read; once.

    One inside of the domain's folder is read as its other files are.
    """
    if (file := held_out_file(path)) is not None:
        is_within = file.parent == paths.path(path)
        what = "trained on" if is_within else "not read"
        _warn_once(f"{file} is {what}: {reason}")


def _held_out_candidates(
    domain: pathlib.Path, siblings: Iterable[pathlib.Path]
) -> list[pathlib.Path]:
    name, split = domain.name, None
    if _TEXT.search(name) and not domain.is_dir():
        name, split = _parse(_TEXT.sub("", name))
    if split not in (None, "train"):
        return []
    wanted = {(name, each) for each in HELD_OUT_SPLITS}
    return [
        path
        for path in siblings
        if path.name.startswith(f"{name}.")
        and _TEXT.search(path.name)
        and _parse(_TEXT.sub("", path.name)) in wanted
        and path.is_file()
    ]


def _held_out_within(folder: pathlib.Path) -> list[pathlib.Path]:
    """Its val.jsonl, of a folder that has train.jsonl and no third file of the kind."""
    if not folder.is_dir():
        return []
    files = {
        documents_lib.JSON_LINES.sub("", path.name).lower(): path
        for path in sorted(folder.iterdir())
        if documents_lib.JSON_LINES.search(path.name)
        and documents_lib.is_visible(path.name)
    }
    train = files.pop("train", None)
    if train is None or len(files) != 1 or not {*files} <= {*HELD_OUT_SPLITS}:
        return []
    return [*files.values()]


def _parse(stem: str) -> tuple[str, str | None]:
    """The domain and the split of a file's name without its ending.

    >>> _parse("law.Val"), _parse("law.v2")
    (('law', 'val'), ('law.v2', None))
    """
    name, _, last = stem.rpartition(".")
    return (name, last.lower()) if name and last.lower() in SPLITS else (stem, None)


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
