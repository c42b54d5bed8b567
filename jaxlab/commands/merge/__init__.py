"""`jaxlab merge`: models into one, streamed from disk to disk.

Hugging Face folders are merged without jax, whose import takes longer than the merge
of a small model.
"""

import argparse
import pathlib
import sys
import time

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import accelerators, errors, progress, runs

SUMMARY = "Merge models into one, streaming, by a recipe or as an average"
DETAILS = """\
Recipes are those of mergekit: linear, task_arithmetic, slerp, nuslerp,
multislerp, karcher, model_stock, ties, dare, breadcrumbs, della, sce.
Checkpoints may be larger than memory. merge.json in the result says what
was merged, and is a recipe that makes the same bytes again. For example:

  jaxlab merge general math -o merged --weights 0.7,0.3
  jaxlab merge recipe.yaml -o merged --memory 256MB"""

_RECIPES = (".yaml", ".yml", ".json")
_CHUNKS = 16  # of the memory that a merge may take
_LEAST_MEMORY = _CHUNKS << 12
_BLOCKS = r"^blocks/"  # leaves of our decoder that stack the layers


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is merged, where to, in which format, and the memory it may take."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RECIPE|MODEL",
        help="a recipe (.yaml, or an earlier merge's merge.json); or "
        f"{arguments_lib.MODEL}, two or more, to average; folders of other families "
        "(Qwen, Mistral, Gemma, ...) are merged as well",
    )
    parser.add_argument("-o", "--out", required=True, help="a new folder")
    parser.add_argument(
        "--weights",
        type=arguments_lib.numbers("0.7,0.3"),
        help="e.g. 0.7,0.3; divided by their sum",
    )
    parser.add_argument(
        "--format",
        choices=("hf", "orbax"),
        help="a Hugging Face folder (default), or a run directory",
    )
    parser.add_argument(
        "--dtype",
        choices=arguments_lib.DTYPES,
        help="of the result; default: that of the models",
    )
    parser.add_argument(
        "--memory",
        type=arguments_lib.byte_count,
        default=64 * 2**20,
        metavar="SIZE",
        help="held at most, besides the program; default 64MB",
    )
    parser.add_argument(
        "--shard-size",
        type=arguments_lib.byte_count,
        metavar="SIZE",
        help="of a file; default 5GB",
    )
    parser.add_argument(
        "--sha256",
        action="store_true",
        help="record the SHA-256 of every input file",
    )
    parser.add_argument(
        "--force", action="store_true", help="merge models of different tokenizers, too"
    )
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Reads the recipe or makes one of the models given, and merges."""
    from jaxlab.merge.files import stream

    if args.memory < _LEAST_MEMORY:
        raise errors.UserError(f"--memory of {args.memory} bytes; use 64kB or more")
    if args.shard_size is not None and args.shard_size < 1:
        raise errors.UserError("--shard-size 0; use 1 byte or more, e.g. 5GB")
    plan = _plan(args)
    are_runs = [runs.has_checkpoints(model) for model in plan.models]
    if any(are_runs):  # Orbax asks jax for its devices
        accelerators.check()
    if any(are_runs) and not all(are_runs):
        from jaxlab.commands.merge import conversion

        return conversion.average(plan, args)
    if args.mesh:
        raise errors.UserError("files are merged on no device; leave out --mesh")
    options = {"format": args.format, "shard_bytes": args.shard_size}
    options |= {"digest": "sha256" if args.sha256 else None}
    options |= {"layer_axis": _BLOCKS if any(are_runs) else None}
    options = {name: value for name, value in options.items() if value is not None}
    written = args.format or plan.options.get("format", "hf")
    is_converted = _is_folder_to_run(plan, written)
    if any(are_runs):
        is_converted = written == "hf"
    if is_converted:
        from jaxlab.commands.merge import conversion

        options["writer"] = conversion.writer(plan)
    started = time.monotonic()
    meter = progress.Meter("read", number=lambda size: f"{size / 1e9:.1f} GB")
    report = stream.merge_recipe(
        plan,
        args.out,
        chunk_bytes=args.memory // _CHUNKS,
        progress=meter,
        free_keys=_free_keys if any(are_runs) else (),
        spell_out=_spell_out,
        force=args.force,
        **options,
    )
    for note in report["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    dtypes, seconds = ", ".join(report["dtypes"]), time.monotonic() - started
    print(
        f"{args.out}: {plan.method} of {len(plan.models)} models, {dtypes}, "
        f"in {seconds:.1f} s"
    )
    return None


def _plan(args):
    from jaxlab.merge.files.recipe import recipe

    first = pathlib.Path(args.models[0])
    for recipe_file in map(pathlib.Path, args.models[1:] and args.models):
        if recipe_file.is_file() and recipe_file.suffix in _RECIPES[:2]:
            raise errors.UserError(
                f"{recipe_file} is a recipe, which names its models: give it alone"
            )
    if len(args.models) > 1:
        weights = {"weights": args.weights} if args.weights else {}
        return recipe.from_arguments(
            args.models, "linear", dtype=args.dtype, parameters=weights
        )
    if first.is_dir() or first.suffix not in _RECIPES:
        raise errors.UserError("give two or more models to merge, or a recipe (.yaml)")
    if args.weights:
        raise errors.UserError("--weights is for models; a recipe has its own")
    return recipe.read(first, dtype=args.dtype)


# Both are asked only where two configs differ: the models import jax.
def _free_keys():
    from jaxlab import models

    # Of these two the shapes of the tensors tell.
    return (*models.TransformerConfig.UNTIED, "vocab", "kv_heads")


def _spell_out(config):
    from jaxlab.models.hf import defaults

    return defaults.spell_out(config)


def _is_folder_to_run(plan, written) -> bool:
    first = pathlib.Path(plan.models[0])
    return written == "orbax" and not (first / "_CHECKPOINT_METADATA").exists()
