"""What to merge and how: from arguments, from mergekit's YAML, from a `merge.json`.

    merge_method: slerp
    base_model: general
    models: [{model: general}, {model: math}]
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 1]}   # first to last layer
        - {regex: 'mlp|norm', value: 0.3}           # regular expressions are ours
        - value: 0.5                                # all other tensors
    dtype: float32

A value is a number (or true, false), a list, or a list of conditions. A list runs over
the layers: piecewise linear, layer l of L at l / (L - 1); tensors of no layer take its
first value. Of conditions the first whose `filter` is part of the tensor's name holds.
A model's own parameters come before the recipe's, those before the defaults.

Semantics are those of mergekit 0.1.5. *Deviations*: what would be ignored there (a
misspelt parameter, a filter that no tensor has, a `t` of one model) is refused or said;
`dtype` is the dtype of the result, and never narrows an input before the merge; for
dare, `rescale` may also be `expectation`, the paper's 1 / density.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core import errors, json_text, paths
from jaxlab.merge.files.recipe import methods, rules

FORMAT = "jaxlab merge 1"  # of merge.json
_OPTIONS = {  # and the types of its options
    "digest": (str, type(None)), "format": (str, type(None)), "shard_bytes": (int,),
    "layer_axis": (str, type(None)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A merge, checked but for what only the tensors can say.

    Attributes:
        models: paths of all inputs; the base is one of them.
        base: its place among them, or None.
        shared: settings of the whole merge, by parameter.
        each: settings of each model, by parameter.
        dtype: of the result; None for that of the inputs.
        tokenizer: the model whose tokenizer is copied; None for the base or the first.
        seed: of methods that draw.
        notes: what the user should know.
        sizes: of the input files of the merge that is to be repeated, by path.
        digests: of its inputs or their files, by path.
        options: of that merge: how its result was written.
    """

    method: str
    models: tuple[str, ...]
    base: int | None = None
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each: tuple[Mapping[str, Any], ...] = ()
    dtype: str | None = None
    tokenizer: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def result_dtype(self) -> np.dtype | None:
        """`dtype` as numpy has it; None for that of the inputs."""
        return rules.DTYPES[self.dtype] if self.dtype else None

    def as_mapping(self) -> dict[str, Any]:
        """The recipe as `parse` reads it, with absolute paths."""
        paths = [os.path.abspath(model) for model in self.models]
        mapping: dict[str, Any] = {
            "merge_method": self.method,
            "models": [
                {"model": path} | ({"parameters": dict(own)} if own else {})
                for path, own in zip(paths, self.each, strict=True)
            ],
            "parameters": dict(self.shared),
            "seed": self.seed,
        }
        if self.base is not None:
            mapping["base_model"] = paths[self.base]
        if self.dtype:
            mapping["dtype"] = self.dtype
        if self.tokenizer:
            mapping["tokenizer_source"] = os.path.abspath(self.tokenizer)
        return mapping


