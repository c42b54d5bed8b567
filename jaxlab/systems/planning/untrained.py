"""What `jaxlab plan --aot` traces: a system's experiment without data."""

from typing import NamedTuple

import numpy as np

from jaxlab.core import types

BatchSpec = dict[str, tuple[tuple[int, ...], type[np.generic]]]


class Untrained(NamedTuple):
    """An experiment whose batches are shapes.

    Attributes:
        experiment: as training builds it, without `batches`.
        batch: name -> (shape, dtype) of the arrays of its batches.
        frozen_is_start: the step reads the parameters it started from as `frozen`.
        base_kept_in: how an adapter's base is kept; "" where all is trained.
    """

    experiment: types.Experiment
    batch: BatchSpec
    frozen_is_start: bool = False
    base_kept_in: str = ""
