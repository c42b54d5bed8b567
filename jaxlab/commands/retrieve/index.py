"""`jaxlab retrieve index`: the vectors of a corpus, on disk."""

import argparse
from typing import TYPE_CHECKING

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands.retrieve import inputs

if TYPE_CHECKING:
    from jaxlab import models

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
    inputs.add_prefix(parser, "query", "what the encoder's folder says")
    inputs.add_prefix(parser, "document", "what the encoder's folder says")
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Makes the index, or adds to it."""
    from jaxlab.commands import devices
    from jaxlab.core import progress
    from jaxlab.systems.refit import corpus_index

    watch = progress.Clock()
    with devices.using(args.mesh) as mesh:
        prefixes = {
            "query_prefix": args.query_prefix, "document_prefix": args.document_prefix,
        }  # fmt: skip
        if args.append:
            of_texts = corpus_index.of_texts(args.index, **prefixes)
        else:
            of_texts = {name: x for name, x in prefixes.items() if x is not None}
        encoder = corpus_index.open_encoder(
            args.encoder, length=args.length, mesh=mesh, of_texts=of_texts
        )
        watch.say(_describe(args.encoder, encoder.config))
        with watch.announce("encoding"):
            built = corpus_index.build(
                args.index, args.corpus, encoder, dtype=args.dtype, append=args.append,
                progress=watch.meter("documents"),
            )  # fmt: skip
    size = f"{args.index}: {len(built.index)} documents of {built.index.dim} numbers"
    if not built.encoded:
        watch.say(f"{size}; up to date, nothing was encoded")
        return
    watch.say(
        f"{size}; {built.truncated} of those encoded now were cut at {encoder.length} "
        "tokens"
    )


def _describe(path: str, config: "models.BertConfig") -> str:
    """What is done to texts, in a line."""
    if not (config.query_prefix or config.document_prefix):
        text = (
            "no prompts; a model that was trained with some (E5, BGE) wants "
            "--query-prefix and --document-prefix"
        )
    else:
        text = (
            f"queries begin with {config.query_prefix!r}, documents with "
            f"{config.document_prefix!r}"
        )
    lower = ", all in lower case" if config.lower_case else ""
    kind = "cosine" if config.normalize else "inner product"
    return f"{path}: {text}{lower}; compared by {kind}"
