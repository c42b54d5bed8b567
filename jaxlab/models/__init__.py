"""The model: one transformer for every family, and published weights in and out.

TransformerConfig   what distinguishes one family from another
Decoder             tokens -> next-token logits
Scorer              tokens -> one number a row (reward models)
Encoder             tokens -> one vector a row
hf                  Hugging Face folders <-> (config, params)
"""

from jaxlab.models import hf
from jaxlab.models.config import TransformerConfig
from jaxlab.models.transformer import Decoder, Encoder, Scorer, empty_cache

__all__ = ["Decoder", "Encoder", "Scorer", "TransformerConfig", "empty_cache", "hf"]
