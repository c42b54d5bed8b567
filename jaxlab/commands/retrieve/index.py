"""`jaxlab retrieve index`: the vectors of a corpus, on disk."""

import argparse

from jaxlab.commands import arguments as arguments_lib

SUMMARY = "Encode a corpus"
DETAILS = ""

_ENCODER = (
    "a Hugging Face or sentence-transformers folder (BERT, RoBERTa, XLM-R), or a run "
    "of configs/refit.py"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the index, its corpus and its encoder."""
    parser.add_argument("index", metavar="INDEX", help="a folder")
    parser.add_argument("--corpus", required=True, metavar="FILE", help=".jsonl[.gz]")
    parser.add_argument("--encoder", required=True, metavar="MODEL", help=_ENCODER)
    parser.add_argument(
        "--length", type=int, metavar="TOKENS", help="per row; default: the encoder's"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--append", action="store_true", help="add the documents that it lacks"
    )
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Makes the index, or adds to it."""
    from jaxlab.commands import devices
    from jaxlab.core import progress
    from jaxlab.systems.refit import corpus_index

    watch = progress.Clock()
    with devices.using(args.mesh) as mesh:
        encoder = corpus_index.open_encoder(args.encoder, length=args.length, mesh=mesh)
        index, truncated = corpus_index.build(
            args.index, args.corpus, encoder, dtype=args.dtype, append=args.append,
            progress=watch.meter("documents"),
        )  # fmt: skip
    watch.say(
        f"{args.index}: {len(index)} documents of {index.dim} numbers; {truncated} of "
        f"those encoded now were cut at {encoder.length} tokens"
    )
