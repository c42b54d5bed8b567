"""`jaxlab data`: prepare, tokenize, mix, verify, inspect."""

import argparse
import time
from collections.abc import Sequence

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors, runs

SUMMARY = "Prepare text, or look up what a step read"
DETAILS = """\
prepare makes one token file per domain, and a tokenizer if need be; tokenize makes many
shards of a corpus of any size, by several processes or on a cluster. Training reads
either: --config.data.source= --config.data.folder=OUT. NAME.val.jsonl (or .valid,
.validation, .dev) beside NAME.train.jsonl, NAME.jsonl or a folder NAME is what is held
out of NAME, where anything is; so is NAME/val.jsonl beside NAME/train.jsonl alone.
For example:

  jaxlab data prepare my_text data/mine --vocab-size=8192
  jaxlab data tokenize dolma data/dolma --tokenizer=olmo/tokenizer.json --workers=16"""

_TOKENIZE = """\
SOURCE is a folder (a subfolder or NAME.jsonl[.gz|.zst] per domain) or one file. Killed
anywhere, the same command continues. Every engine writes the same bytes; manifest.json
says what they are. --held-out=F holds out the documents that prepare would hold out.
SOURCE and OUT may be on gs:// (to train, copy OUT to a disk).
What follows `--` is for Beam, whose workers must be able to import jaxlab:

  jaxlab data tokenize gs://my/dolma gs://my/tokens --tokenizer=olmo \\
      --runner=DataflowRunner -- --project=my --region=us-central1 \\
      --temp_location=gs://my/tmp --sdk_container_image=IMAGE"""


_MIX = """\
RECIPE.yaml names sources with reader, count and seed, and what is dropped: words,
duplicates, questions of evaluation files. configs/mixes has TULU 1's and TULU 2's;
jaxlab/data/mixes says all keys. OUT/mix.jsonl is what --config.data.source takes:

  jaxlab data mix tulu_v2.yaml -o mixes/tulu_v2
  jaxlab train --config=tulu:sft_7b --config.data.source=mixes/tulu_v2/mix.jsonl ..."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = arguments_lib.add_action(
        actions, "prepare", "Text to token files and held-out sets"
    )
    prepare.add_argument(
        "source", help="a folder (a subfolder or NAME.jsonl per domain), or embedded"
    )
    prepare.add_argument("out", metavar="OUT", help="folder of the token files")
    tokenizer = prepare.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="PATH", default="")
    tokenizer.add_argument(
        "--vocab-size", type=int, metavar="N", help="of a tokenizer trained on the text"
    )
    prepare.add_argument(
        "--held-out", type=float, default=0.05, metavar="F",
        help="share of documents, where NAME has no file of held-out text; 0: none",
    )  # fmt: skip
    _add_tokenize(
        arguments_lib.add_action(
            actions, "tokenize", "A large corpus to shards of tokens", _TOKENIZE
        )
    )
    mix = arguments_lib.add_action(
        actions, "mix", "Instruction data from a recipe to one mixture", _MIX
    )
    mix.add_argument("recipe", metavar="RECIPE.yaml")
    mix.add_argument("-o", "--out", required=True, metavar="OUT", help="a new folder")
    verify = arguments_lib.add_action(
        actions, "verify", "Compare shards with the checksums of their manifest"
    )
    verify.add_argument("out", metavar="OUT", help="of `jaxlab data tokenize`")
    inspect = arguments_lib.add_action(
        actions, "inspect", "What a training step read, and of answers, what is learnt"
    )
    inspect.add_argument("--workdir", required=True, metavar="RUN")
    inspect.add_argument("--step", type=int, required=True, metavar="N", help="from 0")
    inspect.add_argument(
        "--text", action="store_true", help="show texts; of a tuned run, whole ones"
    )


def _add_tokenize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", metavar="OUT", help="a new folder, or one to continue")
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH",
        help="tokenizer.json, .model, or a folder",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", type=float, default=0.0, metavar="F",
        help="share of documents kept out of training; default: none",
    )  # fmt: skip
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes here; default: 1"
    )
    engine.add_argument(
        "--runner", metavar="R",
        help="of Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner",
    )  # fmt: skip


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Leaves what follows `--` to Beam, in `args.runner_options`."""
    if "--" not in argv:
        return parser.parse_args(argv)
    cut = list(argv).index("--")
    args = parser.parse_args(argv[:cut])
    args.runner_options = list(argv[cut + 1 :])
    if not getattr(args, "runner", None):
        raise arguments_lib.UsageError(
            "jaxlab data: what follows -- is for a --runner; add one"
        )
    return args


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    actions = {
        "prepare": _prepare,
        "tokenize": _tokenize,
        "mix": _mix,
        "verify": _verify,
        "inspect": _inspect,
    }
    actions[args.action](args)


