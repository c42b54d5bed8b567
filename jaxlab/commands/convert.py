"""`jaxlab convert`: a run, a folder or a GGUF file to a Hugging Face folder."""

import argparse
from collections.abc import Mapping

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors

SUMMARY = "Write a model as a Hugging Face folder, with its tokenizer"
DETAILS = (
    "From a run directory, a GGUF file (needs '.[gguf]'), or from another Hugging Face "
    "folder to change dtype."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the folder to write, and the dtype."""
    arguments_lib.add_model(parser)
    parser.add_argument("out", metavar="OUT", help="a new Hugging Face folder")
    arguments_lib.add_dtype(parser)
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapter that a run tuned alone, as a folder of peft",
    )
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the model with its tokenizer, or its adapter."""
    if args.adapter:
        return export_adapter(args.model, args.out, step=args.step)
    return export(
        args.model,
        args.out,
        step=args.step,
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        mesh=args.mesh,
        average=args.average,
    )


def export_adapter(model: str, out: str, *, step: int | None = None) -> None:
    """Writes the adapter of a run as a new folder of peft, and says how large it is."""
    from jaxlab import load
    from jaxlab.core import errors, folders, tree

    folder = folders.refuse_existing(out)
    if (found := load.save_adapter(folder, model, step=step)) is None:
        raise errors.UserError(f"{model} has no adapter; leave out --adapter")
    count = tree.count(found.params)
    output.line(f"{folder}: {count:,} parameters, rank {found.lora.rank}")


def export(
    model: str,
    out: str,
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    mesh: Mapping[str, int] | None = None,
    average: bool = False,
) -> None:
    """Writes a model as a new Hugging Face folder, and says how large it is.

    Args:
        model: a run directory, a Hugging Face folder or a GGUF file.
        out: the new folder.
        step: which checkpoint of a run; None for the newest good one.
        tokenizer: instead of the model's own; None for that.
        dtype: of the weights on disk.
        mesh: sizes by axis, to share the model among devices.
        average: the moving average of a run's parameters, which `optim.ema` keeps.
    """
    from jaxlab import load
    from jaxlab.commands import devices
    from jaxlab.core import folders, tree

    folder = folders.refuse_existing(out)
    with devices.using(mesh) as used:
        if load.is_reward(model):
            if average or tokenizer:
                flag = "--average" if average else "--tokenizer"
                raise errors.UserError(f"{model} is a reward model; leave out {flag}")
            loaded = load.scorer(model, step=step, mesh=used)
        else:
            loaded = load.decoder(
                model, step=step, tokenizer=tokenizer, mesh=used, average=average
            )
        load.save(folder, loaded, model, dtype=dtype, tokenizer=tokenizer)
    output.line(f"{folder}: {tree.count(loaded.params):,} parameters, {dtype}")
