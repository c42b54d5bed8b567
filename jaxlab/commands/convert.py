"""`jaxlab convert`: a run or a Hugging Face folder to a Hugging Face folder."""

import argparse

from jaxlab.commands import arguments as arguments_lib

SUMMARY = "Write a model as a Hugging Face folder, with its tokenizer"
DETAILS = "From a run directory, or from another Hugging Face folder to change dtype."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the folder to write, and the dtype."""
    arguments_lib.add_model(parser)
    parser.add_argument("out", metavar="OUT", help="a new Hugging Face folder")
    arguments_lib.add_dtype(parser)
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the model with its tokenizer."""
    from jaxlab import load
    from jaxlab.commands import devices
    from jaxlab.core import folders, tree

    out = folders.refuse_existing(args.out)
    with devices.using(args.mesh) as mesh:
        model = load.decoder(
            args.model, step=args.step, tokenizer=args.tokenizer, mesh=mesh
        )
        load.save(out, model, args.model, dtype=args.dtype)
    print(f"{out}: {tree.count(model.params):,} parameters, {args.dtype}")
