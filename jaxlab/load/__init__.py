"""A model by its path: a run directory, a run in a bucket, or a Hugging Face folder.

decoder(path)    a language model, ready for use
encoder(path)    a bi-encoder: texts to vectors
scorer(path)     a cross-encoder or a reward model: texts to one number
adapter(path)    what was tuned beside a base, not merged into it
alike(paths)     several that can be averaged
chat_of(path)    how a language model is asked; chat_template(path), that in itself
save(out, ...)   any of them as a Hugging Face folder
"""

from jaxlab.load.adapters import Adapter, adapter
from jaxlab.load.by_path import (
    Loaded,
    alike,
    architecture,
    as_encoder,
    bert,
    decoder,
    encoder,
    generation,
    held_out,
    is_reward,
    params,
    scorer,
)
from jaxlab.load.chats import (
    Chat,
    chat_format,
    chat_of,
    chat_template,
    chat_texts,
)
from jaxlab.load.source import find, is_run, kind, tokenizer_path
from jaxlab.load.write import (
    save,
    save_adapter,
    save_generation,
    save_tokenizer,
)

__all__ = [
    "Adapter",
    "Chat",
    "Loaded",
    "adapter",
    "alike",
    "architecture",
    "as_encoder",
    "bert",
    "chat_format",
    "chat_of",
    "chat_template",
    "chat_texts",
    "decoder",
    "encoder",
    "find",
    "generation",
    "held_out",
    "is_reward",
    "is_run",
    "kind",
    "params",
    "save",
    "save_adapter",
    "save_generation",
    "save_tokenizer",
    "scorer",
    "tokenizer_path",
]
