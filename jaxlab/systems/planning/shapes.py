"""What a step of a config computes, for `jaxlab plan`: without jax or data.

Each system says it (`systems.SYSTEMS`); `decoder` is what those of a decoder share.
"""

import ml_collections

from jaxlab import systems
from jaxlab.core import errors
from jaxlab.plan import arithmetic
from jaxlab.plan import shape as shapes

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
# A code, a byte for each 64 of them, an f32 for each 256 of these.
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def shape(config: ml_collections.ConfigDict) -> shapes.Shape:
    """What a step of a config computes.

    Raises:
        UserError: a system that is not planned, or a size that the config leaves open.
    """
    target = systems.entry(config.system).shape
    if not target:
        raise errors.UserError(
            f"config.system {config.system!r} is not planned: its sizes come from the "
            "model that it starts from; plan olmo.pretrain with those sizes"
        )
    return systems.resolve(target)(config)


def decoder(
    config: ml_collections.ConfigDict,
    *,
    passes: shapes.Passes,
    vocab: int = 0,
    together: int = 1,
) -> shapes.Shape:
    """The shape of a decoder's step.

    Args:
        config: with the sections `model`, `data` and `optim`.
        passes: how often a step goes through the model.
        vocab: where `model.vocab` is 0.
        together: rows of an example: 2 of a pair.

    Raises:
        UserError: a size that the config leaves open, or an unknown setting.
    """
    model, optim = config.model, config.optim
    for name in ("embed", "layers", "heads", "mlp"):
        if model[name] < 1:
            raise errors.UserError(
                f"model.{name} is {model[name]}; set --config.model.{name}"
            )
    check_choice("model.remat", model.remat, shapes.RECOMPUTED)
    check_choice("model.dtype", model.dtype, _DTYPE_BYTES)
    if not (model.vocab or vocab):
        raise errors.UserError(
            "model.vocab is 0, the tokenizer's; set --config.model.vocab"
        )
    kv_heads, head_dim = model.kv_heads or model.heads, model.embed // model.heads
    adam = optim.optimizer == "adamw"
    return shapes.Shape(
        vocab=model.vocab or vocab,
        embed=model.embed,
        layers=model.layers,
        heads=model.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=model.mlp,
        length=config.data.length,
        rows=config.data.batch_size * together,
        together=together,
        tied=model.tied,
        post_norm=model.norm_position == "post",
        norm_scales=_norm_scales(model, (model.heads + kv_heads) * head_dim),
        window=model.window,
        full_layers=len(model.full_layers),
        remat=model.remat,
        compute_bytes=_DTYPE_BYTES[model.dtype],
        micro_batches=config.micro_batches,
        moments=(2 if adam else bool(optim.momentum)) + bool(optim.ema),
        passes=passes,
        adapter=_adapter(config),
    )


def check_choice(key: str, value: str, allowed) -> None:
    """Refuses a setting that is not one of `allowed`."""
    if value not in allowed:
        raise errors.UserError(f"{key} {value!r}; use one of {', '.join(allowed)}")


def change(
    config: ml_collections.ConfigDict, plan: arithmetic.Plan
) -> ml_collections.ConfigDict:
    """The config with what a search may choose: mesh, remat policy, microbatches."""
    copy = ml_collections.ConfigDict(config.to_dict())
    copy.mesh.update({axis: plan.mesh[axis] for axis in copy.mesh})
    copy.model.remat = plan.shape.remat
    copy.micro_batches = plan.shape.micro_batches
    return copy


def _adapter(config: ml_collections.ConfigDict) -> shapes.Adapter | None:
    section = config.get("adapter")
    if not section or not section.rank:
        return None
    kept = {
        "compute": _DTYPE_BYTES[config.model.dtype],
        "float32": 4,
        "nf4": _NF4_BYTES,
    }
    check_choice("adapter.base", section.base, kept)
    check_choices("adapter.targets", section.targets, _MATRICES)
    return shapes.Adapter(section.rank, tuple(section.targets), kept[section.base])


def check_choices(key: str, values, allowed) -> None:
    """Refuses a list of settings of which one is not among `allowed`."""
    for value in values:
        check_choice(key, value, allowed)


def _norm_scales(model: ml_collections.ConfigDict, projected: int) -> int:
    if model.norm != "rmsnorm":
        return 0
    own = model.layers * projected if model.qk_norm else 0
    return (2 * model.layers + 1) * model.embed + own
