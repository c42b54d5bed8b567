"""Checks a recipe's mapping and lists all that is wrong with it, each with its line.

`merge.files.recipe.recipe` says what a recipe is.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.recipe import methods

KEYS = (
    "merge_method", "models", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "seed",
)  # fmt: skip
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}


class Parser:
    """Collects what is wrong with one recipe, with its places.

    Args:
        file: named in errors.
        lines: the line of each key, by its path in the mapping.
    """

    def __init__(self, file, lines):
        self.file, self.lines = file, lines
        self.method = ""
        self.wrong: list[str] = []
        self.notes: list[str] = []

    def fields(self, raw: Any) -> dict[str, Any]:
        """The fields of a `Recipe`; raises one UserError with all that is wrong."""
        if not isinstance(raw, Mapping):
            raise errors.UserError(
                f"{self.file}: a recipe is a mapping of keys, such as "
                "merge_method: linear, and models: with one model per line"
            )
        for key in raw:
            if key not in KEYS:
                self.say((key,), f"key {key!r}", methods.nearest(key, KEYS))
        name = raw.get("merge_method")
        try:
            spec = methods.find(name)
        except errors.ArgumentError as error:
            self.wrong.append(f"{self.at(('merge_method',))}merge_{error}")
            raise self.error() from None
        self.method = name
        models, each = self.models(raw.get("models"), name, spec)
        base = self.base(raw, spec, name, models, each)
        others = len(models) - (base is not None)
        if others < spec.least or (spec.most is not None and others > spec.most):
            wanted = f"{spec.least}" if spec.most == spec.least else f"{spec.least} up"
            besides = " besides the base" if base is not None else ""
            self.wrong.append(f"{name} takes {wanted} models{besides}, not {others}")
        shared = self.settings(
            raw.get("parameters"),
            ("parameters",),
            name,
            spec,
            {*spec.each, *spec.shared},
        )
        self.require(spec, name, models, base, shared, each)
        dtype = self.dtype(raw)
        tokenizer = self.tokenizer(raw, models, base)
        seed = raw.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**64:
            self.wrong.append(
                f"{self.at(('seed',))}seed {seed!r} is not a whole number from 0 to "
                "2**64 - 1"
            )
        if self.wrong:
            raise self.error()
        return {
            "method": name,
            "models": tuple(models),
            "base": base,
            "shared": shared,
            "each": tuple(each),
            "dtype": dtype,
            "tokenizer": tokenizer,
            "seed": seed,
            "notes": tuple(self.notes),
        }

    def models(self, raw, name, spec):
        if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
            self.wrong.append(f"{self.at(('models',))}models must be a list of models")
            raise self.error()
        models, each = [], []
        for i, entry in enumerate(raw):
            entry = {"model": entry} if isinstance(entry, str) else entry
            model = entry.get("model") if isinstance(entry, Mapping) else None
            model = self.reference(model, ("models", i))
            if model is None:
                self.wrong.append(f"{self.at(('models', i))}a model needs model: PATH")
                continue
            for key in entry:
                if key not in ("model", "parameters"):
                    self.say(
                        ("models", i, key), f"key {key!r} of a model",
                        "use model, parameters",
                    )  # fmt: skip
            models.append(model)
            place = ("models", i, "parameters")
            own = entry.get("parameters")
            each.append(self.settings(own, place, name, spec, {*spec.each}))
        return models, each

    def base(self, raw, spec, name, models, each):
        base = self.reference(raw.get("base_model"), ("base_model",))
        if base is None:
            if raw.get("base_model") is not None:
                self.wrong.append(f"{self.at(('base_model',))}base_model is no PATH")
            elif spec.base == "required":
                self.wrong.append(f"{name} needs base_model")
            return None
        index = _place(base, models)
        if spec.base == "none":
            if index is None:
                self.wrong.append(
                    f"{self.at(('base_model',))}{name} has no base: {base} must be one "
                    "of models, or left out"
                )
            return None
        if index is None:
            index = len(models)
            models.append(base)
            each.append({})
        if each[index]:
            names = ", ".join(each[index])
            self.notes.append(f"{names} of {base} has no effect, it is the base")
            each[index] = {}
        return index

    def reference(self, raw, place) -> str | None:
        """The path of a model: a text, or {model: {path: ...}} as mergekit has it."""
        while isinstance(raw, Mapping):
            for key, value in raw.items():
                if key not in ("model", "path") and value is not None:
                    self.say((*place, key), f"{key} of a model", "give a merged one")
            raw = raw.get("path", raw.get("model"))
        return raw if isinstance(raw, str) and raw else None

    def settings(self, raw, place, name, spec, names) -> dict[str, Any]:
        if raw is None:
            return {}
        if not isinstance(raw, Mapping):
            self.wrong.append(f"{self.at(place)}parameters must be a mapping")
            return {}
        settings = {}
        for key, value in raw.items():
            if key in spec.inert:
                self.notes.append(f"{key} has no effect on {name}")
            elif key in spec.shared and key not in names:
                self.say((*place, key), f"{key} of one model", "set it for the recipe")
            elif key not in names:
                hint = methods.nearest(key, spec.parameters)
                self.say((*place, key), f"parameter {key!r} of {name}", hint)
            else:
                default = (spec.shared | spec.each)[key]
                settings[key] = self.setting(value, (*place, key), key, default)
        return settings

    def setting(self, value, place, key, default):
        """A scalar, a list of them, or a list of conditions; numbers as numbers."""
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, str):
            return self.scalar(value, place, key, default)
        if not value:
            self.wrong.append(f"{self.at(place)}{key} is an empty list")
        if not any(isinstance(one, Mapping) for one in value):
            return [
                self.scalar(one, (*place, i), key, default)
                for i, one in enumerate(value)
            ]
        conditions = []
        for i, one in enumerate(value):
            keys = {"value", "filter", "regex"}
            if not isinstance(one, Mapping) or "value" not in one or {*one} - keys:
                self.wrong.append(
                    f"{self.at((*place, i))}a condition of {key} is value with filter, "
                    "with regex, or alone"
                )
                continue
            for kind in ("filter", "regex"):
                if not isinstance(one.get(kind, ""), str):
                    self.wrong.append(
                        f"{self.at((*place, i, kind))}{kind} {one[kind]!r} of {key} is "
                        "not a text"
                    )
                    one = {**one, kind: ""}
            condition = dict(one)
            condition["value"] = self.setting(
                one["value"], (*place, i, "value"), key, default
            )
            try:
                re.compile(condition.get("regex") or "")
            except re.error as error:
                self.wrong.append(f"{self.at((*place, i))}regex of {key}: {error}")
            conditions.append(condition)
        return conditions

    def scalar(self, value, place, key, default):
        """mergekit takes `1e-5`, which YAML reads as a string, for a number."""
        if key == "rescale" and value == "expectation" and self.method[:4] == "dare":
            return value
        if isinstance(default, bool):
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            self.wrong.append(f"{self.at(place)}{key} {value!r} is not true or false")
            return default
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not abs(number) < float("inf"):
            self.wrong.append(f"{self.at(place)}{key} {value!r} is no finite number")
            return 0.0
        if isinstance(default, int):
            if number != int(number):
                self.wrong.append(f"{self.at(place)}{key} {value!r} is no whole number")
            return int(number)
        return number

    def require(self, spec, name, models, base, shared, each):
        for key, default in spec.shared.items():
            if default is methods.REQUIRED and key not in shared:
                self.wrong.append(f"{name} needs the parameter {key}")
        for key, default in spec.each.items():
            if default is not methods.REQUIRED or key in shared:
                continue
            for i, model in enumerate(models):
                if i != base and key not in each[i]:
                    place = self.at(("models", i))
                    self.wrong.append(f"{place}{name} needs {key} of {model}")

    def dtype(self, raw):
        for key in ("dtype", "out_dtype"):
            if raw.get(key) not in (None, *DTYPES):
                self.say((key,), f"{key} {raw[key]!r}", f"use {', '.join(DTYPES)}")
        return raw.get("out_dtype") or raw.get("dtype")

    def tokenizer(self, raw, models, base):
        chosen = raw.get("tokenizer_source")
        if chosen in (None, "base"):
            return None if base is None else models[base]
        path = self.reference(chosen, ("tokenizer_source",))
        index = None if path is None else _place(path, models)
        if index is None:
            self.say(
                ("tokenizer_source",), f"tokenizer_source {chosen!r}",
                "use base or one of the models",
            )  # fmt: skip
            return None
        return models[index]

    def say(self, place, what, hint):
        self.wrong.append(f"{self.at(place)}{what} is not supported; {hint}")

    def at(self, place) -> str:
        """`line 3: ` of the key or of what holds it."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"line {self.lines[place]}: " if place else ""

    def error(self):
        count = f"{len(self.wrong)} problems: " if len(self.wrong) > 1 else ""
        return errors.UserError(f"{self.file}: {count}{'; '.join(self.wrong)}")


def is_same(path: str, other: str | None) -> bool:
    """Whether two paths are one model, however they are spelled.

    >>> is_same("runs/./base/", "runs/base"), is_same("a", None)
    (True, False)
    """
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


def _place(path: str, models: Sequence[str]) -> int | None:
    """Which of the models a path is; None for no one of them."""
    if path in models:
        return models.index(path)
    return next((i for i, model in enumerate(models) if is_same(model, path)), None)
