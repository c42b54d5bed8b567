"""Tokenizers: byte-level BPE and SentencePiece behind one interface."""

from jaxlab.data.tokenizers.tokenizer import Tokenizer, load

__all__ = ["Tokenizer", "load"]
