"""The shapes of steps of `tulu.sft` and `tulu.dpo`, for `jaxlab plan`: no jax."""

import dataclasses
import re

import ml_collections

from jaxlab.plan import shape as shapes
from jaxlab.systems import trust_methods
from jaxlab.systems.planning import shapes as planning

# A reference policy that is asked in every step reads both answers of each pair.
_REFERENCE_PASSES = {
    "before": shapes.Passes(),
    "step": shapes.Passes(forward=1, copies=1),
}
# Those of `objectives.pair_losses` that compare with none.
WITHOUT_REFERENCE = frozenset({"sft", "cpo", "cpo_hinge", "cpo_ipo", "simpo", "orpo"})


def sft_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of instruction tuning computes; see `planning.shapes.decoder`."""
    return planning.decoder(config, passes=trust_methods.passes(config.trust))


def dpo_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of preference tuning computes: a pair is two rows.

    A batch in chunks is computed forward once more, one chunk in memory at a time.
    """
    loss = config.preference
    planning.check_choice("preference.reference", loss.reference, _REFERENCE_PASSES)
    names = re.split(r"[\s+*]+", loss.loss)
    passes = _REFERENCE_PASSES[loss.reference]
    if not any(n not in WITHOUT_REFERENCE for n in names if n.isidentifier()):
        passes = shapes.Passes()
    return _in_chunks(planning.decoder(config, together=2, passes=passes), loss.chunks)


def kto_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step on judged answers computes: other answers are read, not learnt."""
    loss = config.preference
    planning.check_choice("preference.reference", loss.reference, _REFERENCE_PASSES)
    others = int(loss.loss == "kto")
    asked = loss.reference == "step"
    passes = shapes.Passes(forward=others + asked * (1 + others), copies=int(asked))
    return _in_chunks(planning.decoder(config, passes=passes), loss.chunks)


def _in_chunks(shape: shapes.Shape, chunks: int) -> shapes.Shape:
    """Each is computed forward once more, and one is in memory at a time."""
    if chunks == 1:
        return shape
    again = shape.passes._replace(forward=shape.passes.forward + 1)
    return dataclasses.replace(shape, passes=again, micro_batches=chunks)


def reward_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of reward modelling computes: a pair is two rows.

    There is no output head; its multiplications, which are still counted, are less than
    the rest by far.
    """
    shape = planning.decoder(config, together=2, passes=shapes.Passes())
    return dataclasses.replace(shape, tied=True)
