"""`jaxlab ablate pool`: trains a pool of experts, finishes it, or adds to it."""

import argparse
import pathlib

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors
from jaxlab.systems import sizes

SUMMARY = "Train a pool of experts, finish one, or add to one"
DETAILS = """\
Trains a seed model and one expert per partition, on equally many tokens. Killed
anywhere, the same command finishes it. With --add nothing is trained again: each
partition costs one training run. What is needed later is in POOL; the text may go."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the pool, its text or what to add to it, and how it is made."""
    parser.add_argument("pool", metavar="POOL", help="its folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        metavar="SRC[,SRC]",
        help="folders of text (a subfolder or NAME.jsonl per partition), or embedded; "
        "or one folder of `jaxlab data prepare`",
    )
    what.add_argument(
        "--add",
        nargs="+",
        type=arguments_lib.name_and_value("NAME=PATH"),
        metavar="NAME=PATH",
        help="partitions to add: a folder or file of text, or a token file NAME.npy",
    )
    parser.add_argument(
        "--seed-model",
        metavar="RUN",
        help="a run directory to branch from: its model and tokenizer are the pool's; "
        "default: train one",
    )
    parser.add_argument(
        "--size",
        choices=[*sizes.SIZES],
        help="of the models: quick (2 layers of 64, minutes), small (4 of 128; the "
        "default), standard (6 of 256, 3000 steps of 8192 tokens for the seed model, "
        "150 per expert: wants an accelerator or patience)",
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="V", help="of the tokenizer; default: size's"
    )
    parser.add_argument(
        "--units", type=arguments_lib.names, metavar="A,B",
        help="partitions that get an expert; the others are targets; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--seed-domains", type=arguments_lib.names, metavar="A,B",
        help="partitions of the seed model, in equal shares; default: all, by size",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=int, metavar="N", help="partitions of each domain; default: 1"
    )
    parser.add_argument(
        "--unit-steps",
        type=int,
        metavar="N",
        help="updates of an expert; default: the size's (20, 40, 150), or a tenth of "
        "the seed model's",
    )
    parser.add_argument(
        "--unit-rate",
        type=float,
        metavar="R",
        help="their learning rate; default: the size's (4e-3, 2e-3, 1e-3), or a third "
        "of the seed model's peak",
    )
    arguments_lib.add_mesh(parser, "default: all devices, each with rows of its own")


# Options that say how a pool is made: not for one that is there.
_MAKING = (
    "seed_model", "size", "vocab_size", "units", "seed_domains", "parts", "unit_steps",
    "unit_rate",
)  # fmt: skip
# Options that the user's own seed model has answered.
_OF_SEED = ("size", "vocab_size", "seed_domains")


def run(args: argparse.Namespace) -> None:
    """Makes the pool or adds to it, and prints what it holds."""
    from jaxlab import ablation
    from jaxlab.core import process, progress
    from jaxlab.systems.data_ablation import pools

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
    took = progress.duration(watch.elapsed())
    print(f"{pool}: {len(contents.units)} experts, took {took}")


def _make(args: argparse.Namespace, pool: pathlib.Path, watch) -> None:
    from jaxlab.core import mesh as mesh_lib
    from jaxlab.core import progress
    from jaxlab.systems import branches
    from jaxlab.systems.data_ablation import pools

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
    pools.make(recipe, pool, mesh, units=units, finished=plan.count)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], beside: str) -> None:
    given = [f"--{n.replace('_', '-')}" for n in names if getattr(args, n) is not None]
    if given:
        raise errors.UserError(f"{', '.join(given)} cannot be given with {beside}")
