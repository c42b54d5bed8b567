"""What `ablate rank` and `ablate search` take alike: how experts are scored."""

import argparse
import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import errors

if TYPE_CHECKING:
    from jaxlab.systems.data_ablation import predictions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of batches, --json and --mesh."""
    parser.add_argument(
        "--length", type=int, metavar="N",
        help="tokens per row; default: the pool's, or the model's",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, metavar="ROWS", help="default: the pool's, or 8"
    )
    parser.add_argument(
        "--max-batches", type=int, metavar="N",
        help="per target; default: as many as the pool's runs read, or 32",
    )  # fmt: skip
    arguments_lib.add_json(parser)
    arguments_lib.add_mesh(parser)


@contextlib.contextmanager
def open_experts(
    args: argparse.Namespace, targets: Iterable[str]
) -> "Iterator[tuple[predictions.Subject, dict[str, list]]]":
    """Opens POOL or --experts on --mesh: the experts, and target -> batches.

    Raises:
        UserError: neither or both of them, a number below 1, unreadable experts or
            text, an unknown target.
    """
    from jaxlab.commands import devices
    from jaxlab.core import progress, ranges
    from jaxlab.systems.data_ablation import subjects

    _check(args)
    with devices.using(args.mesh) as mesh:
        with progress.announce(
            "opening the experts and reading the targets", progress.remark
        ):
            if args.pool:
                pool = pathlib.Path(args.pool)
                source = subjects.open_pool(pool, mesh)
            else:
                models = dict(args.experts)
                source = subjects.open_models(models, args.seed_model, mesh)
            if args.length is not None:
                most = source.subject.decoder.config.length
                ranges.check_length("--length", args.length, most)
            evaluation = subjects.read_targets(
                source,
                tuple(targets),
                mesh,
                length=args.length,
                rows=args.batch_size,
                batches=args.max_batches,
            )
        yield source.subject, evaluation


def _check(args: argparse.Namespace) -> None:
    """Refuses what argparse takes."""
    experts = getattr(args, "experts", None) or ()
    if bool(args.pool) == bool(experts):
        raise errors.UserError("give a POOL, or --experts NAME=MODEL ...")
    if args.pool and getattr(args, "seed_model", None):
        raise errors.UserError("POOL has its seed model; leave out --seed-model")
    for name in ("batch_size", "max_batches", "max_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise errors.UserError(f"--{flag} {getattr(args, name)}; use 1 or more")
    if len(dict(experts)) < len(experts):
        raise errors.UserError("an expert's name is given twice; name each differently")
