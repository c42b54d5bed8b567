"""`jaxlab convert`: a run or a Hugging Face folder to a Hugging Face folder."""

import argparse

from jaxlab import load
from jaxlab.commands import devices
from jaxlab.core import folders, tree


def run(args: argparse.Namespace) -> None:
    """Writes the model with its tokenizer."""
    out = folders.refuse_existing(args.out)
    with devices.using(args.mesh) as mesh:
        model = load.open_model(
            args.model, step=args.step, tokenizer=args.tokenizer, mesh=mesh
        )
        load.save(out, model, model.params, args.model, dtype=args.dtype)
    print(f"{out}: {tree.count(model.params):,} parameters, {args.dtype}")
