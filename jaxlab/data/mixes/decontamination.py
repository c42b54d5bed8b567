"""Which conversations repeat a question of an evaluation.

    A token of a question is matched by a prompt where both have an n-gram that holds
    it; a prompt in which more than `share` of one question's tokens are matched is
    contaminated.                 Lambert et al. 2024 (arXiv:2411.15124), section 3.2

Tokens are words in lower case. A question of fewer than n words is repeated by a prompt
that is nothing else: many prompts hold "yes" or "Say hello".
"""

import collections
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from jaxlab.core import errors
from jaxlab.data import lines

_WORD = re.compile(r"\w+")


class Index:
    """The n-grams of questions: `find` says which of them a text repeats."""

    def __init__(self, questions: Iterable[tuple[str, str]], *, n: int, share: float):
        """Args:
        questions: (name, text) of each.
        n: words of an n-gram.
        share: of a question's words that may be matched.
        """
        self.n, self.share = n, share
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.short: dict[tuple[str, ...], str] = {}
        self.places = collections.defaultdict(list)  # n-gram -> [(question, at)]
        for name, text in questions:
            words = _words(text)
            if not words:
                continue
            if len(words) < n:
                self.short.setdefault(tuple(words), name)
                continue
            for at in range(len(words) - n + 1):
                gram = tuple(words[at : at + n])
                self.places[gram].append((len(self.names), at))
            self.names.append(name)
            self.lengths.append(len(words))

    def find(self, text: str) -> str | None:
        """The name of the question that a text repeats; None where it repeats none."""
        words, matched = _words(text), collections.defaultdict(set)
        if len(words) < self.n:
            return self.short.get(tuple(words))
        for start in range(len(words) - self.n + 1):
            gram = tuple(words[start : start + self.n])
            for question, at in self.places.get(gram, ()):
                matched[question].update(range(at, at + self.n))
        for question, tokens in sorted(matched.items()):
            if len(tokens) > self.share * self.lengths[question]:
                return self.names[question]
        return None


def read_questions(
    files: Sequence[pathlib.Path], fields: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(FILE:ROW, text) of evaluation files: JSON lines or lists, or lines of text.

    Args:
        files: .jsonl, .json, .txt, .tsv ...; packed or not.
        fields: of a row that are its question; () for all texts of it, each alone.

    Raises:
        UserError: a file is missing or damaged, or no row has one of the fields.
    """
    for file in files:
        count = 0
        for number, value in _rows(file):
            for text in _texts(value, fields):
                count += 1
                yield f"{file.name}:{number}", text
        if not count:
            wanted = f" in {', '.join(fields)}" if fields else ""
            raise errors.UserError(f"{file} has no question{wanted}; name its fields")


def _rows(file):
    name = re.sub(r"\.(gz|zst)$", "", file.name.lower())
    if name.endswith(".jsonl"):
        yield from lines.read_json(file)
    elif name.endswith(".json"):
        text = lines.read_whole(file, "write one object per line, as .jsonl")
        value = lines.parse_json(text, str(file), "repair it")
        rows = value.values() if isinstance(value, dict) else value
        yield from enumerate(rows if isinstance(value, dict | list) else [value], 1)
    else:
        yield from lines.read(file)


def _texts(value, fields) -> Iterator[str]:
    if isinstance(value, str):
        if not fields:
            yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            if not fields or name in fields:
                yield from _texts(each, ())
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, fields)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
