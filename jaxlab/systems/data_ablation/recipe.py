"""How a pool's models are made: at a named size, or from a seed model of the user's.

POOL/recipe.json keeps it, so that a pool needs nothing but itself to be added to,
ranked, searched and reported, and so that the same folder is never continued otherwise.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxlab import load
from jaxlab.core import errors, report
from jaxlab.systems.data_ablation import experts
from jaxlab.systems.olmo import config as olmo_config

_FILE = "recipe.json"
_VERSION = 1
_FREE = ("base.mesh.", "base.run.")  # how it is computed, not what it is


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, and how long it and its experts are trained."""

    embed: int
    layers: int
    heads: int
    mlp: int
    vocab_size: int
    length: int
    batch_size: int
    steps: int  # of the seed model
    rate: float  # its peak
    warmup_steps: int
    unit_steps: int
    unit_rate: float
    eval_batches: int  # of each target
    embedded_bytes: int  # of each embedded domain that are read; 0 for all


# Rates of the small ones were tried on the embedded text. `standard` was not trained:
# its rates follow the small ones', less a half for twice the width.
SIZES = {
    "quick": Size(64, 2, 4, 256, 1024, 128, 8, 60, 1e-2, 10, 20, 4e-3, 2, 150_000),
    "small": Size(128, 4, 4, 512, 2048, 256, 8, 400, 6e-3, 50, 40, 2e-3, 4, 900_000),
    "standard": Size(256, 6, 8, 1024, 8192, 512, 16, 3000, 3e-3, 200, 150, 1e-3, 8, 0),
}
_HELD_OUT = 0.1  # of the documents of each domain
# Of experts of the user's own model, against its training, as in SIZES.
_UNIT_STEPS, _UNIT_RATE = 1 / 10, 1 / 3


def of_size(
    size: str,
    source: str,
    pool: pathlib.Path,
    *,
    unit_steps: int | None = None,
    unit_rate: float | None = None,
    vocab_size: int | None = None,
    parts: int = 1,
    seed_domains: Sequence[str] = (),
) -> experts.Recipe:
    """A recipe that trains the seed model too.

    Args:
        size: one of SIZES.
        source: of the text, as `data.source` of a config; or one folder of token files.
        pool: its folder.
        unit_steps: updates of a base unit; None for the size's.
        unit_rate: their learning rate; None for the size's.
        vocab_size: of the tokenizer; None for the size's.
        parts: partitions of each domain.
        seed_domains: what the seed model is trained on; () is all.
    """
    chosen = SIZES[size]
    base = olmo_config.pretraining()
    base.steps, base.eval_batches = chosen.steps, chosen.eval_batches
    base.model.update({"dtype": "float32", "tied": True})
    for name in ("embed", "layers", "heads", "mlp"):
        base.model[name] = getattr(chosen, name)
    base.data.update({"length": chosen.length, "batch_size": chosen.batch_size})
    base.data.vocab_size = _given(vocab_size, chosen.vocab_size)
    base.data.max_bytes_per_domain = chosen.embedded_bytes
    base.optim.update({"learning_rate": chosen.rate, "epsilon": 1e-8})
    base.optim.warmup_steps = chosen.warmup_steps
    return _recipe(
        base,
        source,
        pool,
        parts,
        unit_steps=_given(unit_steps, chosen.unit_steps),
        unit_rate=_given(unit_rate, chosen.unit_rate),
        seed_domains=tuple(seed_domains),
    )


