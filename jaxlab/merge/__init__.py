"""Pure functions over trees of parameters; imports nothing of jaxlab but `core`.

>>> from jaxlab import merge
>>> import jax.numpy as jnp
>>> math, code = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 6.0])}
>>> merge.average([math, code], [3, 1])
{'w': Array([2., 3.], dtype=float32)}

Names load when they are first used: merging files needs no jax, whose import takes
longer than many a merge.
"""

import importlib

_NAMES = {
    "by_path": ("gradient", "weights_by_path"),
    "linear": ("apply_task_vectors", "average", "interpolate", "task_vector"),
    "low_rank": ("LowRank", "extract_low_rank", "low_rank_product", "merge_adapters"),
    "soups": ("greedy_ingredients", "greedy_soup", "uniform_soup"),
    "sparse.at_random": ("dare", "della"),
    "sparse.by_size": ("breadcrumbs", "sce", "ties"),
    "spheres.merges": ("karcher", "model_stock", "multislerp", "nuslerp", "slerp"),
    "stacked": ("average_stacked", "stack"),
    "files.stream": ("merge_files",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = found = getattr(module, name)
    return found


def __dir__():
    return [*globals(), *__all__]
