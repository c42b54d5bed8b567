"""Files of retrieval experiments: BEIR folders in, TREC runs and results out and in.

    corpus.jsonl[.gz]      {"_id": "d1", "title": "...", "text": "..."} a line
    queries.jsonl[.gz]     {"_id": "q1", "text": "..."}
    qrels/test.tsv         query-id, corpus-id, score, with that header; TAB between
    run                    q1 Q0 d1 1 0.5 tag              trec_eval's six columns
    results                query-id, metric, metric ...    one line per query, header

BEIR: Thakur et al. 2021 (arXiv:2104.08663). Judgments are also found as qrels.test.tsv
or qrels.tsv, may have a column `split` and no header, and may be TREC's four columns
(query, anything, document, judgment). Whatever does not fit its format is an error that
names file and line.
"""

import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxlab.core import errors, folders
from jaxlab.data import lines as lines_lib
from jaxlab.retrieval import metrics

# Of two judgments of one pair, in the order of the file, the one that counts.
DUPLICATES = {"max": max, "first": lambda a, b: a, "last": lambda a, b: b}
_HEADER = ["query-id", "corpus-id", "score"]
Row = TypeVar("Row")


class Corpus(NamedTuple):
    """Documents in file order; `titles` are "" where there are none."""

    ids: list[str]
    titles: list[str]
    texts: list[str]

    def passages(self) -> list[str]:
        """Title and text in one, as BEIR encodes them."""
        both = zip(self.titles, self.texts, strict=True)
        return [f"{title} {text}".strip() for title, text in both]


class Beir(NamedTuple):
    """One retrieval set.

    Attributes:
        corpus: all documents.
        queries: id -> text, of the judged queries only, in file order.
        qrels: query id -> document id -> judgment.
    """

    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_beir(
    folder: str | pathlib.Path, *, split: str = "test", name: str = ""
) -> Beir:
    """Reads a BEIR folder.

    Args:
        folder: that holds the files.
        split: of the judgments.
        name: where files are called NAME.corpus.jsonl and so on, that NAME; judgments
            may then still be common to all.

    Raises:
        UserError: a file is missing or malformed, or judgments name a query or document
            that is not there.
    """
    folder = pathlib.Path(folder)
    stem = f"{name}." if name else ""
    corpus = read_corpus(
        _first_file(folder, f"{stem}corpus.jsonl", f"{stem}corpus.jsonl.gz")
    )
    queries = read_queries(
        _first_file(folder, f"{stem}queries.jsonl", f"{stem}queries.jsonl.gz")
    )
    judged = (
        f"{stem}qrels/{split}.tsv",
        f"{stem}qrels.{split}.tsv",
        f"{stem}qrels.tsv",
    )
    path = _first_file(
        folder, *judged, *([x[len(stem) :] for x in judged] if stem else [])
    )
    qrels = read_qrels(path, split=split)
    known = {*corpus.ids}
    for query, judgments in qrels.items():
        if query not in queries:
            raise errors.UserError(f"{path} judges query {query!r}, which has no text")
        if unknown := judgments.keys() - known:
            raise errors.UserError(
                f"{path} judges document {min(unknown)!r}, which is not in the corpus"
            )
    return Beir(corpus, {q: x for q, x in queries.items() if q in qrels}, qrels)


def read_corpus(path: str | pathlib.Path) -> Corpus:
    """Documents of a corpus.jsonl[.gz].

    Raises:
        UserError: no document, a line that is not one, an id twice.
    """
    corpus = Corpus([], [], [])
    for location, row in _name_lines(path, lines_lib.read_objects(path)):
        title = row.get("title") or ""
        if not isinstance(title, str):
            raise errors.UserError(f'{location}: "title" is not a string; make it one')
        lines_lib.require_utf8(title, f'{location}: "title"')
        corpus.ids.append(_identity(row, location))
        corpus.titles.append(title)
        corpus.texts.append(_string(row, "text", location))
    _refuse_repeated(path, corpus.ids)
    return corpus


def read_corpora(paths: Sequence[str | pathlib.Path]) -> Corpus:
    """Documents of several files; of an id that several have, the first one."""
    documents: dict[str, tuple[str, str]] = {}
    for path in paths:
        for each, title, text in zip(*read_corpus(path), strict=True):
            documents.setdefault(each, (title, text))
    titles, texts = zip(*documents.values(), strict=True)
    return Corpus([*documents], [*titles], [*texts])


def read_queries(path: str | pathlib.Path) -> dict[str, str]:
    """Query id -> text of a queries.jsonl[.gz]; raises as `read_corpus`."""
    rows = [
        (_identity(row, location), _string(row, "text", location))
        for location, row in _name_lines(path, lines_lib.read_objects(path))
    ]
    _refuse_repeated(path, [query for query, _ in rows])
    return dict(rows)


