"""POOL/recipe.json: how a pool's models are made.

The file keeps the recipe (`systems/branches.py`), so that a pool needs nothing but
itself to be added to, ranked, searched and reported, and so that the same folder is
never continued otherwise.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxlab.core import errors, json_text, report, value_types
from jaxlab.systems import branches
from jaxlab.systems.olmo import config as olmo_config

_FILE = "recipe.json"
_VERSION = 1
# How it is computed, not what it is; and where the text lies, which is compared with
# what was prepared (`pools.open_corpus`).
_FREE = ("base.mesh.", "base.run.", "base.data.source")


_KINDS = {
    "base": value_types.OBJECT, "unit_steps": value_types.SIZE,
    "unit_rate": value_types.NUMBER, "seed_domains": value_types.TEXTS,
    "seed_model": value_types.TEXT,
}  # fmt: skip


_NEEDED = {  # as `jaxlab ablate` asks for them
    "data": ("batch_size", "length"),
    "model": ("clip_qkv", "embed", "heads", "layers", "mlp", "vocab"),
}


def record(pool: pathlib.Path, recipe: branches.Recipe, units: Sequence[str]) -> None:
    """Writes POOL/recipe.json; the same one is left as it is.

    Raises:
        UserError: as `check`.
    """
    if not check(pool, recipe, units):
        report.write_json(pool / _FILE, _content(recipe, units))


def check(pool: pathlib.Path, recipe: branches.Recipe, units: Sequence[str]) -> bool:
    """Whether the pool was begun; refuses one that was begun otherwise.

    Raises:
        UserError: with every difference, its old and its new value.
    """
    if not (pool / _FILE).exists():
        return False
    old, new = (_flat(content) for content in (_read(pool), _content(recipe, units)))
    different = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE)
    ]
    if different:
        raise errors.UserError(
            f"{pool} was made with other settings: {'; '.join(different)}. Use another "
            "folder, or the old values to continue"
        )
    return True


def read(pool: pathlib.Path) -> branches.Recipe:
    """The recipe of a pool, wherever it lies now.

    Raises:
        UserError: no pool, or a damaged recipe.
    """
    content, file = _read(pool), str(pathlib.Path(pool) / _FILE)
    value_types.check(content, _KINDS, file=file)
    for section, keys in _NEEDED.items():
        value_types.check(content["base"], {section: value_types.OBJECT}, "base.", file)
        if lost := {*keys} - content["base"].get(section, {}).keys():
            raise errors.UserError(
                f"{file} is damaged: it has no base.{section}.{min(lost)}; restore it "
                "from a copy"
            )
    example = olmo_config.pretraining().to_dict()
    value_types.check_as(content["base"], example, "base.", file)
    content = branches.tuples(content)
    base = ml_collections.ConfigDict(content["base"], allow_dotted_keys=True)
    base.data.folder = branches.data_folder(pool)
    names = ("unit_steps", "unit_rate", "seed_domains", "seed_model")
    return branches.Recipe(base, **{name: content[name] for name in names})


def _content(recipe: branches.Recipe, units: Sequence[str]) -> dict[str, Any]:
    """What is written, as it is read again."""
    fields = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)
    }
    base = recipe.base.to_dict()
    base["data"]["folder"] = ""  # wherever the pool lies
    fields |= {"version": _VERSION, "units": units, "base": base}
    return json.loads(json.dumps(fields))


def _what_is_there(pool) -> str:
    path = pathlib.Path(pool)
    if path.is_dir():
        return f"is not a pool: it has no {_FILE}"
    return "is a file and not a pool" if path.exists() else "does not exist"


def _read(pool: pathlib.Path) -> dict[str, Any]:
    path = pathlib.Path(pool) / _FILE
    try:
        content = json_text.read_object(path, "restore it from a copy")
        if content is None:
            raise FileNotFoundError
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
        if lost := _KINDS.keys() - content.keys():
            raise KeyError(min(lost))
    except (FileNotFoundError, NotADirectoryError):
        raise errors.UserError(
            f"{pool} {_what_is_there(pool)}; make a pool with `jaxlab ablate pool`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(f"{path} cannot be understood ({error!r})") from None
    return content


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items()]
    return {key: each for item in items for key, each in item.items()}
