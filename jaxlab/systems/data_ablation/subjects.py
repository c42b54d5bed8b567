"""Experts by their paths, with the targets that they are scored on.

Either a pool, which has its seed model, its held-out sets, and a cache of predictions;
or run directories and Hugging Face folders that share one model, of which nothing is
kept. A target is a held-out set by its name, or text that is encoded here.
"""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from jaxlab import ablation, load
from jaxlab.core import errors, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import evaluation_text
from jaxlab.data.batches import loader
from jaxlab.data.corpus import token_files
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import pools, predictions

_ROWS, _MOST_BATCHES = 8, 32  # where there is no pool to say


class Source(NamedTuple):
    """Experts, and how targets are read for them.

    Attributes:
        subject: the experts.
        held_out: target -> held-out text that their runs keep.
        length: tokens per row.
        rows: of a batch.
        batches: of a target at most.
    """

    subject: predictions.Subject
    held_out: dict[str, token_files.TokenFile]
    length: int
    rows: int
    batches: int


def open_pool(folder: pathlib.Path, mesh: jax.sharding.Mesh | None) -> Source:
    """A pool's experts; what they predict is kept in its cache.

    Raises:
        UserError: no pool, or a damaged one.
    """
    pool = pools.open_pool(folder, mesh)
    base, contents = pool.recipe.base, pool.contents
    subject = predictions.Subject(
        pool.experts,
        branches.decoder(base, pool.corpus),
        pool.corpus.tokenizer,
        folder / "cache",
        {unit.name: unit.fingerprint for unit in contents.units.values()},
        contents.seed_fingerprint,
    )
    held_out, data = dict(pool.corpus.held_out), base.data
    return Source(subject, held_out, data.length, data.batch_size, base.eval_batches)


def open_models(
    paths: Mapping[str, str],
    seed: str | None,
    mesh: jax.sharding.Mesh | None,
) -> Source:
    """Run directories and Hugging Face folders as experts; nothing of them is kept.

    Args:
        paths: name -> where the expert is.
        seed: what they were branched from; None where it is unknown.
        mesh: where the parameters go; None for the first device.

    Raises:
        UserError: unreadable models, or models that cannot be averaged.
    """
    every = [*paths.values()] if seed is None else [*paths.values(), seed]
    models = load.alike(every, mesh=mesh)
    pool = ablation.ModelPool.create(
        {name: model.params for name, model in zip(paths, models, strict=False)},
        seed=None if seed is None else models[-1].params,
    )
    held_out: dict[str, token_files.TokenFile] = {}
    for expert, path in paths.items():
        for name, file in load.held_out(path).items():
            other = held_out.setdefault(name, file)
            if other.info.get("sha256") != file.info.get("sha256"):
                held_out[f"{expert}:{name}"] = file  # another text of the same name
    decoder, tokenizer = models[0].model, models[0].tokenizer
    subject = predictions.Subject(pool, decoder, tokenizer)
    return Source(subject, held_out, models[0].config.length, _ROWS, _MOST_BATCHES)


def read_targets(
    source: Source,
    targets: Sequence[str],
    mesh: jax.sharding.Mesh | None,
    *,
    length: int | None = None,
    rows: int | None = None,
    batches: int | None = None,
) -> dict[str, list[types.Batch]]:
    """Target -> batches, in the order given.

    Args:
        source: the experts.
        targets: held-out sets by name, or folders and files of text, of which each
            domain is a target; none for all held-out sets.
        mesh: that has to divide the rows; None for one device.
        length: tokens per row; None for the source's.
        rows: of a batch; None for the source's.
        batches: of a target at most; None for the source's.

    Raises:
        UserError: an unknown target, unreadable text.
    """
    length = source.length if length is None else length
    rows = mesh_lib.padded_rows(rows or source.rows, mesh)
    with tempfile.TemporaryDirectory() as folder:
        files = _open_targets(source, targets, pathlib.Path(folder))
        return {
            target: list(
                loader.eval_batches(file, length, rows, batches or source.batches)
            )
            for target, file in files.items()
        }


def _open_targets(
    source: Source, targets: Sequence[str], folder: pathlib.Path
) -> dict[str, token_files.TokenFile]:
    """Name -> token file: held-out sets, or text that is encoded into `folder`."""
    held_out = source.held_out
    if not targets and not held_out:
        raise errors.UserError("the experts keep no held-out text; give --target DIR")
    if not targets:
        return held_out
    files = {}
    for number, target in enumerate(targets):
        if target in held_out:
            files[target] = held_out[target]
        elif (text := pathlib.Path(target)).exists():
            files |= evaluation_text.open_text(
                text, source.subject.tokenizer, folder / str(number)
            )
        else:
            have = f" ({', '.join(held_out)})" if held_out else ""
            raise errors.UserError(
                f"target {target!r} is neither a held-out set of the experts{have} nor "
                "a folder or file of text"
            )
    return files