def _mix(args: argparse.Namespace) -> None:
    from jaxlab.core import progress
    from jaxlab.data import mixes

    rows = mixes.mix(args.recipe, args.out, say=progress.line)
    header = ["source", "read", "drawn", "words", "duplicate", "evaluation"]
    output.table([*header, "kept", "tokens", "share"], mixes.describe(rows))
    output.line(f"{args.out}/{mixes.FILE}; {mixes.REPORT} beside it says how")


def _prepare(args: argparse.Namespace) -> None:
    from jaxlab.data import prepared

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
    output.line(
        f"{args.out}: tokenizer of {made.tokenizer.vocab_size} tokens, sha256 "
        f"{made.tokenizer.fingerprint}"
    )


def _tokenize(args: argparse.Namespace) -> None:
    from jaxlab.data.shards import beam
    from jaxlab.data.shards import run as run_lib
    from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

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
        shards = sum(r["domain"] == name and "train" in r for r in manifest["shards"])
        both = sides["train"], sides.get("held_out", nothing)
        counts = [side[key] for key in ("documents", "tokens") for side in both]
        rows.append([name, *(f"{n:,}" for n in (shards, *counts))])
    header = ["domain", "shards", "documents", "held out", "tokens", "held out"]
    output.table(header, rows)
    size = sum(s["bytes"] for d in manifest["domains"].values() for s in d.values())
    output.line(
        f"{args.out}: {size / 1e6:,.1f} MB of text, {seconds:.1f} s in this run"
    )


def _verify(args: argparse.Namespace) -> None:
    from jaxlab.data.shards import run as run_lib

    output.line(
        f"{args.out}: {run_lib.verify(args.out):,} files are as the manifest says"
    )


_READ = (  # keys of a run's `data` that say what a step read
    "source", "folder", "files", "tokenizer", "weights", "length", "batch_size",
    "layout", "document_mask", "seed",
)  # fmt: skip


def _inspect(args: argparse.Namespace) -> None:
    trained = runs.find(args.workdir)
    if trained is None:
        raise errors.UserError(f"{args.workdir} is no run directory; it read no data")
    kinds = {
        "olmo.pretrain": _inspect_documents,
        **dict.fromkeys(
            ("tulu.sft", "tulu.dpo", "tulu.kto", "tulu.reward"), _inspect_conversations
        ),
    }
    if trained.system not in kinds:
        raise errors.UserError(
            f"{args.workdir} is a run of {trained.system}; only those of "
            f"{', '.join(kinds)} are inspected"
        )
    steps = trained.config.get("steps")
    if args.step < 0 or (isinstance(steps, int) and args.step >= steps > 0):
        raise errors.UserError(
            f"{args.workdir} is a run of {steps} steps; use --step 0 to {steps - 1}"
        )
    kinds[trained.system](args, trained)


def _refuse_other_data(args, trained, fingerprint) -> None:
    recorded = trained.config.get("data_order")
    if recorded is not None and recorded != fingerprint:
        raise errors.UserError(
            f"the data is not what {args.workdir} was trained on (other files or "
            "sizes); restore it"
        )


def _inspect_conversations(args: argparse.Namespace, trained: runs.Run) -> None:
    from jaxlab.data.examples import inspect
    from jaxlab.systems.tulu import reading

    read, tokenizer = reading.of_run(args.workdir, trained)
    rows = read.parts[0]
    _refuse_other_data(args, trained, rows.fingerprint)
    names = read.names
    inspect.print_step(rows, args.step, names, tokenizer, is_whole=args.text)


def _inspect_documents(args: argparse.Namespace, trained: runs.Run) -> None:
    import ml_collections

    from jaxlab.data.batches import inspect
    from jaxlab.systems import corpora

    # Domains are keys of data.weights, and their names may have dots.
    section = trained.section("data", _READ)
    data = ml_collections.ConfigDict(section, allow_dotted_keys=True)
    corpus = corpora.open_corpus(data, trained.folder)
    batches = corpora.make_loader(data, corpus.train)
    _refuse_other_data(args, trained, batches.fingerprint)
    inspect.print_order(batches, args.step, corpus.tokenizer if args.text else None)
