"""The shape of a step of `olmo.pretrain`, for `jaxlab plan`: no jax."""

import ml_collections

from jaxlab.plan import shape as shapes
from jaxlab.systems import trust_methods
from jaxlab.systems.planning import shapes as planning


def shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step computes; see `planning.shapes.decoder`."""
    return planning.decoder(
        config,
        vocab=_trained_vocab(config.data),
        passes=trust_methods.passes(config.trust),
    )


def _trained_vocab(data: ml_collections.ConfigDict) -> int:
    """The vocabulary of the tokenizer that the run would train, padded as it pads.

    0 where the tokenizer is a file, which is not read here.
    """
    if data.tokenizer or data.files:
        return 0
    return -(-data.vocab_size // 128) * 128
