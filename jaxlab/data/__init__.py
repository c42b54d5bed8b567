"""Text to batches: corpora, tokenizers, mixtures, loaders.

Modules load when they are first named.
"""

import importlib

_MODULES = (
    "corpus",
    "documents",
    "inspect",
    "loader",
    "mixture",
    "pairs",
    "text",
    "tokenizer",
)

__all__ = [*_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"jaxlab.data.{name}")
    raise AttributeError(f"module 'jaxlab.data' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
