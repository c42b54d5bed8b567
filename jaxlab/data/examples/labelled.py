"""Labelled texts in several languages, and the batches that classifiers read.

    SIB-200   LANG.SPLIT.tsv   index_id TAB category TAB text, with a header
    PAWS-X    SPLIT.LANG.tsv   sentence1 TAB sentence2 TAB label, without one

Adelani et al. 2023 (arXiv:2309.07445); Yang et al. 2019 (arXiv:1908.11828). A SIB-200
text may be quoted as CSV quotes; PAWS-X has no quoting. Its two sentences become one
text, joined by SEPARATOR. A row that does not fit is an error and never left out.

Batches are a pure function of (seed, step): draw n of a run is position n mod N of
epoch n // N, each epoch in an order of its own, so that every example comes once per
epoch.
"""

import csv
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data import lines as lines_lib
from jaxlab.data.batches import mixture
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

SEPARATOR = "\n"  # stands in no text of either layout: both are read by lines
SPLITS = ("train", "dev", "test")
_HEADER = "index_id\tcategory\ttext"
_SIB = re.compile(r"(?P<language>[\w-]+)\.(?P<split>train|dev|test)\.(?i:tsv)")
_PAWS = re.compile(r"(?P<split>train|dev|test)\.(?P<language>[\w-]+)\.(?i:tsv)")
_EXPECTED = (
    "expected LANG.SPLIT.tsv with the header index_id, category, text (SIB-200) or "
    "SPLIT.LANG.tsv with sentence1, sentence2, label (PAWS-X), SPLIT one of "
    f"{', '.join(SPLITS)}"
)


class Labelled(NamedTuple):
    """The examples of one language and split.

    Attributes:
        texts: N of them.
        labels: i32[N], positions in the sorted names of the labels.
        ids: N of them; translations of one example share theirs.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]


class Row(NamedTuple):
    """One line of a file."""

    id: str
    label: str
    text: str


def read(
    folder: str | pathlib.Path,
) -> tuple[dict[str, dict[str, Labelled]], tuple[str, ...]]:
    """All files of a folder of SIB-200's or PAWS-X's layout.

    Returns:
        ({language: {split: its examples}}, the names of the labels, sorted).

    Raises:
        UserError: no folder, no .tsv, a file of another layout, a malformed row.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise errors.UserError(f"no folder {folder} of labelled texts; {_EXPECTED}")
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() == ".tsv"):
        key = language_and_split(path)
        if key in rows_of:
            raise errors.UserError(
                f"{path} and another file are both {key[0]} {key[1]}; remove one"
            )
        rows_of[key] = read_rows(path)
    if not rows_of:
        raise errors.UserError(f"{folder} holds no .tsv; {_EXPECTED}")
    names = tuple(sorted({row.label for rows in rows_of.values() for row in rows}))
    sets: dict[str, dict[str, Labelled]] = {}
    for (language, split), rows in rows_of.items():
        labels = np.array([names.index(row.label) for row in rows], np.int32)
        sets.setdefault(language, {})[split] = Labelled(
            tuple(row.text for row in rows), labels, tuple(row.id for row in rows)
        )
    return sets, names


def language_and_split(path: str | pathlib.Path) -> tuple[str, str]:
    """What a file's name says.

    >>> language_and_split("deu_Latn.train.tsv"), language_and_split("dev.de.tsv")
    (('deu_Latn', 'train'), ('de', 'dev'))
    """
    path = pathlib.Path(path)
    match = _SIB.fullmatch(path.name) or _PAWS.fullmatch(path.name)
    if match is None:
        raise errors.UserError(f"{path} is of an unknown layout; {_EXPECTED}")
    return match["language"], match["split"]


