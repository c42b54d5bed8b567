"""Text to batches.

lines            lines and JSON lines of a plain or compressed file, with file:line
tokenizers       byte-level BPE and SentencePiece behind one interface
corpus           documents, their domains, the rule of held-out ones, token files
shards           token files of a corpus of any size: in processes, on Beam
prepared         a folder of token files and their tokenizer: made once, opened again
batches          loaders over token files: mixtures, packing, held-out windows
examples         conversations, pairs, ranked lists, labelled texts, as rows
evaluation_text  the token files that a model is evaluated on

Rooms load when they are first named.
"""

import importlib

_ROOMS = (
    "batches",
    "corpus",
    "evaluation_text",
    "examples",
    "lines",
    "prepared",
    "shards",
    "tokenizers",
)

__all__ = [*_ROOMS]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"jaxlab.data.{name}")
    raise AttributeError(f"module 'jaxlab.data' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
