"""The methods that merge files, and the parameters that each takes.

Names, defaults and the place of the base follow mergekit 0.1.5, whose recipes are read;
`interpolate`, the weights of karcher and `seed` are ours.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.core import errors

REQUIRED = object()  # in place of a default


class Method(NamedTuple):
    """A method's parameters by name, with their defaults.

    Attributes:
        shared: of the whole merge.
        each: of each model; of the base too where it is one of the models averaged.
        base: "required", "optional" or "none": there is no base, all are averaged.
        least, most: how many models besides the base; None for any number.
        inert: accepted, without effect on the result.
    """

    shared: Mapping[str, Any] = {}
    each: Mapping[str, Any] = {}
    base: str = "none"
    least: int = 1
    most: int | None = None
    inert: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[str]:
        """All names, as they are offered to the user."""
        return sorted({*self.shared, *self.each})


def _deltas(normalize=False, inert=(), each=None, **shared) -> Method:
    """A method that sums differences from a base."""
    return Method(
        {"lambda": 1.0, "normalize": normalize, **shared},
        {"weight": REQUIRED, **(each or {})},
        "required",
        inert=("int8_mask", *inert),
    )


_DENSITY = {"density": 1.0}
_OUTLIERS = {"density": 1.0, "gamma": 0.01}
_RANKS = {"density": 1.0, "epsilon": 0.15}

METHODS = {
    "linear": Method({"normalize": True}, {"weight": REQUIRED}),
    "interpolate": Method({"t": REQUIRED}, least=2, most=2),
    "task_arithmetic": _deltas(inert=("density", "rescale")),
    "ties": _deltas(True, each=_DENSITY, rescale=False),
    "dare_linear": _deltas(each=_DENSITY, rescale=True),
    "dare_ties": _deltas(each=_DENSITY, rescale=True),
    "breadcrumbs": _deltas(each=_OUTLIERS, rescale=False),
    "breadcrumbs_ties": _deltas(each=_OUTLIERS, rescale=False),
    "della": _deltas(True, each=_RANKS, rescale=True),
    "della_linear": _deltas(each=_RANKS, rescale=True),
    "sce": Method({"select_topk": 1.0}, {}, "required", inert=("int8_mask",)),
    "slerp": Method({"t": REQUIRED}, {}, "required", most=1),
    "nuslerp": Method(
        {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        {"weight": REQUIRED},
        "optional",
        least=2,
        most=2,
    ),
    "multislerp": Method({"normalize_weights": True}, {"weight": REQUIRED}, "optional"),
    "karcher": Method({"max_iter": 10, "tol": 1e-5}, {"weight": 1.0}),
    "model_stock": Method({"filter_wise": False}, {}, "required", least=2),
}

# As the functions over trees call them.
METHOD_NAMES = {"average": "linear", "apply_task_vectors": "task_arithmetic"}
PARAMETER_NAMES = {
    "weights": "weight", "scales": "weight", "lam": "lambda", "densities": "density",
}  # fmt: skip


def find(name: str) -> Method:
    """A method by its name.

    Raises:
        ArgumentError: unknown, with the nearest name or all of them.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise errors.ArgumentError(
            f"method {name!r} is not supported; {nearest(name, METHODS)}"
        )
    return METHODS[name]


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """What to say of a word that is not known.

    >>> nearest("wieght", ["weight", "density"])
    'did you mean weight?'
    """
    matches = difflib.get_close_matches(str(word), list(known), n=1)
    if matches:
        return f"did you mean {matches[0]}?"
    return f"use one of {', '.join(sorted(known))}" if known else "it takes none"