def from_arguments(
    inputs: Sequence[str | os.PathLike],
    method: str,
    *,
    base: str | os.PathLike | None = None,
    dtype: Any = None,
    seed: int = 0,
    parameters: Mapping[str, Any],
) -> Recipe:
    """A recipe from what a Python caller says.

    A parameter of each model is one value for all or a sequence of one for each (each
    besides the base, where there is one).

    Raises:
        ArgumentError: everything that is wrong, at once.
    """
    method = methods.METHOD_NAMES.get(method, method)
    spec = methods.find(method)
    models = [os.fspath(path) for path in inputs]
    base = None if base is None else os.fspath(base)
    entries = [{"model": model, "parameters": {}} for model in models]
    own = [
        entry["parameters"]
        for entry in entries
        if spec.base == "none" or not rules.is_same(entry["model"], base)
    ]
    shared, lines = {}, []
    for given, value in parameters.items():
        name = methods.PARAMETER_NAMES.get(given, given)
        if name == "rescale":  # as the functions over trees have it
            value = {None: False, "l1": True}.get(value, value)
        if value is None:
            continue
        is_row = hasattr(value, "__len__") and not isinstance(value, str | Mapping)
        if name not in spec.each or not is_row:
            shared[name] = value
        elif len(value) != len(own):
            lines.append(f"{len(value)} {given} for {len(own)} models; give one each")
        else:
            for settings, one in zip(own, value, strict=True):
                settings[name] = one
    if spec.each.get("weight") is methods.REQUIRED and "weight" not in shared:
        for settings in own:
            settings.setdefault("weight", 1.0)
    raw = {"merge_method": method, "models": entries, "parameters": shared}
    raw |= {"seed": seed}
    raw |= {"base_model": base} if base is not None else {}
    if dtype is not None:
        raw["dtype"] = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    try:
        recipe = parse(raw)
    except errors.UserError as error:
        lines.append(str(error))
    if lines:
        raise errors.ArgumentError(f"this merge cannot be made: {'; '.join(lines)}")
    return recipe


def read(path: str | os.PathLike, *, dtype: str | None = None) -> Recipe:
    """A recipe from a YAML file, or from the `merge.json` of an earlier merge.

    Args:
        path: of the file.
        dtype: of the result; None for what the recipe says.

    Raises:
        UserError: one line, with the file, the line, and what is supported.
    """
    from jaxlab.core import yaml_lines

    data = paths.read_bytes(path)
    if data is None:
        raise errors.UserError(f"{path} does not exist; give a recipe")
    if os.fspath(path).endswith(".json"):
        raw = json_text.parse(data, path, "restore it from a copy")
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            raise errors.UserError(f"{path} is not the merge.json of a merge")
        recipe = _repeat(raw, str(path))
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f"{path} is not UTF-8 (byte {error.start} is {data[error.start]:#x}); "
                "save it as UTF-8"
            ) from None
        raw, lines = yaml_lines.load(text, str(path))
        recipe = parse(raw, str(path), lines)
    return dataclasses.replace(recipe, dtype=dtype) if dtype else recipe


def _repeat(raw, file) -> Recipe:
    """The recipe of an earlier merge, with what its inputs must be."""
    try:
        for name, kinds in _OPTIONS.items():
            value = raw["options"].get(name)
            if name in raw["options"] and type(value) not in kinds:
                raise TypeError(f"its option {name} is {value!r}")
        kind, sizes, digests = raw["options"]["digest"], {}, {}
        for entry in raw["inputs"]:
            if kind in entry:
                digests[entry["path"]] = entry[kind]
            for item in entry["files"]:
                # Of an input that is one file the name is ".".
                path = os.path.normpath(os.path.join(entry["path"], item["name"]))
                sizes[path] = int(item["size"])
                if kind in item:
                    digests[path] = item[kind]
        if kind and not digests:
            raise KeyError(kind)
        return dataclasses.replace(
            parse(raw["recipe"], file),
            sizes=sizes,
            digests=digests,
            options=raw["options"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, errors.UserError):
            raise
        raise errors.UserError(f"{file} is damaged: {error}; restore it") from None


def parse(
    raw: Any, file: str = "recipe", lines: Mapping[tuple, int] | None = None
) -> Recipe:
    """A recipe from its mapping.

    Args:
        raw: as YAML or JSON gives it.
        file: named in errors.
        lines: the line of each key, by its path in `raw`.

    Raises:
        UserError: all that is wrong, each with its line.
    """
    return Recipe(**rules.Parser(file, lines or {}).fields(raw))


class Settled(NamedTuple):
    """What a recipe says of the tensors of some models.

    Attributes:
        parameters: by tensor, for each of its depths: what `resolve` gives.
        notes: conditions that hold for no tensor.
        problems: parameters that cannot be used on some tensor.
    """

    parameters: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]]
    notes: list[str]
    problems: list[str]


