"""The arguments of `jaxlab retrieve`; standard library only."""

import argparse

from jaxlab.commands import arguments

SUMMARY = "Search a corpus of texts, and learn from a reranker while answering"
DETAILS = """\
A bi-encoder makes an index of a corpus; a cross-encoder reranks what is found, and its
scores change the query before a second search (ReFIT: Reddy et al. 2023,
arXiv:2305.11744). Texts are BEIR's: {"_id", "title", "text"} a line. For example:

  jaxlab retrieve index runs/index --corpus corpus.jsonl --encoder MODEL
  jaxlab retrieve search runs/index --query "what is a black hole" --k 5
  jaxlab retrieve refit runs/out --index runs/index --queries queries.jsonl \\
      --qrels qrels/test.tsv --reranker CROSS_ENCODER
  jaxlab retrieve evaluate --qrels qrels/test.tsv a.trec b.trec"""

_ENCODER = (
    "a Hugging Face or sentence-transformers folder (BERT, RoBERTa, XLM-R), or a run "
    "of configs/refit.py"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the four actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _index(arguments.parser_of(actions, "index", "Encode a corpus"))
    _search(arguments.parser_of(actions, "search", "Find the nearest documents"))
    _refit(
        arguments.parser_of(
            actions, "refit", "Answer with feedback from a reranker, and compare"
        )
    )
    _evaluate(arguments.parser_of(actions, "evaluate", "Measure runs"))


def _index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="a folder")
    parser.add_argument("--corpus", required=True, metavar="FILE", help=".jsonl[.gz]")
    parser.add_argument("--encoder", required=True, metavar="MODEL", help=_ENCODER)
    parser.add_argument(
        "--length", type=int, metavar="TOKENS", help="of a row; default: the encoder's"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--append", action="store_true", help="add the documents that it lacks"
    )
    arguments.add_mesh(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX")
    _add_queries(parser)
    parser.add_argument("--query", action="append", default=[], metavar="TEXT")
    parser.add_argument("--k", type=int, default=100, metavar="N")
    parser.add_argument("--run", metavar="OUT", help="write a TREC run there")
    _add_moved(parser)


def _refit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="gets runs and report")
    parser.add_argument("--index", required=True, metavar="INDEX")
    _add_queries(parser, required=True)
    parser.add_argument(
        "--reranker", required=True, metavar="MODEL", help="a cross-encoder; see above"
    )
    _add_qrels(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many queries, drawn by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=100, metavar="N", help="of feedback")
    parser.add_argument("--depth", type=int, default=100, metavar="N", help="of runs")
    parser.add_argument("--updates", type=int, default=100, metavar="N")
    parser.add_argument(
        "--rate", type=float, default=0.02, help="relative to the query's coordinates"
    )
    parser.add_argument(
        "--max-drift", type=float, metavar="X", help="bound on 1 - cos with the start"
    )
    parser.add_argument(
        "--rows", type=arguments.names, default=(), metavar="A,B",
        help="of the comparison, e.g. refit,rerank; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--length", type=int, default=128, metavar="TOKENS", help="of a pair"
    )
    parser.add_argument(
        "--prior",
        type=float,
        metavar="X",
        help="of the retriever's score in the reranker's; default: its config's",
    )
    _add_moved(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="TREC runs")
    _add_qrels(parser, required=True)
    parser.add_argument(
        "--metrics", type=arguments.names, metavar="A,B",
        default=("ndcg@10", "recall@100", "mrr@10", "map@100"),
        help="recall@k, ndcg@k, mrr@k, map@k",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write values by query there")


def _add_queries(parser, required=False) -> None:
    parser.add_argument(
        "--queries", required=required, metavar="FILE", help=".jsonl[.gz]"
    )


def _add_qrels(parser, required=False) -> None:
    parser.add_argument(
        "--qrels", required=required, metavar="FILE", help="judgments, BEIR's or TREC's"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of judgments with a column of that name"
    )


def _add_moved(parser) -> None:
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="FILE", help="if it was moved"
    )
    parser.add_argument(
        "--encoder", default="", metavar="MODEL", help="if it was moved"
    )
    arguments.add_mesh(parser)
