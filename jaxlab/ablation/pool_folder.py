"""POOL/pool.json: the experts of a pool, where they branched from, and fingerprints.

    POOL/pool.json      the seed, the branch point, one record a unit
    POOL/...            run directories of the seed and of the experts

Adding a unit to the pool is one training run, done by somebody else, and then `add`:
one atomic rewrite of pool.json. A unit whose training or adding was killed is not in
the pool, which opens without it. Parameters are fingerprinted when they are recorded
and checked when the pool is opened, so that an expert trained over, or a seed
exchanged, is named instead of averaged.

What is easily accidental is stated (`Branch`): whether the optimizer state of the seed
was carried over and under which schedule the units were trained. The released code of
Na et al. (2024, arXiv:2410.15661) carries Adam's moments over and lets the trainer
restore the schedule's base rate, so that its effective rate cannot be told from its
config.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxlab.ablation import cache
from jaxlab.ablation import pool as pools
from jaxlab.core import (
    checkpoint,
    errors,
    json_text,
    links,
    locks,
    report,
    tree,
    types,
    value_types,
)

_FILE = "pool.json"
_VERSION = 1
_TOLERANCE = 0.01  # units of a pool are of equal token budget within this share


@dataclasses.dataclass(frozen=True)
class Branch:
    """How every unit was trained from the seed.

    Attributes:
        optimizer_state: "fresh", or "carried" over from the seed's training.
        schedule: of the learning rate, e.g. "constant".
        learning_rate: of the units, at its peak.
        warmup_steps: of the units; 0 for none.
        unit_tokens: token budget of one base unit.
    """

    optimizer_state: Literal["fresh", "carried"]
    schedule: str
    learning_rate: float
    warmup_steps: int
    unit_tokens: int


@dataclasses.dataclass(frozen=True)
class Unit:
    """One expert: a record of pool.json.

    Attributes:
        name: of the expert and of its partition.
        path: of its run directory, relative to the pool.
        fingerprint: of its parameters, from `fingerprint`.
        seed_fingerprint: of the parameters that it was branched from.
        tokens_trained: on how many tokens, repeats counted.
        partition_tokens: how many different tokens the partition has.
        units: base units that it counts for; its budget is `units * unit_tokens`.
        steps: updates.
        source: group of partitions that share one weight in a macro average; "" for a
            source of its own.
        data_sha256: of the partition's tokens.
        config_sha256: of the run's config.
    """

    name: str
    path: str
    fingerprint: str
    seed_fingerprint: str
    tokens_trained: int
    partition_tokens: int
    units: int = 1
    steps: int = 0
    source: str = ""
    data_sha256: str = ""
    config_sha256: str = ""

    @property
    def repeats(self) -> float:
        """How often the partition was gone through: small ones are repeated."""
        return self.tokens_trained / self.partition_tokens


_TEXTS = {x.name: value_types.TEXT for x in dataclasses.fields(Unit) if x.type is str}
_COUNTS = dict.fromkeys(
    ("tokens_trained", "partition_tokens", "steps"), value_types.COUNT
)
_UNIT = _TEXTS | _COUNTS | {"units": value_types.SIZE}
_SEED = dict.fromkeys(("path", "fingerprint"), value_types.TEXT)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What pool.json says.

    Attributes:
        seed_path: of the seed's run directory, relative to the pool.
        seed_fingerprint: of its parameters.
        branch: how units are trained from it.
        units: name -> record, in the order in which they were added.
    """

    seed_path: str
    seed_fingerprint: str
    branch: Branch
    units: dict[str, Unit]


def fingerprint(params: types.Params) -> str:
    """One hash of all parameters: names, shapes, dtypes and every bit."""
    shapes = {name: tree.describe(leaf) for name, leaf in tree.flatten(params).items()}
    return cache.digest(shapes, tree.fingerprint(params))


def create(
    folder: pathlib.Path, seed_path: str, seed_fingerprint: str, branch: Branch
) -> None:
    """Makes an empty pool; a pool of the same seed and branch is left as it is.

    Args:
        folder: made if it is missing.
        seed_path: of the seed's run directory, relative to `folder`.
        seed_fingerprint: `fingerprint` of the seed's parameters.
        branch: how its units are trained.

    Raises:
        UserError: the folder is a pool of another seed or branch, a path outside it.
    """
    folder = pathlib.Path(folder)
    _inside(seed_path)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        wanted = Contents(seed_path, seed_fingerprint, branch, {})
        if (folder / _FILE).exists():
            if dataclasses.replace(read(folder), units={}) != wanted:
                raise errors.UserError(
                    f"{folder} is a pool of another seed or branch; use another folder"
                )
            return
        _write(folder, wanted)


