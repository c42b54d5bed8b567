"""The optimizers of TRAM's tables, one row each: what it is, its settings, its cost.

To add one: an optax transform (in `jaxlab/optim`, or any importable function) and a row
of ROWS. The variants of `configs/tram.py` and `configs/languages.py`, the study of
`jaxlab tram`, `jaxlab plan` and training itself (`systems/trust_regions.py`) read the
row. Data only: no jax.

Sherborne et al. 2023, arXiv:2310.03646, tables 2 to 5; settings of its appendix B. What
the paper leaves open is in the docstring of `configs/tram.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxlab.core import errors, ranges
from jaxlab.plan import shape as shapes

_NUMBERS = ("rho", "gamma", "eta", "radius_scale", "max_radius", "sigma", "weight")
_RANGES = {
    **dict.fromkeys(_NUMBERS, ranges.AT_LEAST_0),
    "anchor_decay": ranges.SHARE,
}
_DTYPES = ("", "float32", "bfloat16", "float16")
_CHOICES = {
    "direction": ("forward", "reverse", "symmetric"),
    "noise": ("normal", "uniform"),
    "anchor_dtype": _DTYPES,
    "second_pass": _DTYPES,
}


@dataclasses.dataclass(frozen=True)
class TrustConfig:
    """A trust region as data: the `trust` section of a config.

    Attributes:
        method: of a row of ROWS; "plain" is none.
        rho: radius of sam (paper 0.05) and asam (0.5).
        gamma: radius of fsam and tram_fisher (0.1).
        eta: asam and tram: T = |theta| + eta; fsam and tram_fisher: F^-1 is
            1 / (1 + eta F).
        radius_scale: of tram: d is multiplied by it.
        max_radius: of tram; 0 is no bound.
        direction: of tram's KL: forward, reverse or symmetric.
        anchor_decay: of tram_ema and mesa.
        anchor_dtype: of the anchor of tram and trpo, e.g. bfloat16; "" is the
            parameters'. Averages (tram_ema, mesa) are kept in float32.
        sigma: standard deviation of the noise of tram_x, tram_fisher, r3f and r4f.
        noise: normal or uniform.
        weight: of the penalty of trpo, mesa, r3f and r4f.
        second_pass: dtype that the model computes the second pass in, e.g. float32
            where its first is bfloat16; "" is the model's.
        stochastic_rounding: of the climbed parameters to bfloat16.
    """

    method: str = "plain"
    rho: float = 0.5
    gamma: float = 0.1
    eta: float = 0.0
    radius_scale: float = 1.0
    max_radius: float = 0.0
    direction: str = "forward"
    anchor_decay: float = 0.999
    anchor_dtype: str = ""
    sigma: float = 0.1
    noise: str = "normal"
    weight: float = 0.1
    second_pass: str = ""
    stochastic_rounding: bool = False

    def __post_init__(self):
        """Refuses what does not exist, and numbers that are out of range."""
        of(self.method)
        ranges.check("trust.", vars(self), _RANGES)
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise errors.ArgumentError(
                    f"trust.{name} {value!r}; use one of "
                    f"{', '.join(one or repr(one) for one in allowed)}"
                )


@dataclasses.dataclass(frozen=True)
class Row:
    """One optimizer.

    Attributes:
        label: its name in print.
        reference: its paper.
        method: value of `trust.method`; "plain" is the optimizer alone.
        settings: what else it changes in the `trust` section.
        optim: what it changes in the `optim` section.
        rate_scale: its learning rate, as a multiple of Adam's.
        strength: the setting that a study tunes, a name of TrustConfig; "" is none.
        transform: "module:function" that wraps the optimizer, (optimizer, **arguments)
            -> optax transform; "" leaves it as it is. It is offered `grad_fn` of this
            batch, as `optim.sam` is.
        arguments: names of TrustConfig whose values `transform` takes.
        constants: further arguments of `transform`.
        anchor: parameters that are remembered: "previous", "initial", "ema" or "".
        compares: `transform` measures how far the answers of this batch moved, from the
            anchor or, without one, under noise on the input.
        fisher_noise: `transform` takes squared gradients under noise on the input.
        penalty: what is added to the loss: "" for nothing, "anchor" for the divergence
            from the anchor's answers, "noise" for that from answers under noise.
        normalized_head: the head is divided by its spectral norm.
        passes: what a step costs, for `jaxlab plan`.
        is_compared: it is part of a study that names no optimizers.
    """

    label: str
    reference: str
    method: str = "plain"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate_scale: float = 1.0
    strength: str = ""
    transform: str = ""
    arguments: tuple[str, ...] = ()
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    anchor: str = ""
    compares: bool = False
    fisher_noise: bool = False
    penalty: str = ""
    normalized_head: bool = False
    passes: shapes.Passes = dataclasses.field(default_factory=shapes.Passes)
    is_compared: bool = True


# The first gradient is gone before the second is made: XLA adds the climb where it
# casts the parameters to compute with. So two gradients are never held at once.
_CLIMB = shapes.Passes(trained=2)
_CLIMB_FROM_ANCHOR = shapes.Passes(trained=2, forward=1, copies=1)
_ASKS_ANCHOR = shapes.Passes(forward=1, copies=1)
_SHAKEN = shapes.Passes(trained=2, held=2)

_TRAM_PAPER = "Sherborne et al. 2023, arXiv:2310.03646"
_TRAM = {
    "transform": "jaxlab.optim:tram",
    "arguments": (
        "radius_scale", "max_radius", "eta", "direction", "anchor_decay",
        "anchor_dtype",
    ),
    "strength": "radius_scale",
    "compares": True,
}  # fmt: skip

ROWS: dict[str, Row] = {
    "sgd": Row(
        "SGD",
        "Robbins and Monro 1951",
        optim={"optimizer": "sgd", "momentum": 0.9},
        rate_scale=100,  # its steps are not of one size
        is_compared=False,
    ),
    "adam": Row("Adam", "Kingma and Ba 2015, arXiv:1412.6980"),
    "sam": Row(
        "SAM",
        "Foret et al. 2021, arXiv:2010.01412",
        method="sam",
        settings={"rho": 0.05},
        strength="rho",
        transform="jaxlab.optim:sam",
        arguments=("rho",),
        passes=_CLIMB,
    ),
    "asam": Row(
        "ASAM",
        "Kwon et al. 2021, arXiv:2102.11600",
        method="asam",
        settings={"rho": 0.5},
        strength="rho",
        transform="jaxlab.optim:asam",
        arguments=("rho", "eta"),
        passes=_CLIMB,
    ),
    "fsam": Row(
        "Fisher-SAM",
        "Kim et al. 2022, arXiv:2206.04920",
        method="fsam",
        settings={"gamma": 0.1, "eta": 0.1},
        strength="gamma",
        transform="jaxlab.optim:fisher_sam",
        arguments=("gamma", "eta"),
        passes=_CLIMB,
    ),
    "trpo": Row(
        "TRPO",
        "Schulman et al. 2015, arXiv:1502.05477",
        method="trpo",
        settings={"weight": 0.1},
        strength="weight",
        anchor="previous",
        penalty="anchor",
        passes=_ASKS_ANCHOR,
    ),
    "r3f": Row(
        "R3F",
        "Aghajanyan et al. 2021, arXiv:2008.03156",
        method="r3f",
        settings={"weight": 0.1, "sigma": 0.1},
        strength="weight",
        penalty="noise",
        passes=_SHAKEN,
    ),
    "r4f": Row(
        "R4F",
        "Aghajanyan et al. 2021, arXiv:2008.03156",
        method="r4f",
        settings={"weight": 0.1, "sigma": 0.1},
        strength="weight",
        penalty="noise",
        normalized_head=True,
        passes=_SHAKEN,
        is_compared=False,
    ),
    "mesa": Row(
        "MESA",
        "Du et al. 2022, arXiv:2205.14083",
        method="mesa",
        settings={"weight": 0.1, "anchor_decay": 0.999},
        strength="weight",
        anchor="ema",
        penalty="anchor",
        passes=_ASKS_ANCHOR,
    ),
    "tram_theta": Row(
        "TRAM, previous step",
        _TRAM_PAPER,
        method="tram_theta",
        anchor="previous",
        passes=_CLIMB_FROM_ANCHOR,
        **_TRAM,
    ),
    "tram_theta0": Row(
        "TRAM, start",
        _TRAM_PAPER,
        method="tram_theta0",
        anchor="initial",
        passes=_CLIMB_FROM_ANCHOR,
        **_TRAM,
    ),
    "tram_ema": Row(
        "TRAM, average",
        _TRAM_PAPER + " (only in its released code)",
        method="tram_ema",
        settings={"anchor_decay": 0.999},
        anchor="ema",
        passes=_CLIMB_FROM_ANCHOR,
        **_TRAM,
    ),
    "tram_x": Row(
        "TRAM, noise",
        _TRAM_PAPER,
        method="tram_x",
        settings={"sigma": 0.1},
        passes=shapes.Passes(trained=2, forward=1),
        **_TRAM,
    ),
    "tram_fisher": Row(
        "TRAM-Fisher",
        _TRAM_PAPER,
        method="tram_fisher",
        settings={"gamma": 0.1, "eta": 0.1, "sigma": 0.1},
        strength="gamma",
        transform="jaxlab.optim:tram_fisher",
        arguments=("gamma", "eta"),
        fisher_noise=True,
        passes=shapes.Passes(trained=3, gradients=2),
    ),
}


def of(method: str) -> Row:
    """The row of a `trust.method`.

    Raises:
        UserError: there is none.
    """
    for row in ROWS.values():
        if row.method == method:
            return row
    raise errors.UserError(
        f"trust.method {method!r}; use one of {', '.join(methods())}"
    )


def methods() -> tuple[str, ...]:
    """All values of `trust.method`, each once."""
    return tuple(dict.fromkeys(row.method for row in ROWS.values()))


def variants() -> dict[str, str]:
    """Variant of `configs/tram.py` and `configs/languages.py` -> name of its row."""
    return {**{name: name for name in ROWS}, "tiny": "tram_theta"}


def choose(
    config: ml_collections.ConfigDict, name: str, *, strength: float = 1.0
) -> None:
    """Sets the optimizer of a config, in place: a row's settings, times its strength.

    Args:
        config: with the sections `trust` and `optim`, its rate that of Adam.
        name: of ROWS.
        strength: a factor of the setting that the row calls its strength.
    """
    row = ROWS[name]
    config.trust.update({"method": row.method, **row.settings})
    if row.strength:
        config.trust[row.strength] *= strength
    config.optim.update(row.optim)
    config.optim.learning_rate *= row.rate_scale


def passes(trust: ml_collections.ConfigDict) -> shapes.Passes:
    """What a step with a `trust` section costs.

    Raises:
        UserError: an unknown method.
    """
    row = of(trust.method)
    cost = row.passes
    if trust.anchor_dtype in ("bfloat16", "float16") and row.anchor != "ema":
        return cost._replace(copies=cost.copies / 2)
    return cost
