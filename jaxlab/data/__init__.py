"""Text to batches.

tokenizers  byte-level BPE and SentencePiece behind one interface
corpus      documents, domains with held-out sets, token files
shards      the same for a corpus of any size: in processes, on Beam
batches     loaders over token files: mixtures, packing, held-out windows
examples    conversations, pairs, ranked lists, labelled texts, as rows

Rooms load when they are first named.
"""

import importlib

_ROOMS = ("batches", "corpus", "examples", "shards", "tokenizers")

__all__ = [*_ROOMS]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"jaxlab.data.{name}")
    raise AttributeError(f"module 'jaxlab.data' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