def of_run(
    run: str,
    source: str,
    pool: pathlib.Path,
    *,
    unit_steps: int | None = None,
    unit_rate: float | None = None,
    parts: int = 1,
) -> experts.Recipe:
    """A recipe whose seed model is a run of the user's: its model, its tokenizer.

    Args:
        run: its directory.
        source: as for `of_size`.
        pool: as for `of_size`.
        unit_steps: None for a tenth of the run's steps.
        unit_rate: None for a third of the run's peak.
        parts: as for `of_size`.

    Raises:
        UserError: no run directory, or one that was not trained but merged.
    """
    if not load.is_run(run) or "optim" not in load.run_config(run):
        raise errors.UserError(
            f"{run} does not say how it was trained; give a run of `jaxlab train`, "
            "which may start from it (--config.init_from)"
        )
    opened = load.open_model(run)
    base = olmo_config.pretraining()
    saved = _tuples(load.run_config(run).to_dict())
    data = saved["data"] | {"files": (), "weights": {}}
    saved = {name: saved[name] for name in base if name in saved}
    base.update(saved | {"data": data, "init_from": ""})
    base.model.vocab = opened.decoder.config.vocab  # as it was rounded up then
    base.data.tokenizer = str(load.tokenizer_path(run))
    base.data.max_bytes_per_domain = 0
    return _recipe(
        base,
        source,
        pool,
        parts,
        unit_steps=_given(unit_steps, max(1, round(base.steps * _UNIT_STEPS))),
        unit_rate=_given(unit_rate, base.optim.learning_rate * _UNIT_RATE),
        seed_model=str(pathlib.Path(run)),
    )


def record(pool: pathlib.Path, recipe: experts.Recipe, units: Sequence[str]) -> None:
    """Writes POOL/recipe.json; the same one is left as it is.

    Raises:
        UserError: as `check`.
    """
    if not check(pool, recipe, units):
        report.write_json(pool / _FILE, _content(recipe, units))


def check(pool: pathlib.Path, recipe: experts.Recipe, units: Sequence[str]) -> bool:
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


def read(pool: pathlib.Path) -> experts.Recipe:
    """The recipe of a pool, wherever it lies now.

    Raises:
        UserError: no pool, or a damaged recipe.
    """
    content = _tuples(_read(pool))
    base = ml_collections.ConfigDict(content["base"], allow_dotted_keys=True)
    base.data.folder = _data_folder(pool)
    names = ("unit_steps", "unit_rate", "seed_domains", "seed_model")
    return experts.Recipe(base, **{name: content[name] for name in names})


def _recipe(base, source, pool, parts, **fields) -> experts.Recipe:
    if fields["unit_steps"] < 1 or not 0 < fields["unit_rate"] < math.inf or parts < 1:
        raise errors.UserError(
            f"unit steps {fields['unit_steps']}, unit rate {fields['unit_rate']}, "
            f"parts {parts}: use 1 or more, above 0, 1 or more"
        )
    source = ",".join(str(pathlib.Path(part)) for part in str(source).split(","))
    base.data.update(
        {
            "source": source, "parts": parts, "held_out_fraction": _HELD_OUT,
            "folder": _data_folder(pool),  # shared by all runs
        }
    )  # fmt: skip
    base.run.update({"save_every": 100, "eval_every": 0, "log_seconds": 10.0})
    return experts.Recipe(base, **fields)


def _given(value, default):
    return default if value is None else value


def _data_folder(pool: pathlib.Path) -> str:
    return str(pathlib.Path(pool).absolute() / "data")


def _content(recipe: experts.Recipe, units: Sequence[str]) -> dict[str, Any]:
    """What is written, as it is read again."""
    fields = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)
    }
    base = recipe.base.to_dict()
    base["data"]["folder"] = ""  # wherever the pool lies
    fields |= {"version": _VERSION, "units": units, "base": base}
    return json.loads(json.dumps(fields))


def _read(pool: pathlib.Path) -> dict[str, Any]:
    path = pathlib.Path(pool) / _FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
    except (FileNotFoundError, NotADirectoryError):
        raise errors.UserError(
            f"{pool} is no pool: it has no {_FILE}; make one with `jaxlab ablate pool`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(f"{path} cannot be understood ({error!r})") from None
    return content


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items()]
    return {key: each for item in items for key, each in item.items()}


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
