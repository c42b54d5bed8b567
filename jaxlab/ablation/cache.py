"""Cache of arrays on disk, each under the fingerprint of what it was computed from.

A file is one NamedTuple of arrays as npz, written under a temporary name and renamed.
It counts only if its fingerprint is the one asked for: another, or a damaged file, is
computed again and written over, with a line in the log.
"""

import hashlib
import logging
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from jaxlab.core import folders

_log = logging.getLogger(__name__)
_FINGERPRINT = "__fingerprint__"

Arrays = TypeVar("Arrays", bound=tuple)  # a NamedTuple of arrays


def digest(*parts: Any) -> str:
    """A fingerprint of strings, numbers, arrays, and mappings or sequences of them.

    For the key of a cache: the members' fingerprints, and the evaluation batches.

    >>> digest("a", np.arange(3)) == digest("a", np.arange(3)) != digest("b")
    True
    """
    state = hashlib.sha256()
    _feed(state, parts)
    return state.hexdigest()


def save(path: pathlib.Path, value: tuple, fingerprint: str) -> None:
    """Writes a NamedTuple of arrays; a reader sees the old file or the new, whole one.

    Process 0 writes; the others return.
    """
    if jax.process_index() != 0:
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with folders.whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **value._asdict(), **{_FINGERPRINT: np.array(fingerprint)})


def load(path: pathlib.Path, kind: type[Arrays], fingerprint: str) -> Arrays | None:
    """What `save` wrote, or None: no file, another fingerprint, a damaged file.

    Args:
        path: of the file.
        kind: the NamedTuple.
        fingerprint: that the value must have been saved under.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return None
    try:
        _refuse_packed(path)
        with np.load(path) as file:
            if str(file[_FINGERPRINT]) != fingerprint:
                _log.warning("%s is of other models or other text", path)
                return None
            return kind(**{name: file[name] for name in kind._fields})
    except Exception as error:  # zipfile and numpy raise whatever comes of damage
        _log.warning("%s is damaged (%s)", path, error)
        return None


def _refuse_packed(path: pathlib.Path) -> None:
    """`save` packs nothing: an array larger than its file would be a bomb."""
    with zipfile.ZipFile(path) as file:
        size = sum(entry.file_size for entry in file.infolist())
    if size > path.stat().st_size:
        raise ValueError("its arrays are packed")


def load_or_compute(
    path: pathlib.Path,
    kind: type[Arrays],
    fingerprint: str,
    compute: Callable[[], Arrays],
) -> Arrays:
    """`load`, or else compute and `save`."""
    value = load(path, kind, fingerprint)
    if value is None:
        value = compute()
        save(path, value, fingerprint)
    return value


def _feed(state, part: Any) -> None:
    if isinstance(part, Mapping):
        _feed(state, sorted(part.items()))
    elif isinstance(part, list | tuple):
        state.update(f"[{len(part)}".encode())
        for each in part:
            _feed(state, each)
    elif isinstance(part, np.ndarray | jax.Array):
        array = np.ascontiguousarray(part)
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(array.tobytes())
    elif isinstance(part, str | int | float | bool | None):
        state.update(f"{type(part).__name__}:{len(repr(part))}:{part!r}".encode())
    else:
        raise TypeError(f"no fingerprint of a {type(part).__name__}")
