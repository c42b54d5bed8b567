"""`jaxlab data prepare` and `jaxlab data inspect`."""

import argparse
import pathlib

from jaxlab.commands import output
from jaxlab.core import types
from jaxlab.data import inspect, prepared
from jaxlab.systems import loading, olmo


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    {"prepare": _prepare, "inspect": _inspect}[args.action](args)


def _prepare(args: argparse.Namespace) -> None:
    options = {} if args.vocab_size is None else {"vocab_size": args.vocab_size}
    made = prepared.prepare(
        args.source,
        args.out,
        tokenizer=args.tokenizer,
        held_out_fraction=args.held_out,
        **options,
    )
    rows = []
    for name, file in made.train.items():
        held_out = made.held_out.get(name)
        documents = [f.info["documents"] if f else 0 for f in (file, held_out)]
        tokens = [file.size, held_out.size if held_out else 0]
        rows.append([name, *(f"{n:,}" for n in (*documents, *tokens))])
    output.table(["domain", "documents", "held out", "tokens", "held out"], rows)
    print(
        f"{args.out}: tokenizer of {made.tokenizer.vocab_size} tokens, sha256 "
        f"{made.tokenizer.fingerprint}"
    )


def _inspect(args: argparse.Namespace) -> None:
    if not loading.is_run(args.workdir):
        raise types.UserError(f"{args.workdir} is no run directory; it read no data")
    config = loading.run_config(args.workdir)
    corpus = olmo.open_corpus(config.data, pathlib.Path(args.workdir))
    batches = olmo.batches_of(config.data, corpus.train)
    recorded = config.to_dict().get("data_order")
    if recorded is not None and recorded != batches.fingerprint:
        raise types.UserError(
            f"the data is not what {args.workdir} was trained on (other files or "
            "sizes); restore it"
        )
    inspect.print_order(batches, args.step, corpus.tokenizer if args.text else None)
