"""Which documents of a domain are held out of training: one rule, whoever writes them.

A document is held out where a hash of its text and of the seed, a number in [0, 1), is
below the fraction asked for. Its side follows from its own text and the seed: it does
not move when documents are added, renamed or reordered, and exact duplicates share a
side. The held-out share therefore varies around the fraction.

A domain of few documents could have nothing on one side. There the limit moves:

    nothing is below the fraction    the text with the least number is held out
    all are below it                 the text with the greatest number is trained on
    one text many times              its first copy is held out
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib


class Rule(NamedTuple):
    """Which documents of one domain are held out.

    Attributes:
        below: those whose `hash_share` is below.
        seed: of the hash.
        first: (source, id) of the only one held out, in a domain of one text.
    """

    below: float
    seed: int = 0
    first: tuple[str, str] | None = None

    def holds_out(self, document: documents_lib.Document) -> bool:
        """Whether a document of the domain is held out."""
        if self.first is not None:
            return (document.source, document.id) == self.first
        return hash_share(document.text, self.seed) < self.below

    def to_json(self) -> dict[str, Any]:
        """As JSON; equal for equal rules."""
        first = None if self.first is None else list(self.first)
        return {"below": self.below, "first": first, "seed": self.seed}


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
    if not 0 < held_out_fraction < 1:
        raise errors.UserError(
            f"held_out_fraction {held_out_fraction} is not between 0 and 1; try 0.1"
        )
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
