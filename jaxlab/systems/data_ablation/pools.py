"""Pools of experts: made, resumed, added to, opened.

    POOL/recipe.json    how its models are trained      (`recipe.py`)
    POOL/data           token files and held-out files of every partition
    POOL/runs           the seed model, the experts     (`experts.py`)
    POOL/pool.json      the units that are finished     (`ablation/pool_folder.py`)

Nothing else is needed: the text may be gone. Every step can be killed and is finished
by the same call; a unit is in pool.json when it is whole.

Na et al. 2024 (arXiv:2410.15661), section 2: one more partition costs one more training
run and nothing else.
"""

import functools
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax

from jaxlab import ablation
from jaxlab.core import checkpoint, errors, folders, json_text, links, paths, report
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems import branches, corpora
from jaxlab.systems.data_ablation import experts
from jaxlab.systems.data_ablation import recipe as recipe_lib

_SUFFIXES = (".csv.gz", ".bytes", ".json", ".npy")  # of a token file; it counts by .npy


class Pool(NamedTuple):
    """A pool that is ready for use.

    Attributes:
        recipe: how it was made.
        corpus: tokenizer, partitions and held-out sets.
        contents: what pool.json says.
        experts: their parameters and the seed model's.
    """

    recipe: branches.Recipe
    corpus: prepared.Prepared
    contents: ablation.pool_folder.Contents
    experts: ablation.ModelPool


def make(
    recipe: branches.Recipe,
    pool: pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    units: Sequence[str] = (),
    finished: Callable[[str, float], None] = lambda stage, steps: None,
) -> prepared.Prepared:
    """Makes a pool, or finishes it.

    Args:
        recipe: how its models are trained.
        pool: its folder.
        mesh: of devices.
        units: partitions that get an expert; () is all.
        finished: called with (stage, training steps) after each run.

    Raises:
        UserError: a pool of other settings, unreadable text, an unknown partition.
    """
    corpus = open_corpus(recipe, pool, units)
    _check_names(recipe, units, corpus.train)
    _check_sizes(recipe, pool, {n: corpus.train[n] for n in units or corpus.train})
    recipe_lib.record(pool, recipe, units)
    if not (pool / "pool.json").exists():
        experts.train_seed(recipe, pool, mesh)
    finished("seed model", recipe.base.steps)
    have = ablation.pool_folder.read(pool).units
    for name in units or corpus.train:
        if name not in have:
            experts.train_expert(recipe, pool, name, corpus, mesh)
        finished("experts", recipe.unit_steps)
    return corpus


def open_corpus(
    recipe: branches.Recipe, pool: pathlib.Path, units: Sequence[str] = ()
) -> prepared.Prepared:
    """The corpus of a pool, prepared from the recipe's source where it is not yet.

    Raises:
        UserError: a pool of other settings; unreadable text; token files without a
            held-out set or, for a seed model of the user's, of another tokenizer.
    """
    source = recipe.base.data.source
    if recipe_lib.check(pool, recipe, units):
        if (before := recipe_lib.read(pool).base.data.source) == source:
            return prepared.open_folder(pool / "data")
        if not holds_tokens(source):  # moved, or other text
            return _open_text(recipe, pool, _find_added(pool, before))
    sources = paths.split(source)
    token_folders = [path for path in sources if holds_tokens(path)]
    if token_folders and len(sources) > 1:
        raise errors.UserError(
            f"{token_folders[0]} holds token files; give it alone, or only text"
        )
    if token_folders:
        names = [*prepared.open_folder(source).train]
    else:
        names, _ = prepared.find_names(source, recipe.base.data.parts)
    for name in names:
        experts.check_name(name)
    _check_names(recipe, units, names)
    return _take_corpus(recipe, pool) if token_folders else _open_text(recipe, pool)


def _check_names(recipe, units: Sequence[str], names: Collection[str]) -> None:
    """Refuses an unknown partition: before the text is prepared, where it can tell."""
    for name in (*units, *recipe.seed_domains):
        if name not in names:
            raise errors.UserError(
                f"{recipe.base.data.source} has no partition {name}; there are "
                f"{', '.join(names)}"
            )


