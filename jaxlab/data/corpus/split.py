"""Which documents of a domain are held out of training: one rule, whoever writes them.

A document is held out where a hash of its text and of the seed, a number in [0, 1), is
below the fraction asked for. Its side follows from its own text and the seed: it does
not move when documents are added, renamed or reordered, and exact duplicates share a
side. The held-out share therefore varies around the fraction.

A domain of few documents could have nothing on one side. There the limit moves:

    nothing is below the fraction    the text with the least number is held out
    all are below it                 the text with the greatest number is trained on
    one text many times              its first copy is held out

A domain with a file of held-out text (`domains.held_out_file`) is not split: that text
is held out, and all of the domain is trained on but for what stands in both.
"""

import hashlib
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import domains

_log = logging.getLogger(__name__)


class Rule(NamedTuple):
    """Which documents of one domain are held out.

    Attributes:
        below: those whose `hash_share` is below.
        seed: of the hash.
        first: (source, id) of the only one held out, in a domain of one text.
        file: of the held-out text, "" where documents of the domain are held out.
        texts: `hash_share` of each text of that file.
    """

    below: float
    seed: int = 0
    first: tuple[str, str] | None = None
    file: str = ""
    texts: frozenset[float] = frozenset()

    def holds_out(self, document: documents_lib.Document) -> bool:
        """Whether a document of the domain, or of its file, is held out."""
        if self.file:
            return hash_share(document.text, self.seed) in self.texts
        if self.first is not None:
            return (document.source, document.id) == self.first
        return hash_share(document.text, self.seed) < self.below

    def to_json(self) -> dict[str, Any]:
        """As JSON; equal for equal rules."""
        first = None if self.first is None else list(self.first)
        entry = {"below": self.below, "first": first, "seed": self.seed}
        if not self.file:
            return entry
        digest = hashlib.blake2b(repr(sorted(self.texts)).encode(), digest_size=16)
        name = pathlib.PurePath(self.file).name
        return entry | {"file": name, "texts": digest.hexdigest()}

    def join(
        self,
        domain: Iterable[documents_lib.Document],
        file: Iterable[documents_lib.Document] = (),
    ) -> Iterator[documents_lib.Document]:
        """The documents of a domain and then of its file, each text on one side."""
        count = 0
        for document in domain:
            if self.file and self.holds_out(document):  # the file may be in the domain
                own, _, _ = document.source.rpartition(":")
                count += not f"/{self.file}".endswith(f"/{own}")
            else:
                yield document
        if count:
            _log.warning(
                "%d of the documents beside %s are held out by it, and not trained on",
                count,
                self.file,
            )
        yield from file


def domain_rule(
    path: str | pathlib.Path,
    documents: Iterable[documents_lib.Document],
    held_out_fraction: float,
    seed: int = 0,
    *,
    domain: str = "",
    may_read_files: bool = True,
) -> Rule:
    """The rule of a domain: of its file of held-out text if it has one.

    Args:
        path: of the domain.
        documents, held_out_fraction, seed, domain: as of `find_rule`.
        may_read_files: False leaves such a file unread.

    Raises:
        UserError: as `find_rule` or `file_rule`.
    """
    _require_share(held_out_fraction)
    file = domains.held_out_file(path) if may_read_files else None
    if file is None:
        return find_rule(documents, held_out_fraction, seed, domain=domain)
    held_out = documents_lib.read_documents(file, domain=domain)
    return file_rule(file, held_out, documents, seed, domain=domain)


def find_rule(
    documents: Iterable[documents_lib.Document],
    held_out_fraction: float,
    seed: int = 0,
    *,
    domain: str = "",
) -> Rule:
    """The rule of a domain, from as few of its documents as show both sides.

    Args:
        documents: of the domain, in order. Reading stops where one of each side was
            seen: after some 1 / held_out_fraction of them.
        held_out_fraction: share of documents.
        seed: of the hash.
        domain: its name, for messages.

    Raises:
        UserError: the fraction is not between 0 and 1, or fewer than two documents.
    """
    _require_share(held_out_fraction)
    first, count = None, 0
    ends: list[float] = []  # the two least numbers and the greatest
    for document in documents:
        first, count = first or document, count + 1
        ends = sorted({*ends, hash_share(document.text, seed)})
        ends[2:-1] = []
        if ends[0] < held_out_fraction <= ends[-1]:
            return Rule(held_out_fraction, seed)
    if count < 2:
        number = "one document" if count else "no document"
        raise errors.UserError(
            f"domain {domain!r} has {number} with text; two are needed to hold one "
            "out: add documents, or hold none out (--held-out=0, "
            "--config.data.held_out_fraction=0)"
        )
    if len(ends) == 1:
        return Rule(held_out_fraction, seed, (first.source, first.id))
    if ends[0] >= held_out_fraction:
        return Rule((ends[0] + ends[1]) / 2, seed)
    return Rule(ends[-1], seed)


def _require_share(held_out_fraction: float) -> None:
    if not 0 < held_out_fraction < 1:
        raise errors.UserError(
            f"held_out_fraction {held_out_fraction} is not between 0 and 1; try 0.1"
        )


def file_rule(
    file: str | pathlib.Path,
    held_out: Iterable[documents_lib.Document],
    documents: Iterable[documents_lib.Document],
    seed: int = 0,
    *,
    domain: str = "",
) -> Rule:
    """The rule of a domain whose held-out text is a file.

    Args:
        file: its path.
        held_out: its documents.
        documents: of the domain. Reading stops at the first that is trained on.
        seed: of the hash.
        domain: its name, for messages.

    Raises:
        UserError: the file has no text, or the domain has none beside it.
    """
    texts = frozenset(hash_share(d.text, seed) for d in held_out if d.text.strip())
    if not texts:
        raise errors.UserError(
            f"{file} is the held-out text of domain {domain!r} and holds no text; add "
            "documents or remove it"
        )
    rule = Rule(0.0, seed, None, str(file), texts)
    if all(rule.holds_out(d) for d in documents if d.text.strip()):
        raise errors.UserError(
            f"{file} holds all text of domain {domain!r}, and nothing is left to train "
            "on; put other documents there or remove it"
        )
    return rule


def split_documents(
    documents: Sequence[documents_lib.Document],
    held_out_fraction: float,
    seed: int = 0,
) -> tuple[list[documents_lib.Document], list[documents_lib.Document]]:
    """The documents of a domain as (train, held out), neither of them empty.

    >>> texts = [documents_lib.Document(str(i), f"text {i}") for i in range(100)]
    >>> [len(side) for side in split_documents(texts, 0.2)]
    [82, 18]
    """
    rule = find_rule(documents, held_out_fraction, seed)
    sides: tuple[list, list] = [], []
    for document in documents:
        sides[rule.holds_out(document)].append(document)
    return sides


def hash_share(text: str, seed: int) -> float:
    """A number in [0, 1) that is fixed by the text and the seed."""
    digest = hashlib.blake2b(
        text.encode("utf-8"), digest_size=6, key=str(seed).encode()
    ).digest()
    return int.from_bytes(digest, "big") / 2**48
