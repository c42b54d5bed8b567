"""`jaxlab retrieve index|search|refit|evaluate`: a corpus, queries and a reranker."""

import argparse

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands.retrieve import evaluate, index, refit, search

SUMMARY = "Search a corpus of texts, and learn from a reranker while answering"
DETAILS = """\
A bi-encoder makes an index of a corpus; a cross-encoder reranks what is found, and its
scores change the query before a second search (ReFIT: Reddy et al. 2023,
arXiv:2305.11744). --first-stage bm25 finds the first documents by their words instead:
a search then needs no encoder, and refit's second search is still the encoder's. Texts
are BEIR's: {"_id", "title", "text"} per line. For example:

  jaxlab retrieve index runs/index --corpus corpus.jsonl --encoder MODEL
  jaxlab retrieve search runs/index --query "what is a black hole" --k 5
  jaxlab retrieve search --first-stage bm25 --corpus corpus.jsonl \\
      --queries queries.jsonl --run bm25.trec
  jaxlab retrieve refit runs/out --index runs/index --queries queries.jsonl \\
      --qrels qrels/test.tsv --reranker CROSS_ENCODER
  jaxlab retrieve evaluate --qrels qrels/test.tsv a.trec b.trec"""

ACTIONS = {"index": index, "search": search, "refit": refit, "evaluate": evaluate}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    arguments_lib.add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    ACTIONS[args.action].run(args)
