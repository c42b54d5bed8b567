"""jaxlab: ten published language-model systems on one JAX/Flax model and loop.

    from jaxlab import merge                      # pytree algebra for any JAX project
    from jaxlab.models import hf                  # published weights <-> our trees
    from jaxlab import train                      # the one loop: train.fit(experiment)

Rooms load when they are first named; importing `jaxlab` touches no device.
"""

import importlib

__version__ = "0.1.0"

_ROOMS = (
    "ablation",
    "core",
    "data",
    "evals",
    "generate",
    "load",
    "merge",
    "models",
    "objectives",
    "optim",
    "plan",
    "reports",
    "retrieval",
    "stats",
    "systems",
    "train",
)

__all__ = [*_ROOMS, "__version__"]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"jaxlab.{name}")
    raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
