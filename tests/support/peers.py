"""Reference values that peers computed once, kept in tests/values."""

import functools
import pathlib

import numpy as np

VALUES = pathlib.Path(__file__).parents[1] / "values"


@functools.cache
def expected(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a folder's expected.npz, by name."""
    with np.load(folder / "expected.npz") as values:
        return dict(values)
