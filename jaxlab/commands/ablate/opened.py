"""What `rank` and `search` read: experts, and the targets that they are scored on."""

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxlab import ablation, load
from jaxlab.commands import devices
from jaxlab.core import errors, types
from jaxlab.data import evaluation_text
from jaxlab.data.batches import loader
from jaxlab.data.corpus import token_files
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import pools, predictions

_ROWS, _MOST_BATCHES = 8, 32  # where there is no pool to say


class Opened(NamedTuple):
    """Experts and targets, ready.

    Attributes:
        subject: the experts.
        evaluation: target -> batches.
        origin: what to say in JSON of where they come from.
    """

    subject: predictions.Subject
    evaluation: dict[str, list[types.Batch]]
    origin: dict[str, Any]


@contextlib.contextmanager
def opening(args: argparse.Namespace, wanted: list[str]) -> Iterator[Opened]:
    """Opens POOL, or the --experts, and reads the wanted targets.

    Raises:
        UserError: neither or both, unreadable members, an unknown target.
    """
    named = getattr(args, "experts", None)
    if bool(args.pool) == bool(named):
        raise errors.UserError("give a POOL, or --experts NAME=MODEL ...")
    if args.pool and getattr(args, "seed_model", None):
        raise errors.UserError("POOL has its seed model; leave out --seed-model")
    for name in ("batch_size", "max_batches", "max_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise errors.UserError(f"--{flag} {getattr(args, name)}; use 1 or more")
    with devices.using(args.mesh) as mesh, tempfile.TemporaryDirectory() as folder:
        opened = _pool(args.pool, mesh) if args.pool else _models(args, named, mesh)
        subject, known, (length, rows, most), origin = opened
        length = length if args.length is None else args.length
        rows = devices.rounded(args.batch_size or rows, mesh)
        most = args.max_batches or most
        files = _targets(wanted, known, subject.tokenizer, folder)
        evaluation = {
            target: list(loader.eval_batches(file, length, rows, most))
            for target, file in files.items()
        }
        yield Opened(subject, evaluation, origin)


def _pool(path: str, mesh: jax.sharding.Mesh | None) -> tuple:
    opened = pools.open_pool(pathlib.Path(path), mesh)
    base, contents = opened.recipe.base, opened.contents
    subject = predictions.Subject(
        opened.experts,
        branches.decoder(base, opened.corpus),
        opened.corpus.tokenizer,
        pathlib.Path(path) / "cache",
        {unit.name: unit.fingerprint for unit in contents.units.values()},
        contents.seed_fingerprint,
    )
    sizes = base.data.length, base.data.batch_size, base.eval_batches
    return subject, dict(opened.corpus.held_out), sizes, {"pool": path}


def _models(
    args: argparse.Namespace,
    named: list[tuple[str, str]],
    mesh: jax.sharding.Mesh | None,
) -> tuple:
    """Runs and Hugging Face folders; what they say is not kept."""
    paths = dict(named)
    if len(paths) < len(named):
        raise errors.UserError("an expert's name is given twice; name each differently")
    seed = [args.seed_model] if args.seed_model else []
    opened = load.alike([*paths.values(), *seed], mesh=mesh)
    pool = ablation.ModelPool.create(
        {name: model.params for name, model in zip(paths, opened, strict=False)},
        seed=opened[-1].params if seed else None,
    )
    known: dict[str, token_files.TokenFile] = {}
    for expert, path in paths.items():
        for name, file in load.held_out(path).items():
            other = known.setdefault(name, file)
            if other.info.get("sha256") != file.info.get("sha256"):
                known[f"{expert}:{name}"] = file  # another text of the same name
    decoder = opened[0].model
    subject = predictions.Subject(pool, decoder, opened[0].tokenizer)
    sizes = decoder.config.length, _ROWS, _MOST_BATCHES
    return subject, known, sizes, {"experts": paths}


def _targets(
    wanted: list[str],
    known: Mapping[str, token_files.TokenFile],
    tokenizer: Any,
    folder: str,
) -> dict[str, token_files.TokenFile]:
    """Name -> token file: held-out sets, or text that is encoded into `folder`."""
    if not wanted and not known:
        raise errors.UserError("the experts keep no held-out text; give --target DIR")
    chosen = {} if wanted else dict(known)
    for number, target in enumerate(wanted):
        if target in known:
            chosen[target] = known[target]
        elif pathlib.Path(target).exists():
            place = pathlib.Path(folder) / str(number)
            chosen |= evaluation_text.open_text(target, tokenizer, place)
        else:
            have = f" ({', '.join(known)})" if known else ""
            raise errors.UserError(
                f"target {target!r} is neither a held-out set of the experts{have} nor "
                "a folder or file of text"
            )
    return chosen
