"""Reference values that peers computed once: those in tests/values, and shared ones."""

import functools
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest

VALUES = pathlib.Path(__file__).parents[1] / "values"


@functools.cache
def expected(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a folder's expected.npz, by name."""
    with np.load(folder / "expected.npz") as values:
        return dict(values)


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
