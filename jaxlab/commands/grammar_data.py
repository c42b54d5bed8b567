"""The arguments of `jaxlab data`; standard library only, as `commands/grammar.py`."""

import argparse

from jaxlab.commands import arguments

SUMMARY = "Prepare text, or look up what a step read"
DETAILS = """\
prepare makes one token file a domain, and a tokenizer if need be; tokenize makes many
shards of a corpus of any size, by several processes or on a cluster. Training reads
either: --config.data.source= --config.data.folder=OUT. For example:

  jaxlab data prepare my_text data/mine --vocab-size=8192
  jaxlab data tokenize dolma data/dolma --tokenizer=olmo/tokenizer.json --workers=16"""

_TOKENIZE = """\
SOURCE is a folder (a subfolder or NAME.jsonl[.gz|.zst] a domain) or one file. Killed
anywhere, the same command continues. Every engine writes the same bytes; manifest.json
says what they are. SOURCE and OUT may be on gs:// (to train, copy OUT to a disk).
What follows `--` is for Beam, whose workers must be able to import jaxlab:

  jaxlab data tokenize gs://my/dolma gs://my/tokens --tokenizer=olmo \\
      --runner=DataflowRunner -- --project=my --region=us-central1 \\
      --temp_location=gs://my/tmp --sdk_container_image=IMAGE"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = arguments.parser_of(
        actions, "prepare", "Text to token files and held-out sets"
    )
    prepare.add_argument(
        "source", help="a folder (a subfolder or NAME.jsonl a domain), or embedded"
    )
    prepare.add_argument("out", metavar="OUT", help="folder of the token files")
    tokenizer = prepare.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="PATH", default="")
    tokenizer.add_argument(
        "--vocab-size", type=int, metavar="N", help="of a tokenizer trained on the text"
    )
    prepare.add_argument(
        "--held-out", type=float, default=0.05, metavar="F", help="share of documents"
    )
    _tokenize(
        arguments.parser_of(
            actions, "tokenize", "A large corpus to shards of tokens", _TOKENIZE
        )
    )
    verify = arguments.parser_of(
        actions, "verify", "Compare shards with the checksums of their manifest"
    )
    verify.add_argument("out", metavar="OUT", help="of `jaxlab data tokenize`")
    inspect = arguments.parser_of(
        actions, "inspect", "Which documents a training step read"
    )
    inspect.add_argument("--workdir", required=True, metavar="RUN")
    inspect.add_argument("--step", type=int, required=True, metavar="N", help="from 0")
    inspect.add_argument("--text", action="store_true", help="show the beginnings")


def _tokenize(parser: argparse.ArgumentParser) -> None:
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