def add(
    pool: pathlib.Path, name: str, source: str, mesh_shape: dict[str, int] | None = None
) -> ablation.pool_folder.Unit:
    """Adds one partition: its tokens, one training run, one record.

    Args:
        pool: its folder.
        name: of the partition.
        source: a folder or file of text, or a token file NAME.npy.
        mesh_shape: sizes by axis that differ from the recipe's.

    Raises:
        UserError: a bad name, one that is taken by other text, unreadable text, a
            token file of another tokenizer.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", name) or name.endswith(".held_out"):
        raise errors.UserError(
            f"{name!r} is not a name of a partition; use letters, - and _"
        )
    recipe = recipe_lib.read(pool)
    ablation.pool_folder.read(pool)  # its seed model is trained
    if mesh_shape:
        recipe.base.mesh.update(mesh_shape)
    corpus = prepared.open_folder(pool / "data")
    staging = pool / f".adding-{name}"
    shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
    try:
        if pathlib.Path(source).suffix == ".npy":
            _take(pathlib.Path(source), corpus.tokenizer, staging, name)
        else:
            data = recipe.base.data
            prepared.write_domain(
                source,
                name,
                corpus.tokenizer,
                staging,
                held_out_fraction=data.held_out_fraction,
                seed=data.split_seed,
            )
        file = token_files.TokenFile.open(staging / name)
        corpora.make_loader(
            recipe.base.data, {name: file}
        )  # raises where it is too small
        _settle(staging, pool)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if name not in ablation.pool_folder.read(pool).units:
        corpus = prepared.open_folder(pool / "data")
        mesh = mesh_lib.make_mesh(recipe.base.mesh.to_dict())
        experts.train_expert(recipe, pool, name, corpus, mesh)
    return ablation.pool_folder.read(pool).units[name]


def open_pool(pool: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> Pool:
    """Opens a pool for use; only what is in it is needed.

    Args:
        pool: its folder.
        mesh: where the parameters go, sharded; None for the first device.

    Raises:
        UserError: no pool, an empty one, or members that have changed.
    """
    load = functools.partial(checkpoint.load_params, mesh=mesh)
    return Pool(
        recipe_lib.read(pool),
        prepared.open_folder(pool / "data"),
        ablation.pool_folder.read(pool),
        ablation.pool_folder.open(pool, load),
    )


def holds_tokens(source: str) -> bool:
    """Whether a source is a folder of token files, as of `jaxlab data prepare`."""
    path = pathlib.Path(source)
    return path.is_dir() and any(path.glob("*.npy"))


def _check_sizes(recipe: branches.Recipe, pool: pathlib.Path, files: Mapping) -> None:
    """Refuses partitions that are too small for a row, before anything is trained."""
    for name, file in files.items():
        try:
            corpora.make_loader(recipe.base.data, {name: file})
        except errors.UserError as error:
            raise errors.UserError(
                f"{error}; then remove {pool / 'data'}, so that the text is read again"
            ) from None


def _open_text(
    recipe: branches.Recipe, pool: pathlib.Path, added: Collection[str] = ()
) -> prepared.Prepared:
    return corpora.open_corpus(recipe.base.data, pool, added=added)


def _find_added(pool: pathlib.Path, source: str) -> set[str]:
    """Token files of a pool whose documents do not come from the source it began with.

    Their tables say where they were read, wherever that text lies now.
    """
    roots = [str(pathlib.Path(path)) for path in paths.split(source)]
    if prepared.EMBEDDED in roots:
        roots.append(str(pool / "data" / "text"))

    def is_added(path: pathlib.Path) -> bool:
        origin = token_files.TokenFile.open(path).span(0).source
        return not any(origin.startswith((f"{x}/", f"{x}:")) for x in roots)

    return {path.stem for path in (pool / "data").glob("*.npy") if is_added(path)}


def _take_corpus(recipe: branches.Recipe, pool: pathlib.Path) -> prepared.Prepared:
    """A folder of `jaxlab data prepare`, its files linked or copied into the pool."""
    source, folder = recipe.base.data.source, pool / "data"
    record = {"taken_from": source}
    saved = json_text.read_object(
        folder / "corpus.json", f"remove {folder} to take the text again"
    )
    if saved is not None:
        if saved != record:  # moved, or other tokens
            _refuse_other_tokens(pathlib.Path(source), folder)
            report.write_json(folder / "corpus.json", record)
        return prepared.open_folder(folder)
    if recipe.base.data.parts > 1:
        raise errors.UserError(
            f"{source} holds token files, which are not cut in parts"
        )
    corpus = prepared.open_folder(source)
    if not corpus.held_out:
        raise errors.UserError(
            f"{source} keeps no held-out text to evaluate on; prepare it with "
            "--held-out above 0"
        )
    wanted = recipe.base.data.tokenizer
    own = corpus.tokenizer.fingerprint
    if wanted and tokenizer_lib.load(wanted).fingerprint != own:
        raise errors.UserError(
            f"{source} was encoded with another tokenizer than the seed model's; give "
            "the text itself"
        )
    folder.mkdir(parents=True, exist_ok=True)
    links.check(source)
    links.check_all(pathlib.Path(source) / "tokenizer")
    shutil.copytree(
        pathlib.Path(source) / "tokenizer", folder / "tokenizer", dirs_exist_ok=True
    )
    for file in (*corpus.train.values(), *corpus.held_out.values()):
        _link(file.path, folder / file.path.name)
    report.write_json(folder / "corpus.json", record)
    return prepared.open_folder(folder)


def _refuse_other_tokens(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises where token files are not those in the folder."""
    theirs, ours = prepared.open_folder(source), prepared.open_folder(folder)
    same = theirs.tokenizer.fingerprint == ours.tokenizer.fingerprint
    for new, old in ((theirs.train, ours.train), (theirs.held_out, ours.held_out)):
        pairs = ((file, old.get(name)) for name, file in new.items())
        same &= all(
            other is not None and file.info.get("sha256") == other.info.get("sha256")
            for file, other in pairs
        )
    if not same:
        raise errors.UserError(
            f"{folder} was prepared from other text than {source}; use another pool "
            "folder"
        )


