"""The model: one transformer for every family, and published weights in and out.

TransformerConfig   what distinguishes one family from another
Decoder             tokens -> next-token logits
Scorer              tokens -> one number per row (reward models)
Encoder             tokens -> one vector per row
Classifier          tokens -> logits of classes
BertEncoder         published BERT, MiniLM, RoBERTa, XLM-R: tokens -> one vector per row
BertScorer          the same with a head: a pair's tokens -> one number per row
hf                  Hugging Face folders <-> (config, params)
"""

from jaxlab.models import hf
from jaxlab.models.bert.config import BertConfig
from jaxlab.models.bert.encoder import BertEncoder, BertScorer
from jaxlab.models.config import TransformerConfig
from jaxlab.models.transformer import (
    Classifier,
    Decoder,
    Encoder,
    Scorer,
    empty_cache,
)

__all__ = [
    "BertConfig",
    "BertEncoder",
    "BertScorer",
    "Classifier",
    "Decoder",
    "Encoder",
    "Scorer",
    "TransformerConfig",
    "empty_cache",
    "hf",
]
