"""A config as `jaxlab plan` sees it: the shape of its step, without jax or data.

Pre-training and instruction tuning of a decoder, plain or with a trust region
(`systems/trust_regions.py`), which adds passes and copies of the parameters, and
preference optimisation, whose batches are of pairs, two rows each.
"""

import ml_collections

from jaxlab.core import errors
from jaxlab.plan import arithmetic
from jaxlab.plan import shape as shapes

# The first gradient is gone before the second is made: XLA adds the climb where it
# casts the parameters to compute with.
_CLIMB = {"trained": 2}
PASSES = {
    "plain": shapes.Passes(),
    "sam": shapes.Passes(**_CLIMB),
    "asam": shapes.Passes(**_CLIMB),
    "fsam": shapes.Passes(**_CLIMB),
    "tram_theta": shapes.Passes(**_CLIMB, forward=1, copies=1),
    "tram_theta0": shapes.Passes(**_CLIMB, forward=1, copies=1),
    "tram_ema": shapes.Passes(**_CLIMB, forward=1, copies=1),
    "tram_x": shapes.Passes(**_CLIMB, forward=1),
    "tram_fisher": shapes.Passes(trained=3, gradients=2),
    "trpo": shapes.Passes(forward=1, copies=1),
    "mesa": shapes.Passes(forward=1, copies=1),
    "r3f": shapes.Passes(trained=2, held=2),
    "r4f": shapes.Passes(trained=2, held=2),
}
# A reference policy that is asked in every step reads both answers of each pair.
_ASKED = shapes.Passes(forward=1, copies=1)
_REFERENCES = ("before", "step")
SYSTEMS = ("olmo.pretrain", "tulu.sft", "tulu.dpo")
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of a config computes.

    Raises:
        UserError: a system that is not planned, or a size that the config leaves open.
    """
    if config.system not in SYSTEMS:
        raise errors.UserError(
            f"config.system {config.system!r} is not planned: its sizes come from the "
            "model that it starts from; plan olmo.pretrain with those sizes"
        )
    pairs = config.system == "tulu.dpo"
    model, optim = config.model, config.optim
    for name in ("embed", "layers", "heads", "mlp"):
        if model[name] < 1:
            raise errors.UserError(
                f"model.{name} is {model[name]}; set --config.model.{name}"
            )
    choices = {"model.remat": (model.remat, shapes.RECOMPUTED)}
    choices["model.dtype"] = model.dtype, _DTYPE_BYTES
    if pairs:
        choices["preference.reference"] = config.preference.reference, _REFERENCES
    else:
        choices["trust.method"] = config.trust.method, PASSES
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise errors.UserError(f"{key} {value!r}; use one of {', '.join(allowed)}")
    kv_heads, head_dim = model.kv_heads or model.heads, model.embed // model.heads
    adam = optim.optimizer == "adamw"
    return shapes.Shape(
        vocab=model.vocab or _trained_vocab(config),
        embed=model.embed,
        layers=model.layers,
        heads=model.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=model.mlp,
        length=config.data.length,
        rows=config.data.batch_size * (2 if pairs else 1),
        together=2 if pairs else 1,
        tied=model.tied,
        post_norm=model.norm_position == "post",
        norm_scales=_norm_scales(model, (model.heads + kv_heads) * head_dim),
        window=model.window,
        full_layers=len(model.full_layers),
        remat=model.remat,
        compute_bytes=_DTYPE_BYTES[model.dtype],
        micro_batches=config.micro_batches,
        moments=(2 if adam else bool(optim.momentum)) + bool(optim.ema),
        passes=_passes(config),
    )


def changed(
    config: ml_collections.ConfigDict, plan: arithmetic.Plan
) -> ml_collections.ConfigDict:
    """The config with what a search may choose: mesh, remat policy, microbatches."""
    found = ml_collections.ConfigDict(config.to_dict())
    found.mesh.update({axis: plan.mesh[axis] for axis in found.mesh})
    found.model.remat = plan.shape.remat
    found.micro_batches = plan.shape.micro_batches
    return found


def _passes(config: ml_collections.ConfigDict) -> shapes.Passes:
    if config.system == "tulu.dpo":
        asks = config.preference.reference == "step"
        return _ASKED if asks else shapes.Passes()
    trust = config.trust
    passes = PASSES[trust.method]
    if trust.anchor_dtype in ("bfloat16", "float16"):
        passes = passes._replace(copies=passes.copies / 2)
    return passes


def _trained_vocab(config: ml_collections.ConfigDict) -> int:
    """The vocabulary of a tokenizer that the run would train, padded as olmo.py does.

    Raises:
        UserError: the tokenizer is a file, which is not read here.
    """
    data, trains = config.data, config.system == "olmo.pretrain"
    if not trains or data.tokenizer or data.files or not data.vocab_size:
        raise errors.UserError(
            "model.vocab is 0, the tokenizer's; set --config.model.vocab"
        )
    return -(-data.vocab_size // 128) * 128


def _norm_scales(model: ml_collections.ConfigDict, projected: int) -> int:
    if model.norm != "rmsnorm":
        return 0
    own = model.layers * projected if model.qk_norm else 0
    return (2 * model.layers + 1) * model.embed + own
