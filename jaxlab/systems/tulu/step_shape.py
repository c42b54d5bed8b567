"""The shapes of steps of `tulu.sft` and `tulu.dpo`, for `jaxlab plan`: no jax."""

import ml_collections

from jaxlab.plan import shape as shapes
from jaxlab.systems import trust_methods
from jaxlab.systems.planning import shapes as planning

# A reference policy that is asked in every step reads both answers of each pair.
_REFERENCE_PASSES = {
    "before": shapes.Passes(),
    "step": shapes.Passes(forward=1, copies=1),
}


def sft_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of instruction tuning computes; see `planning.shapes.decoder`."""
    return planning.decoder(config, passes=trust_methods.passes(config.trust))


def dpo_shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of preference tuning computes: a pair is two rows."""
    reference = config.preference.reference
    planning.check_choice("preference.reference", reference, _REFERENCE_PASSES)
    return planning.decoder(config, together=2, passes=_REFERENCE_PASSES[reference])
