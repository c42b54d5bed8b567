"""Reference values that peers computed once: those in tests/values, and shared ones."""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from jaxlab.core import safetensors

VALUES = pathlib.Path(__file__).parents[1] / "values"


@functools.cache
def expected(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a folder's expected.npz, by name."""
    with np.load(folder / "expected.npz") as values:
        return dict(values)


def edit(file: pathlib.Path, **changes) -> None:
    """Changes keys of a JSON file; `...` removes one."""
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def rewrite(folder: pathlib.Path, change: Callable[[dict], Any]) -> None:
    """Writes the tensors back after `change`, to the dict itself or as a new one."""
    tensors = {k: np.array(v) for k, v in safetensors.read_folder(folder).items()}
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    safetensors.write(folder / "model.safetensors", specs, tensors.__getitem__)


def copy(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a checkpoint of the values, which a test may damage."""
    return pathlib.Path(shutil.copytree(VALUES / name, folder))


def shared(test_data: pathlib.Path, room: str) -> Callable[[str], Mapping]:
    """Opens NAME.npz of a room's values, which lie beside the test data if at all.

    A test whose values are absent is skipped, and reported.
    """
    folder = test_data.parent / "vectors" / room

    def load(name):
        file = folder / f"{name}.npz"
        if not file.exists():
            pytest.skip(f"no {room}/{file.name} among the reference values")
        return np.load(file, allow_pickle=False)

    return load
