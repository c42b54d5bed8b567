"""Figures by matplotlib: how one is made, and the plots that several reports share.

`panels` makes figures that belong to nobody but their caller. pyplot, which keeps every
figure and whose backend a notebook has chosen, is not touched.
"""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxlab.core import paths

WIDTH = 4.8  # inches of a figure that a phone shows as a whole, its letters still large
_LINE = 0.07  # of a figure's height, for a line of text beside it
HALF = 3.6  # of one of several beside each other, natural size on a phone


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
    figure = _matplotlib().figure.Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _matplotlib() -> ModuleType:
    """matplotlib, which takes 0.3 s; it finds and leaves nothing where it shall not.

    It makes ~/.config/matplotlib for settings that are not there, and takes those of a
    `matplotlibrc` in the working folder, which may be another's and ask for LaTeX.
    """
    is_first = "matplotlib" not in sys.modules
    home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
    if is_first and not pathlib.Path(home, "matplotlib").is_dir():
        found = os.environ.get("MPLCONFIGDIR")
        os.environ["MPLCONFIGDIR"] = found or str(paths.cache("matplotlib"))
    import matplotlib
    import matplotlib.figure

    if is_first and matplotlib.matplotlib_fname() == "matplotlibrc":
        matplotlib.rcdefaults()
    return matplotlib


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
    axes.set_xlim(0, 1.05 * max(left.max(initial=0.0), 1e-9))


def points_with_errors(
    axes: Any, names: Sequence[str], means: Sequence[float], errors: Sequence[float]
) -> None:
    """One point per name, from below, with a bar from mean - error to mean + error."""
    names = [label(name) for name in names]
    axes.errorbar(means, names, xerr=errors, fmt="o", capsize=3)
    axes.margins(x=0.08)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", alpha=0.3)


def points_with_names(
    axes: Any, points: Mapping[str, tuple[float, float, float]], best: str = ""
) -> None:
    """Points (x, y, half the interval of y), named at the right; `best` in red.

    The names stand in a column, in the order of y, so that none covers another; a thin
    line leads to each point.
    """
    for name, (x, y, error) in points.items():
        color = "#b3261e" if name == best else "#555555"
        axes.errorbar(x, y, yerr=error, fmt="o", color=color, capsize=2, linewidth=1)
    axes.margins(x=0.1, y=0.05)
    axes.locator_params(axis="x", nbins=3)
    axes.ticklabel_format(axis="x", useOffset=False)
    low, high = axes.get_ylim()
    names = sorted(points, key=lambda name: points[name][1])
    places = spread([(points[x][1] - low) / (high - low) for x in names], _LINE)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            label(name),
            points[name][:2],
            xytext=(1.06, place),
            textcoords="axes fraction",
            verticalalignment="center",
            color="#b3261e" if name == best else "#1b1b1b",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.7},
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising places, moved apart to be `gap` from each other within 0 to 1.

    More than fit are as far apart as they can be.

    >>> spread([0.5, 0.5], 0.25), spread([0.0, 0.0, 0.9], 0.25)
    ([0.375, 0.625], [0.0, 0.25, 0.9])
    """
    steps = np.arange(len(places)) * min(gap, 1 / max(len(places) - 1, 1))
    loose = np.asarray(places) - steps  # apart means that these do not fall
    up = np.maximum.accumulate(loose)
    down = np.minimum.accumulate(loose[::-1])[::-1]
    moved = (up + down) / 2 + steps
    return np.clip(moved, steps, 1 - steps[::-1]).tolist()


def agreement(axes: Any, predicted: Mapping[str, Any], actual: Any) -> None:
    """Predicted against actual values, one mark per predictor, and the line y = x.

    Args:
        axes: to draw on.
        predicted: label -> f[N]; the first is filled, the others are hollow.
        actual: f[N].
    """
    for number, (name, values) in enumerate(predicted.items()):
        face = "none" if number else "#b3261e"
        edge = "#777777" if number else "#b3261e"
        axes.scatter(values, actual, facecolors=face, edgecolors=edge, label=name)
    every = np.concatenate([np.ravel(x) for x in (actual, *predicted.values())])
    ends = [every.min(), every.max()]
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1, zorder=0, label="equal")


def end_at_shares(axes: Any) -> None:
    """Lets the y axis of a share, e.g. recall, end at 0 and 1 at the farthest."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0))
    for line in axes.lines:
        line.set_clip_on(False)  # a point at 1 is whole


def tick_values(axis: Any, values: Sequence[float]) -> None:
    """Ticks at just these values, written in full."""
    axis.set_ticks([*values], [f"{value:g}" for value in values])
    axis.set_minor_locator(_no_ticks())


def _no_ticks():
    from matplotlib import ticker

    return ticker.NullLocator()
