"""What several actions of `jaxlab retrieve` take: queries, judgments, an index."""

import argparse
from typing import TYPE_CHECKING

from jaxlab.commands import arguments as arguments_lib
from jaxlab.core import errors

if TYPE_CHECKING:
    from jaxlab.systems.refit import corpus_index


def add_first_stage(parser: argparse.ArgumentParser) -> None:
    """Adds --first-stage."""
    parser.add_argument(
        "--first-stage",
        choices=("encoder", "bm25"),
        default="encoder",
        help="what finds the first documents: the index's encoder (default), or BM25, "
        "by their words (needs bm25s)",
    )


def add_queries(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds --queries."""
    parser.add_argument(
        "--queries", required=required, metavar="FILE", help=".jsonl[.gz]"
    )


def add_qrels(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds --qrels and --split."""
    parser.add_argument(
        "--qrels", required=required, metavar="FILE", help="judgments, BEIR's or TREC's"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of judgments with a column of that name"
    )
    parser.add_argument(
        "--duplicates",
        choices=("max", "first", "last"),
        help="which of two unlike judgments of one pair counts; default: refuse them",
    )


def read_judgments(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Those of --qrels, as --split and --duplicates say."""
    from jaxlab.retrieval import formats

    return formats.read_qrels(
        args.qrels, split=args.split, has_split=True, duplicates=args.duplicates
    )


def add_keep_identical(parser: argparse.ArgumentParser, but: str = "") -> None:
    """Adds --keep-identical."""
    parser.add_argument(
        "--keep-identical",
        action="store_true",
        help="keep a document that has its query's id; default: it is left out as "
        f"BEIR does{but}",
    )


def add_prefix(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """Adds --query-prefix or --document-prefix."""
    parser.add_argument(
        f"--{what}-prefix", metavar="TEXT",
        help=f'put before each {what}, e.g. "{what}: "; default: {default}',
    )  # fmt: skip


def add_moved(parser: argparse.ArgumentParser) -> None:
    """Adds --corpus and --encoder, of an index whose files were moved, and --mesh."""
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="FILE", help="if it was moved"
    )
    parser.add_argument(
        "--encoder", default="", metavar="MODEL", help="if it was moved"
    )
    add_prefix(parser, "query", "the index's")
    arguments_lib.add_mesh(parser)


def read_queries(args: argparse.Namespace) -> dict[str, str]:
    """Id -> text, of --queries and of each --query.

    Raises:
        UserError: there are none.
    """
    from jaxlab.data import lines
    from jaxlab.retrieval import formats

    queries = formats.read_queries(args.queries) if args.queries else {}
    for number, text in enumerate(getattr(args, "query", [])):
        if not lines.require_utf8(text, f"--query {number + 1}").strip():
            raise errors.UserError("--query is empty; ask for something")
        queries[f"query-{number}"] = text
    if not queries:
        raise errors.UserError("no queries; give --queries FILE or --query TEXT")
    return queries


def open_index(args: argparse.Namespace, mesh) -> "corpus_index.OpenIndex":
    """The index with its encoder and its corpus."""
    from jaxlab.systems.refit import corpus_index

    return corpus_index.open_index(
        args.index,
        encoder=args.encoder,
        corpora=args.corpus,
        mesh=mesh,
        query_prefix=args.query_prefix,
    )
