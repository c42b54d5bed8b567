"""What verbs write: tables on stdout, and folders that must be new."""

import pathlib
from collections.abc import Iterable, Sequence

from jaxlab.core import errors, paths


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns: the first on the left, the others, which are numbers, right.

    >>> table(["domain", "loss"], [["law", "3.1"], ["code", "10.2"]])
    domain  loss
    law      3.1
    code    10.2
    """
    rows = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for first, *others in rows:
        cells = [
            f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)
        ]
        print("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip(), flush=True)


def new_folder(path: str) -> pathlib.Path:
    """The path, if nothing is there: asked before the work, not after it.

    Raises:
        UserError: something exists there, or it is in a bucket.
    """
    if paths.is_remote(path):
        raise errors.UserError(f"{path} is in a bucket; write to a folder and copy it")
    folder = pathlib.Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise errors.UserError(f"{folder} exists; remove it or choose another folder")
    return folder