def read_rows(path: str | pathlib.Path) -> list[Row]:
    """The rows of one file, in its order; PAWS-X's ids are its line numbers.

    Raises:
        UserError: not UTF-8, another layout, no row, a malformed row (file and line).
    """
    path = pathlib.Path(path)
    language_and_split(path)
    is_sib = _SIB.fullmatch(path.name) is not None
    rows, seen = [], {}
    for number, line in lines_lib.read(path, keep_blank=True):
        if is_sib and number == 1:
            if line != _HEADER:
                raise errors.UserError(f"{path}:1 is {line[:60]!r}; {_EXPECTED}")
            continue
        row = (_sib_row if is_sib else _paws_row)(line, f"{path}:{number}", number)
        if row.id in seen:
            raise errors.UserError(
                f"{path}:{number} repeats the index_id {row.id} of line {seen[row.id]}"
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise errors.UserError(f"{path} holds no example; {_EXPECTED}")
    return rows


def _sib_row(line, place, number) -> Row:
    del number
    try:
        fields = next(csv.reader([line], delimiter="\t", strict=True), [])
    except csv.Error as error:
        raise errors.UserError(f"{place} is not quoted as CSV is: {error}") from None
    return Row(*_three(fields, place, ("index_id", "category", "text")))


def _paws_row(line, place, number) -> Row:
    names = ("sentence1", "sentence2", "label")
    first, second, label = _three(line.split("\t"), place, names)
    if label not in ("0", "1"):
        raise errors.UserError(f"{place} has the label {label!r}; PAWS-X's are 0 and 1")
    return Row(str(number), label, first + SEPARATOR + second)


def _three(fields, place, names) -> Sequence[str]:
    if len(fields) != 3:
        raise errors.UserError(
            f"{place} has {len(fields)} columns; expected {', '.join(names)}"
        )
    for name, field in zip(names, fields, strict=True):
        if not field.strip():
            raise errors.UserError(f"{place} has no {name}")
    return fields


# ------------------------------------------------------------------ batches


class Encoded(NamedTuple):
    """Examples as token rows of one length.

    Attributes:
        tokens: i32[N, L], padded on the right.
        mask: bool[N, L] of real tokens.
        labels: i32[N].
        truncated: how many texts lost some of their end.
    """

    tokens: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    truncated: int


def encode(
    tokenizer: tokenizer_lib.Tokenizer, examples: Labelled, length: int
) -> Encoded:
    """Rows of `length` tokens; a text begins with the tokenizer's bos, if it has one.

    Raises:
        UserError: a length without room for text.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if length <= len(begin):
        raise errors.UserError(f"length {length} leaves no room for text; try 64")
    shape = (len(examples.texts), length)
    tokens = np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    truncated = 0
    for row, ids in enumerate(tokenizer.encode_batch(examples.texts)):
        ids = [*begin, *ids]
        truncated += len(ids) > length
        size = min(len(ids), length)
        tokens[row, :size] = ids[:size]
        mask[row, :size] = True
    return Encoded(tokens, mask, examples.labels, truncated)


class Batches:
    """Training batches: `tokens` i32[B, L], `mask` bool[B, L], `labels` i32[B].

    Attributes:
        rows: of the global batch, B.
    """

    def __init__(self, examples: Encoded, batch_size: int, seed: int = 0):
        """Batches of `batch_size` rows in an order drawn from `seed`.

        Raises:
            UserError: no example, or no row in a batch.
        """
        if batch_size < 1:
            raise errors.UserError(f"batch_size {batch_size} is too small; use >= 1")
        if not len(examples.labels):
            raise errors.UserError("there is no example to train on; add some")
        self.examples, self.rows, self.seed = examples, batch_size, seed
        self._orders: dict = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or some rows of it; the same however often asked."""
        chosen = self.order(step * self.rows, (step + 1) * self.rows)[rows]
        return {
            "tokens": self.examples.tokens[chosen],
            "mask": self.examples.mask[chosen],
            "labels": self.examples.labels[chosen],
        }

    def order(self, start: int, stop: int) -> np.ndarray:
        """i64[stop - start]: which example each draw of the run takes."""
        numbers = np.arange(start, stop)
        count = len(self.examples.labels)
        return mixture.endless(numbers, count, self.seed, self._orders)[0]


def eval_batches(examples: Encoded, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one shape that hold every example once.

    Yields:
        `tokens`, `mask`, `labels` as `Batches`, and `real` bool[B]: False at the rows
        that fill up the last batch; they repeat its first example.
    """
    for start in range(0, len(examples.labels), batch_size):
        chosen = np.arange(start, start + batch_size)
        real = chosen < len(examples.labels)
        chosen = np.where(real, chosen, start)
        yield {
            "tokens": examples.tokens[chosen],
            "mask": examples.mask[chosen],
            "labels": examples.labels[chosen],
            "real": real,
        }