def _take(source, tokenizer, staging, name) -> None:
    """NAME.npy, and NAME.held_out.npy if it lies beside."""
    held_out = source.with_name(f"{source.stem}.held_out.npy")
    staging.mkdir()
    for path, target in ((source, name), (held_out, f"{name}.held_out")):
        if path == held_out and not path.exists():
            continue
        made_by = token_files.TokenFile.open(path).info.get("tokenizer")
        if made_by != tokenizer.fingerprint:
            raise errors.UserError(
                f"{path} was encoded with another tokenizer than the pool's; give the "
                "text itself"
            )
        _link(path, staging / f"{target}.npy")


def _settle(staging: pathlib.Path, pool: pathlib.Path) -> None:
    """Moves token files into POOL/data, where the same ones may be already."""
    new = []
    for path in sorted(staging.glob("*.npy")):
        file = token_files.TokenFile.open(path)
        target = pool / "data" / path.name
        if not target.exists():
            new.append((path, target))
        elif token_files.TokenFile.open(target).info["sha256"] != file.info["sha256"]:
            raise errors.UserError(
                f"{pool} has other text under the name "
                f"{file.name.removesuffix('.held_out')}; choose another name"
            )
    for path, target in new:
        pairs = [
            (token_files.beside(path, suffix), token_files.beside(target, suffix))
            for suffix in _SUFFIXES
        ]
        folders.publish({part: file for part, file in pairs if part.exists()})


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A token file under another name: the same bytes on disk, or a copy."""
    for suffix in _SUFFIXES:
        old, new = (token_files.beside(path, suffix) for path in (source, target))
        if old.exists():
            new.unlink(missing_ok=True)
            try:
                os.link(old, new)
            except OSError:  # another file system
                shutil.copyfile(old, new)
