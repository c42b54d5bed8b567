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
    shape = planning.decoder(config, together=2, passes=passes)
    if (chunks := loss.chunks) > 1:
        again = passes._replace(forward=passes.forward + 1)
        shape = dataclasses.replace(shape, passes=again, micro_batches=chunks)
    return shape


def reward_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of reward modelling computes: a pair is two rows.

    There is no output head; its multiplications, which are still counted, are less than
    the rest by far.
    """
    shape = planning.decoder(config, together=2, passes=shapes.Passes())
    return dataclasses.replace(shape, tied=True)
