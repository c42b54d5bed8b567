"""`jaxlab ablate pool`: trains a pool of experts, finishes it, or adds to it."""

import argparse
import pathlib

from jaxlab import ablation
from jaxlab.commands import output
from jaxlab.core import errors, process, progress, report
from jaxlab.core import mesh as mesh_lib
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import pools

# Options that say how a pool is made: not for one that is there.
_MAKING = (
    "seed_model", "size", "vocab_size", "units", "seed_domains", "parts", "unit_steps",
    "unit_rate",
)  # fmt: skip
# Options that the user's own seed model has answered.
_OF_SEED = ("size", "vocab_size", "seed_domains")


def run(args: argparse.Namespace) -> None:
    """Makes the pool or adds to it, and prints what it holds."""
    pool, watch = pathlib.Path(args.pool), progress.Clock()
    if args.add:
        _refuse(args, _MAKING, "--add")
        if len(dict(args.add)) < len(args.add):
            raise errors.UserError("a partition is named twice; name each differently")
        process.start()
        for name, source in args.add:
            watch.say(f"adding {name} from {source}")
            pools.add(pool, name, source, args.mesh)
    else:
        process.start()
        _make(args, pool, watch)
    contents = ablation.pool_folder.read(pool)
    output.table(
        ["partition", "tokens", "trained on", "repeats"],
        [
            [
                unit.name,
                f"{unit.partition_tokens:,}",
                f"{unit.tokens_trained:,}",
                f"{unit.repeats:.2f}",
            ]
            for unit in contents.units.values()
        ],
    )
    took = report.duration(watch.elapsed())
    print(f"{pool}: {len(contents.units)} experts, took {took}")


def _make(args: argparse.Namespace, pool: pathlib.Path, watch: progress.Clock) -> None:
    parts = 1 if args.parts is None else args.parts
    options = {
        "unit_steps": args.unit_steps, "unit_rate": args.unit_rate, "parts": parts,
    }  # fmt: skip
    if args.seed_model:
        _refuse(args, _OF_SEED, "--seed-model")
        recipe = branches.recipe_from_run(args.seed_model, args.data, pool, **options)
    else:
        recipe = branches.recipe_at_size(
            args.size or "small",
            args.data,
            pool,
            vocab_size=args.vocab_size,
            seed_domains=args.seed_domains or (),
            **options,
        )
    if args.vocab_size is not None and pools.holds_tokens(args.data):
        raise errors.UserError(f"{args.data} has its tokenizer; leave out --vocab-size")
    recipe.base.mesh.update(args.mesh or {})
    mesh = mesh_lib.make_mesh(recipe.base.mesh.to_dict())
    units = args.units or ()
    watch.say(f"reading {args.data}")
    corpus = pools.open_corpus(recipe, pool, units)
    watch.say(
        f"{len(corpus.train)} partitions, {len(corpus.held_out)} targets; an expert is "
        f"{recipe.unit_steps} steps at rate {recipe.unit_rate:g}, "
        f"{recipe.unit_tokens:,} tokens"
    )
    total = 0 if recipe.seed_model else recipe.base.steps
    total += len(units or corpus.train) * recipe.unit_steps
    plan = progress.Stages(total, watch.progress)
    pools.make(recipe, pool, mesh, units=units, finished=plan.finished)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], beside: str) -> None:
    given = [f"--{n.replace('_', '-')}" for n in names if getattr(args, n) is not None]
    if given:
        raise errors.UserError(f"{', '.join(given)} cannot be given with {beside}")
