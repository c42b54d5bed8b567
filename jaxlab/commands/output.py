"""What verbs print: tables on stdout."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns: the first on the left, the others, which are numbers, right.

    >>> table(["domain", "loss"], [["law", "3.1"], ["code", "10.2"]])
    domain  loss
    law      3.1
    code    10.2
    """
    rows = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for first, *others in rows:
        cells = [
            f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)
        ]
        print("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip(), flush=True)
