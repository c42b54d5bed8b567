"""`jaxlab merge`: the weighted average of models, as a Hugging Face folder."""

import argparse

from jaxlab import merge
from jaxlab.commands import devices, output
from jaxlab.core import types
from jaxlab.systems import loading


def run(args: argparse.Namespace) -> None:
    """Opens the models, averages them and writes the result with its tokenizer."""
    out = output.new_folder(args.out)
    if len(args.models) < 2:
        raise types.UserError("give two or more models to merge")
    if args.weights is not None and len(args.weights) != len(args.models):
        raise types.UserError(
            f"{len(args.weights)} weights for {len(args.models)} models; give one each"
        )
    with devices.using(args.mesh) as mesh:
        opened = loading.open_alike(args.models, mesh=mesh)
        try:
            merged = merge.average([model.params for model in opened], args.weights)
        except ValueError as error:  # such as weights that sum to 0
            raise types.UserError(str(error)) from None
        loading.save(out, opened[0], merged, args.models[0], dtype=args.dtype)
    print(f"{out}: the average of {len(opened)} models, {args.dtype}")
