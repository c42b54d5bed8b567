"""Tokenizers: byte-level BPE and SentencePiece behind one interface."""

from jaxlab.data.tokenizers.tokenizer import Tokenizer, check_vocab, load

__all__ = ["Tokenizer", "check_vocab", "load"]
