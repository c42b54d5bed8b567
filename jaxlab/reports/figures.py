"""Figures by matplotlib: how one is made, and the plots that several reports share.

`panels` makes figures that belong to nobody but their caller. pyplot, which keeps every
figure and whose backend a notebook has chosen, is not touched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any
) -> tuple[Any, np.ndarray]:
    """A figure and its axes, [rows, columns] of them.

    Args:
        rows: of panels.
        columns: of panels.
        size: of the figure, (width, height) in inches.
        options: of matplotlib's `Figure.subplots`, e.g. sharey=True.
    """
    from matplotlib import figure as figure_lib  # matplotlib takes 0.3 s

    figure = figure_lib.Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def label(name: str) -> str:
    r"""A name as matplotlib shall draw it: dollar signs are not formulas.

    >>> print(label("$5 to $10"))
    \$5 to \$10
    """
    return name.replace("$", r"\$")


def stacked_bars(
    axes: Any, names: Sequence[str], parts: Mapping[str, Sequence[float]]
) -> None:
    """Horizontal bars, one per name, each made of parts that follow each other.

    Args:
        axes: to draw on.
        names: of the bars, from below.
        parts: label -> lengths, one per name.
    """
    left = np.zeros(len(names))
    for part, lengths in parts.items():
        axes.barh([label(name) for name in names], lengths, left=left, label=part)
        left = left + np.asarray(lengths)


def points_with_errors(
    axes: Any, names: Sequence[str], means: Sequence[float], errors: Sequence[float]
) -> None:
    """One point per name, from below, with a bar from mean - error to mean + error."""
    names = [label(name) for name in names]
    axes.errorbar(means, names, xerr=errors, fmt="o", capsize=3)
    axes.grid(axis="x", alpha=0.3)
