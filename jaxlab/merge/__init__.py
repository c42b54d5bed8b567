"""Pure functions over trees of parameters; imports nothing of jaxlab but `core`.

>>> from jaxlab import merge
>>> import jax.numpy as jnp
>>> math, code = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 6.0])}
>>> merge.average([math, code], [3, 1])
{'w': Array([2., 3.], dtype=float32)}
"""

from jaxlab.merge.linear import (
    apply_task_vectors,
    average,
    interpolate,
    task_vector,
)
from jaxlab.merge.stacked import average_stacked, stack

__all__ = [
    "apply_task_vectors",
    "average",
    "average_stacked",
    "interpolate",
    "stack",
    "task_vector",
]
