"""Rotary positions in `config.json`, read in both layouts and written in both.

    before 5  "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", ...} or null
    from 5    "rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", ...}

(versions of transformers). Old files say `type` for `rope_type`. In olmo3 the first
layout speaks of the full layers, the sliding ones being unscaled; `rope_parameters` has
one dict for each layer type. Where `original_max_position_embeddings` stands at the top
of the file, it comes before what stands inside.
"""

from collections.abc import Mapping
from typing import Any

from jaxlab.core import errors, value_types
from jaxlab.models import rope as rope_lib

# Kind of rotary scaling -> its keys and the fields of `rope_lib.Rope` they set.
_FACTOR = {"factor": "factor"}
_ORIGINAL = {"original_max_position_embeddings": "original_length"}
_ROPE_KEYS = {
    "default": {},
    "linear": _FACTOR,
    "llama3": {
        **_FACTOR,
        **_ORIGINAL,
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        **_FACTOR,
        **_ORIGINAL,
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor")
_OUTER = {
    "rope_theta": value_types.POSITIVE.or_null(),
    "rope_parameters": value_types.OBJECT.or_null(),
    "rope_scaling": value_types.OBJECT.or_null(),
    "original_max_position_embeddings": value_types.SIZE.or_null(),
}
_INNER = {
    "rope_theta": value_types.POSITIVE.or_null(),
    "rope_type": value_types.TEXT.or_null(),
    "type": value_types.TEXT.or_null(),
    "truncate": value_types.SWITCH.or_null(),
    "original_max_position_embeddings": value_types.SIZE.or_null(),
    **dict.fromkeys(
        (
            "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
            "attention_factor",
        ),
        value_types.POSITIVE.or_null(),
    ),
}  # fmt: skip
_LAYER_TYPES = ("full_attention", "sliding_attention")


def from_json(
    raw: Mapping[str, Any], theta: float, *, by_layer_type: bool = False
) -> tuple[rope_lib.Rope, rope_lib.Rope]:
    """Positions of the full layers and of the sliding layers.

    Args:
        raw: a parsed config.json.
        theta: the family's default.
        by_layer_type: whether the family may nest `rope_parameters` (olmo3).

    Raises:
        UserError: an unknown kind of scaling, or a key that it lacks or does not know.
    """
    value_types.check(raw, _OUTER)
    for name in ("rope_parameters", "rope_scaling"):
        inner = raw.get(name) or {}
        value_types.check(inner, _INNER, f"{name}.")
        kinds = {kind: value_types.OBJECT.or_null() for kind in _LAYER_TYPES}
        value_types.check(inner, kinds, f"{name}.")
        for kind in _LAYER_TYPES:
            value_types.check(inner.get(kind) or {}, _INNER, f"{name}.{kind}.")
    theta = raw.get("rope_theta") or theta
    length = raw.get("max_position_embeddings", 2048)
    original = raw.get("original_max_position_embeddings")
    full = dict(raw.get("rope_parameters") or {})
    near = {"rope_theta": full.get("rope_theta")}
    if by_layer_type and full.keys() & set(_LAYER_TYPES):
        full, near = (dict(full.get(kind) or {}) for kind in _LAYER_TYPES)
    if scaling := raw.get("rope_scaling"):
        full = {"rope_theta": full.get("rope_theta"), **scaling}
    return tuple(_rope(each, theta, original, length) for each in (full, near))


def to_json(
    rope: rope_lib.Rope, window_rope: rope_lib.Rope | None = None
) -> dict[str, Any]:
    """The keys of config.json; nested by layer type when there is a `window_rope`."""
    scaling = _parameters(rope)
    del scaling["rope_theta"]
    parameters = _parameters(rope)
    if window_rope is not None:
        both = (parameters, _parameters(window_rope))
        parameters = dict(zip(_LAYER_TYPES, both, strict=True))
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling == "default" else scaling,
        "rope_parameters": parameters,
    }


def _rope(raw, theta, original, length):
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise errors.UserError(
            f"config.json: rope type {kind!r} is not supported, only "
            f"{', '.join(_ROPE_KEYS)}"
        )
    keys = _ROPE_KEYS[kind]
    rest = {
        key: value
        for key, value in raw.items()
        if key not in ("rope_type", "type") and value is not None
    }
    needed = [key for key in _REQUIRED if key in keys]
    if missing := [key for key in needed if key not in rest]:
        raise errors.UserError(f"config.json: {kind} rope lacks {', '.join(missing)}")
    theta = rest.pop("rope_theta", theta)
    if rest.get("partial_rotary_factor") == 1:
        del rest["partial_rotary_factor"]
    if unknown := sorted(rest.keys() - keys.keys()):
        raise errors.UserError(
            f"config.json: {kind} rope with {', '.join(unknown)} is not supported"
        )
    values = {keys[key]: value for key, value in rest.items()}
    if "original_max_position_embeddings" in keys:
        values.setdefault("original_length", length)
        values["original_length"] = original or values["original_length"]
    return rope_lib.Rope(theta=theta, scaling=kind, **values)


def _parameters(rope):
    keys = _ROPE_KEYS[rope.scaling]
    values = {key: getattr(rope, field) for key, field in keys.items()}
    # `truncate` is true where it is absent, and unknown to versions before 4.56.
    unsaid = {"truncate": True}
    stated = {k: v for k, v in values.items() if v is not None and unsaid.get(k) != v}
    return {"rope_type": rope.scaling, "rope_theta": rope.theta, **stated}
