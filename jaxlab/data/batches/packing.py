"""Packing: documents cut into pieces that fit a row, and pieces into rows.

A row of length L that holds a piece begins with one *context* token, which is read and
never a label: the end-of-text token for the start of a document (what stood before it
in the token file), else the token before the piece. So a piece brings at most L - 1
labels, and every token of every document is a label exactly once.

Rows are filled by best-fit decreasing: the longest piece first, each into the fullest
row it still fits (Ding et al., 2024, arXiv:2404.10830). Only documents longer than a
row are cut, unlike in concatenated chunks.
"""

from typing import NamedTuple

import numpy as np

from jaxlab.core import errors


class Pieces(NamedTuple):
    """Cuts of a token file: labels tokens[start:stop]; arrays i64[pieces].

    Attributes:
        start: first label.
        stop: one after the last.
        document: index of the document that it belongs to.
        is_first: whether it begins its document.
    """

    start: np.ndarray
    stop: np.ndarray
    document: np.ndarray
    is_first: np.ndarray


def cut(ends: np.ndarray, length: int) -> Pieces:
    """Cuts documents into pieces of at most length - 1 labels.

    Args:
        ends: i64[documents]: where each document ends; the first begins at 0.
        length: tokens of a row, the context token included.

    >>> cut(np.array([3, 8]), 4)[:3]
    (array([0, 3, 6]), array([3, 6, 8]), array([0, 1, 1]))
    """
    if length < 2:
        raise errors.UserError(f"length {length} leaves no label; use 2 or more")
    labels = length - 1
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    counts = -((starts - ends) // labels)  # ceil
    document = np.repeat(np.arange(len(ends)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = starts[document] + number * labels
    stop = np.minimum(start + labels, ends[document])
    return Pieces(start, stop, document, number == 0)


def pack(sizes: np.ndarray, length: int) -> list[list[int]]:
    """Puts items into rows, best-fit decreasing; ties by number, so it is fixed.

    Args:
        sizes: i64[items]: each from 1 to `length`.
        length: of a row.

    Returns:
        Item numbers of each row, in the order they were put in.

    >>> pack(np.array([2, 3, 1, 2]), 4)
    [[1, 2], [0, 3]]
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by room left
    rooms = 0  # bit r is set where a row with room r is open
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms &= ~(1 << room)
        else:
            row, room = len(rows), length
            rows.append([])
        rows[row].append(item)
        if room > size:
            open_rows[room - size].append(row)
            rooms |= 1 << (room - size)
    return rows
