"""`jaxlab data`: prepare, tokenize, verify, inspect."""

import argparse
import pathlib
import time

from jaxlab import load
from jaxlab.commands import output
from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.batches import inspect
from jaxlab.data.shards import beam
from jaxlab.data.shards import run as run_lib
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems.olmo import pretraining


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    actions = {
        "prepare": _prepare,
        "tokenize": _tokenize,
        "verify": _verify,
        "inspect": _inspect,
    }
    actions[args.action](args)


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


def _tokenize(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise errors.UserError(f"--workers {args.workers} is too few; use 1 or more")
    engine = run_lib.in_process
    if args.runner:
        engine = beam.engine(args.runner, getattr(args, "runner_options", ()))
    elif args.workers > 1:
        engine = run_lib.in_processes(args.workers)
    tokenizer = tokenizer_lib.load(args.tokenizer)
    started = time.monotonic()
    manifest = run_lib.tokenize(
        args.source,
        args.out,
        tokenizer,
        held_out_fraction=args.held_out,
        engine=engine,
    )
    seconds = time.monotonic() - started
    rows, nothing = [], {"documents": 0, "tokens": 0}
    for name, sides in manifest["domains"].items():
        shards = sum(record["domain"] == name for record in manifest["shards"])
        both = sides["train"], sides.get("held_out", nothing)
        counts = [side[key] for key in ("documents", "tokens") for side in both]
        rows.append([name, *(f"{n:,}" for n in (shards, *counts))])
    header = ["domain", "shards", "documents", "held out", "tokens", "held out"]
    output.table(header, rows)
    size = sum(s["bytes"] for d in manifest["domains"].values() for s in d.values())
    print(f"{args.out}: {size / 1e6:,.1f} MB of text, {seconds:.1f} s in this run")


def _verify(args: argparse.Namespace) -> None:
    print(f"{args.out}: {run_lib.verify(args.out):,} files are as the manifest says")


def _inspect(args: argparse.Namespace) -> None:
    if not load.is_run(args.workdir):
        raise errors.UserError(f"{args.workdir} is no run directory; it read no data")
    config = load.run_config(args.workdir)
    if "files" not in config.data:
        raise errors.UserError(
            f"{args.workdir} is a run of {config.system}; only those of olmo.pretrain "
            "are inspected"
        )
    corpus = pretraining.open_corpus(config.data, pathlib.Path(args.workdir))
    batches = pretraining.batches_of(config.data, corpus.train)
    recorded = config.to_dict().get("data_order")
    if recorded is not None and recorded != batches.fingerprint:
        raise errors.UserError(
            f"the data is not what {args.workdir} was trained on (other files or "
            "sizes); restore it"
        )
    inspect.print_order(batches, args.step, corpus.tokenizer if args.text else None)