def settle(recipe: Recipe, depths: Mapping[str, Sequence[float]]) -> Settled:
    """The parameters for all tensors.

    Args:
        depths: for each tensor, where each of its layers stands, as `resolve` takes it;
            () for a tensor that needs no parameters.
    """
    settled = Settled(
        {name: [] for name in depths}, _unused_conditions(recipe, depths), []
    )
    for name, t in ((name, t) for name, own in depths.items() for t in own):
        try:
            shared, each = resolve(recipe, name, t)
        except errors.UserError as error:
            settled.problems.append(str(error))
            continue
        settled.problems.extend(_wrong_values(recipe.method, shared, each))
        settled.parameters[name].append((shared, each))
    return settled


def resolve(
    recipe: Recipe, name: str, t: float = 0.0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters for one tensor.

    Args:
        name: of the tensor.
        t: where its layer stands, 0 for the first, 1 for the last.

    Returns:
        (shared parameters, those of each model but the base in the order of models).
    """
    spec = methods.METHODS[recipe.method]
    shared = {
        key: _first([recipe.shared], key, name, t, default)
        for key, default in spec.shared.items()
    }
    each = [
        {
            key: _first([own, recipe.shared], key, name, t, default)
            for key, default in spec.each.items()
        }
        for k, own in enumerate(recipe.each)
        if k != recipe.base
    ]
    return shared, each


def _unused_conditions(recipe, names) -> list[str]:
    return [
        f"{kind} {condition[kind]!r} of {key} holds for no tensor"
        for scope in (recipe.shared, *recipe.each)
        for key, value in scope.items()
        if isinstance(value, list)
        for condition in value
        if isinstance(condition, Mapping)
        for kind in ("filter", "regex")
        if kind in condition and not any(_holds(condition, name) for name in names)
    ]


def _wrong_values(method, shared, each) -> list[str]:
    """Weights that are divided by their sum, which is 0; shares that are none."""
    lines = []
    divides = {"linear": "normalize", "multislerp": "normalize_weights"}
    if method == "karcher" or shared.get(divides.get(method)):
        weights = [own["weight"] for own in each]
        # A sum that is zero up to float32's rounding would divide noise by noise.
        if abs(sum(weights)) <= 1e-6 * sum(map(abs, weights)):
            lines.append(
                f"weights {weights} sum to 0; change them or set normalize to false"
            )
    for own in (shared, *each):
        lines += [
            f"{name} {own[name]:g} is not between 0 and 1"
            for name in ("density", "gamma", "epsilon", "select_topk")
            if not 0 <= own.get(name, 0) <= 1
        ]
        density, epsilon = own.get("density", 0), own.get("epsilon", 0)
        if 0 < density < 1 and not epsilon < min(density, 1 - density):
            lines.append(
                f"density {density:g} +- epsilon {epsilon:g} must lie between 0 and 1; "
                f"use an epsilon below {min(density, 1 - density):g}"
            )
    return lines


def _first(scopes, key, name, t, default):
    for scope in scopes:
        if key in scope and (value := _value(scope[key], name, t)) is not None:
            return value
    if default is methods.REQUIRED:
        raise errors.UserError(f"no condition of {key} holds for {name}; add a default")
    return default


def _value(setting, name, t):
    if not isinstance(setting, list):
        return setting
    if not any(isinstance(one, Mapping) for one in setting):
        return _along_layers(setting, t)
    for condition in setting:
        if _holds(condition, name):
            return _value(condition["value"], name, t)
    return None


def _along_layers(values, t):
    position = t * (len(values) - 1)
    before = int(position)
    if any(isinstance(value, bool) for value in values):
        return values[before]
    after, share = min(before + 1, len(values) - 1), position - before
    return (1 - share) * values[before] + share * values[after]


def _holds(condition, name) -> bool:
    if "regex" in condition and not re.search(condition["regex"], name):
        return False
    part = condition.get("filter")
    return part in (None, "*") or part in name
