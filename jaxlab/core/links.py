"""Links in folders of others: one that leads out of its folder is not followed.

A downloaded folder, or an archive, may hold a link to any file of its reader's, which
would then be read as its tokenizer, its weights or its text, and copied along. Followed
are a path that the user gave, whatever it leads to; links to folders, where names are
fixed by us; links that stay inside of their folder; and those of the hub's cache, from
`snapshots` to `blobs`. Whoever has made other links says so: JAXLAB_FOLLOW_LINKS=1.

Weights and text are what users keep on another disk, and link. Weights, and tokens, are
followed to a file with their own ending, which holds nothing but numbers; text to a
folder, or a file with the same ending, unless that is hidden, as keys and settings are.
"""

import os
import pathlib
import re

from jaxlab.core import errors

# What is read, by its name, from the folder of a model, a run, an index or a pool.
_READ = re.compile(
    r".*\.(json|jsonl|jinja|safetensors|model|npy|bytes)(\.gz)?|.*\.csv\.gz|vocab\..*|merges\.txt"
    r"|(vectors|texts)\.bin"
)
_NUMBERS = (".safetensors", ".npy", ".bytes")
_HUB = re.compile(r"(models|datasets|spaces)--")


def check(folder: str | os.PathLike) -> None:
    """Refuses a folder of which a file that is read is a link to elsewhere.

    Raises:
        UserError: there is such a link.
    """
    if "://" in os.fspath(folder):  # buckets have none
        return
    with os.scandir(folder) as entries:
        names = [x.name for x in entries if x.is_symlink() and _READ.fullmatch(x.name)]
    for name in sorted(names):
        refuse_outside(pathlib.Path(folder, name), pathlib.Path(folder))


def check_all(folder: pathlib.Path, home: pathlib.Path | None = None) -> None:
    """Refuses a folder, which is copied, with any link out of it, or of `home`."""
    for file in folder.rglob("*"):
        refuse_outside(file, home or folder)


def refuse_outside(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Refuses a file that is a link to what does not belong to its folder.

    Raises:
        UserError: the file is such a link.
    """
    target = file.resolve()
    if file.suffix == target.suffix and file.suffix in _NUMBERS:
        return
    if _are_followed() or _belongs(target, folder.resolve()):
        return
    raise errors.UserError(
        f"{file} is a link to {target}, outside of {folder}; put a copy there, or set "
        "JAXLAB_FOLLOW_LINKS=1 if you have made the link"
    )


def reason_to_skip(file: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Why the text behind a file, or a folder, below a folder is not read; or "".

    >>> reason_to_skip("/etc/hostname", "/etc")
    ''
    """
    target = pathlib.Path(os.path.realpath(file))
    home = pathlib.Path(os.path.realpath(folder))
    if _are_followed() or _belongs(target, home):
        return ""
    if any(map(_HUB.match, target.parts)):
        return ""
    beside = pathlib.Path(os.path.relpath(target, home)).parts
    if any(part.startswith(".") and part != ".." for part in beside):
        return "leads into a hidden folder (JAXLAB_FOLLOW_LINKS=1 if that is yours)"
    if target.is_dir() or target.suffix.lower() == pathlib.Path(file).suffix.lower():
        return ""
    return "is a link to a file of another kind (JAXLAB_FOLLOW_LINKS=1 if it is yours)"


def _are_followed() -> bool:
    return os.environ.get("JAXLAB_FOLLOW_LINKS") == "1"


def _belongs(target: pathlib.Path, home: pathlib.Path) -> bool:
    """Whether a file is in a folder, or in the blobs of the hub's cache."""
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    above = target.parent
    is_of_hub = above.name == "blobs" and bool(_HUB.match(above.parent.name))
    return is_of_hub or any(target.is_relative_to(each) for each in homes)