def read_qrels(
    path: str | pathlib.Path,
    *,
    split: str | None = None,
    has_split: bool = False,
    duplicates: str | None = None,
) -> dict[str, dict[str, int]]:
    """Query id -> document id -> judgment.

    Args:
        path: of BEIR's or TREC's judgments.
        split: where the file has a column of that name, which to keep; None keeps all.
        has_split: whether a file without such a column is refused then.
        duplicates: which of two unlike judgments of one pair counts, of DUPLICATES;
            None refuses them.

    Raises:
        UserError: a malformed line, two judgments of one document, or none that is of
            the split.
    """
    qrels: dict[str, dict[str, int]] = {}
    header, first = None, True
    for location, line in _name_lines(path, lines_lib.read(path)):
        columns = line.split("\t") if "\t" in line else line.split()
        if first and "query-id" in columns:
            header, first = columns, False
            if {*header} - {*_HEADER, "split"} or {*_HEADER} - {*header}:
                raise errors.UserError(
                    f"{location}: columns {', '.join(header)}; use {', '.join(_HEADER)}"
                )
            continue
        if split and has_split and not qrels and "split" not in (header or ()):
            raise errors.UserError(f"{path} has no column split; leave out --split")
        first = False
        row = _judgment(columns, header, location)
        if header and split and row.get("split", split) != split:
            continue
        judgments = qrels.setdefault(row["query-id"], {})
        score, document = int(row["score"]), row["corpus-id"]
        before = judgments.setdefault(document, score)
        if before == score:
            continue
        if duplicates is None:
            raise errors.UserError(
                f"{location}: {document!r} was judged {before} before; remove one, or "
                f"say which counts: --duplicates={'|'.join(DUPLICATES)}"
            )
        judgments[document] = DUPLICATES[duplicates](before, score)
    if not qrels:
        raise errors.UserError(
            f"{path} holds no judgment{f' of split {split!r}' if split else ''}"
        )
    return qrels


def write_run(
    path: str | pathlib.Path, run: metrics.Run, *, tag: str = "jaxlab"
) -> None:
    """Writes a run as trec_eval reads it, best first; scores in f32, in full.

    Raises:
        UserError: an id or tag that is empty or has white space, or a NaN score.
    """
    lines = []
    for query, scores in run.items():
        check_columns([query, tag, *scores])
        for rank, document in enumerate(metrics.ranking(scores, query), start=1):
            score = str(np.float32(scores[document]))  # the fewest digits that do
            lines.append(f"{query} Q0 {document} {rank} {score} {tag}\n")
    folders.write_text(path, "".join(lines))


def check_columns(names: Iterable[str]) -> None:
    """Refuses ids that `write_run` cannot write."""
    for name in names:
        if not name or name.split() != [name]:
            raise errors.UserError(
                f"{name!r} cannot be a column of a run; use ids without spaces"
            )


def read_run(path: str | pathlib.Path) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score of a TREC run; its ranks do not count.

    Raises:
        UserError: a malformed line, a document twice, or no line at all.
    """
    run: dict[str, dict[str, float]] = {}
    for location, line in _name_lines(path, lines_lib.read(path)):
        columns = line.split()
        if len(columns) != 6:
            raise errors.UserError(
                f"{location}: {len(columns)} columns; use query Q0 document rank score "
                "tag"
            )
        query, _, document, _, score, _ = columns
        scores = run.setdefault(query, {})
        if document in scores:
            raise errors.UserError(
                f"{location}: {document!r} comes twice for {query!r}"
            )
        scores[document] = _number(score, location)
    return run


def write_results(path: str | pathlib.Path, evaluation: metrics.Evaluation) -> None:
    """Writes one line per query, values in full; missing queries are those of value 0.

    Raises:
        UserError: the id of a query is empty, or has a tab or a line break.
    """
    for query in evaluation.queries:
        if query.splitlines() != [query] or "\t" in query:
            raise errors.UserError(
                f"query {query!r} cannot be a line of results; use ids without tabs "
                "and line breaks"
            )
    names = list(evaluation.values)
    lines = ["\t".join(["query-id", *names]) + "\n"]
    columns = [evaluation.values[name].tolist() for name in names]
    for query, *values in zip(evaluation.queries, *columns, strict=True):
        lines.append("\t".join([query, *map(repr, values)]) + "\n")
    folders.write_text(path, "".join(lines))


# ------------------------------------------------------------------ lines


def _first_file(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise errors.UserError(f"{folder} has no {' or '.join(names)}; add one")


def _name_lines(
    path: str | pathlib.Path, rows: Iterable[tuple[int, Row]]
) -> Iterator[tuple[str, Row]]:
    """(file:line, row) of numbered rows; an error where there is none."""
    is_blank = True
    for number, row in rows:
        is_blank = False
        yield f"{path}:{number}", row
    if is_blank:
        raise errors.UserError(f"{path} holds no line; add some")


def _identity(row, location) -> str:
    value = row.get("_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not (isinstance(value, str) and value):
        raise errors.UserError(
            f'{location} has no "_id" (fields: {", ".join(map(str, row))}); give every '
            "line its own"
        )
    if any(character < " " for character in value):
        raise errors.UserError(
            f'{location}: "_id" {value!r} has a tab or a line break, which runs and '
            "judgments cannot have; make it another"
        )
    return lines_lib.require_utf8(value, f'{location}: "_id"')


def _string(row, field, location) -> str:
    if not isinstance(row.get(field), str):
        raise errors.UserError(
            f'{location} has no string "{field}" (fields: {", ".join(map(str, row))}); '
            'add it, or ""'
        )
    return lines_lib.require_utf8(row[field], f'{location}: "{field}"')


def _judgment(columns, header, location) -> dict[str, str]:
    names = header or (_HEADER if len(columns) == 3 else ["query-id", "", *_HEADER[1:]])
    if len(columns) != len(names) or not all(columns):
        wanted = header or _HEADER
        raise errors.UserError(
            f"{location}: {len(columns)} columns; use {', '.join(wanted)}"
        )
    row = dict(zip(names, columns, strict=True))
    try:
        int(row["score"])
    except ValueError:
        raise errors.UserError(
            f"{location}: judgment {row['score']!r} is not a whole number; a "
            f"header names {', '.join(_HEADER)}"
        ) from None
    return row


def _number(text, location) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise errors.UserError(f"{location}: {text!r} is not a number")
    return value


def _refuse_repeated(path, ids) -> None:
    if len({*ids}) < len(ids):
        seen: set[str] = set()
        twice = next(x for x in ids if x in seen or seen.add(x))
        raise errors.UserError(f"{path}: id {twice!r} comes twice; make ids unique")
