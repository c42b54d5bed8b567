"""The arguments of `jaxlab tram`; standard library only, as `commands/grammar.py`."""

import argparse

from jaxlab.commands import arguments, grammar_ablate

SUMMARY = "Compare optimizers by what a model does where it was not trained"
DETAILS = """\
SGD, Adam, SAM, ASAM, Fisher-SAM, TRPO, R3F, MESA and TRAM fine-tune one model on one
domain; each is tuned on the same small grid by the source's held-out text, then run
with several seeds and looked at on all other domains (Sherborne et al. 2023,
arXiv:2310.03646). WORKDIR/report.html and report.json have the tables. For example:

  jaxlab tram domains runs/tram --data embedded --source legal --size quick
  jaxlab tram domains runs/tram --data TEXT --source law --model runs/base
  jaxlab tram languages runs/tram --data SIB200 --model runs/base"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the two protocols."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="PROTOCOL")
    domains = arguments.parser_of(
        actions, "domains", "Perplexity on domains that were not fine-tuned on"
    )
    _shared(domains, "text, a subfolder or NAME.jsonl a domain, or embedded")
    domains.add_argument("--source", required=True, metavar="DOMAIN")
    domains.add_argument(
        "--model", default="", metavar="RUN", help="to start from; default: train one"
    )
    domains.add_argument(
        "--size", choices=grammar_ablate.SIZES, default="small", help="of that model"
    )
    domains.add_argument(
        "--pretrain", type=arguments.names, default=(), metavar="A,B",
        help="domains of that model; default: all but the source",
    )  # fmt: skip
    languages = arguments.parser_of(
        actions, "languages", "Accuracy in languages that were not fine-tuned on"
    )
    _shared(languages, "LANG.SPLIT.tsv as SIB-200's, or SPLIT.LANG.tsv as PAWS-X's")
    languages.add_argument("--source", default="", metavar="LANG", help="e.g. eng_Latn")
    languages.add_argument(
        "--model", required=True, metavar="RUN", help="to start from"
    )
    languages.add_argument("--length", type=int, metavar="TOKENS", help="of a row: 128")


def _shared(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--data", required=True, metavar="DIR", help=data)
    parser.add_argument(
        "--targets", type=arguments.names, default=(), metavar="A,B",
        help="that are looked at; default: all but the source",
    )  # fmt: skip
    parser.add_argument(
        "--optimizers", type=arguments.names, default=(), metavar="A,B",
        help="rows of configs/tram.py; default: all but sgd and r4f",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=6, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="updates of a run")
    parser.add_argument("--rate", type=float, help="about which the grid lies")
    parser.add_argument(
        "--rates", type=_numbers, metavar="X,Y",
        help="the grid, multiples of --rate; default: 0.5,1,2",
    )  # fmt: skip
    parser.add_argument(
        "--no-tuning", action="store_true", help="every paper's value at --rate"
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.5,1") from None