def add(folder: pathlib.Path, unit: Unit) -> None:
    """Adds a trained expert; the same record twice is added once.

    Raises:
        UserError: no pool, a name that is taken by another record, another seed, a
            token budget that is not the pool's within 1 %, a path outside the pool.
    """
    folder = pathlib.Path(folder)
    _inside(unit.path)
    with _lock(folder):
        contents = read(folder)
        if contents.units.get(unit.name, unit) != unit:
            raise errors.UserError(
                f"{folder} has a unit {unit.name} already; name this one differently"
            )
        if unit.seed_fingerprint != contents.seed_fingerprint:
            raise errors.UserError(
                f"unit {unit.name} was branched from another seed model than the pool's"
            )
        if unit.units < 1 or unit.partition_tokens < 1:
            raise errors.UserError(
                f"unit {unit.name}: units and partition_tokens must be 1 or more"
            )
        budget = unit.units * contents.branch.unit_tokens
        if abs(unit.tokens_trained - budget) > _TOLERANCE * budget:
            raise errors.UserError(
                f"unit {unit.name} was trained on {unit.tokens_trained:,} tokens; the "
                f"pool's budget for {unit.units} units is {budget:,}, within 1 %"
            )
        units = contents.units | {unit.name: unit}
        _write(folder, dataclasses.replace(contents, units=units))


def read(folder: pathlib.Path) -> Contents:
    """What a pool's pool.json says; no parameters are loaded.

    Raises:
        UserError: no pool.json, or one that cannot be understood.
    """
    path = pathlib.Path(folder) / _FILE
    links.refuse_outside(path, path.parent)
    try:
        content = json_text.read_object(path, "restore it from a copy")
        if content is None:
            raise errors.UserError(f"{folder} is not a pool: it has no {_FILE}")
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
        for unit in content["units"]:
            _check_unit(unit, str(path))
            del unit["repeats"]  # written for people; it follows from the rest
        value_types.check_like(content["branch"], Branch, "branch.", str(path))
        value_types.check(content["seed"], _SEED, "seed.", str(path))
        units = [Unit(**unit) for unit in content["units"]]
        if len({unit.name for unit in units}) < len(units):
            raise ValueError("a unit stands there twice")
        return Contents(
            _inside(content["seed"]["path"], str(path)),
            content["seed"]["fingerprint"],
            Branch(**content["branch"]),
            {unit.name: unit for unit in units},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.UserError(
            f"{path} cannot be understood ({error!r:.200}); restore it from a copy"
        ) from None


def members(folder: pathlib.Path) -> tuple[Unit, ...]:
    """The records of the units, in the order in which they were added."""
    return tuple(read(folder).units.values())


def open(
    folder: pathlib.Path,
    load_params: Callable[[pathlib.Path], types.Params] = checkpoint.load_params,
) -> pools.ModelPool:
    """Loads the seed and all experts, and checks that they are those recorded.

    Args:
        folder: of the pool.
        load_params: run directory -> parameters; e.g. a partial of
            `core.checkpoint.load_params` with a mesh.

    Raises:
        UserError: no pool, an empty one, or members that are not what was recorded;
            all of them are named.
        ValueError: experts of different structure.
    """
    folder = pathlib.Path(folder)
    contents = read(folder)
    if not contents.units:
        raise errors.UserError(f"{folder} has no units yet; train one and add it")
    recorded = {"the seed": (contents.seed_path, contents.seed_fingerprint)} | {
        f"unit {u.name}": (u.path, u.fingerprint) for u in contents.units.values()
    }
    loaded, wrong = {}, []
    for member, (path, expected) in recorded.items():
        try:
            loaded[member] = load_params(folder / path)
        except (errors.UserError, OSError) as error:
            wrong.append(f"{member} cannot be loaded ({error})")
            continue
        if fingerprint(loaded[member]) != expected:
            wrong.append(f"{member} in {path} has changed since it was recorded")
    if wrong:
        raise errors.UserError(
            f"{folder}: {'; '.join(wrong)}. Restore them, or train them again"
        )
    seed = loaded.pop("the seed")
    units = contents.units.values()
    return pools.ModelPool.create(
        dict(zip(contents.units, loaded.values(), strict=True)),
        seed=seed,
        units={unit.name: unit.units for unit in units},
        tokens={unit.name: unit.partition_tokens for unit in units},
        sources={unit.name: unit.source for unit in units if unit.source},
    )


def _write(folder: pathlib.Path, contents: Contents) -> None:
    if jax.process_index() == 0:
        found: dict[str, Any] = {
            "version": _VERSION,
            "seed": {
                "path": contents.seed_path,
                "fingerprint": contents.seed_fingerprint,
            },
            "branch": contents.branch,
            "units": [
                dataclasses.asdict(unit) | {"repeats": unit.repeats}
                for unit in contents.units.values()
            ],
        }
        report.write_json(folder / _FILE, found)


@contextlib.contextmanager
def _lock(folder: pathlib.Path):
    """Units trained at the same time are added one after the other."""
    import fcntl  # not on Windows, where the rest of the room works

    if not folder.is_dir():
        raise errors.UserError(f"{folder} is not a pool: it has no {_FILE}")
    handle = locks.create(folder / locks.NAME)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released by a process that dies
        yield
    finally:
        os.close(handle)


def _check_unit(unit: dict[str, Any], file: str) -> None:
    """Refuses values of other types, and names that lead elsewhere."""
    value_types.check(unit, _UNIT, "units.", file)
    name = _inside(unit["name"], file)
    if "/" in name or errors.has_commands(name) or not name.strip("."):
        raise errors.UserError(f"{file} names a unit {name!r:.100}; rename it")
    _inside(unit["path"], file)


def _inside(path: str, file: str = "a unit") -> str:
    if pathlib.PurePath(path).is_absolute() or ".." in pathlib.PurePath(path).parts:
        raise errors.UserError(
            f"{file}: path {path:.200} is not inside the pool; use a relative one"
        )
    return path
