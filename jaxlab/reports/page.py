"""A report: text, tables, figures and numbers in one HTML file and one JSON file.

    page = Page("Which optimizer is best?")
    page.note("Six seeds each.")
    page.table(["optimizer", "loss"], [["adam", "3.10"]])
    page.figure(figure)
    page.numbers(loss={"adam": 3.1})
    page.write("runs/study")             report.html and report.json

The HTML is self-contained: it loads nothing from anywhere, figures are inside. All text
is escaped by Jinja2, whatever a domain, a query or a document is called. The JSON holds
what `core.json_text.json_value` makes of the numbers: null where one is not finite.
"""

import base64
import functools
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlab.core import folders, paths, report

_TEMPLATE = "template.html"  # beside this file


class Page:
    """One report, written top down.

    Args:
        title: of the page, and its heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[dict[str, Any]] = []
        self._numbers: dict[str, Any] = {}

    def heading(self, text: str, *, level: int = 2, aside: str = "") -> None:
        """A heading of a section (level 2) or below (3), and small print beside it."""
        self._add("heading", text=text, level=level, aside=aside)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text=text)

    def note(self, text: str) -> None:
        """A paragraph in grey: how to read what stands above."""
        self._add("note", text=text)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; the first column is text, the others are numbers."""
        self._add("table", head=list(head), rows=[list(row) for row in rows])

    def figure(self, figure: Any, *, alt: str = "") -> None:
        """A figure of `reports.figures`, or any of matplotlib's.

        Args:
            figure: a `matplotlib.figure.Figure`.
            alt: what it shows, for a reader who does not see it.
        """
        self._add("figure", source=image(figure), alt=alt)

    def quote(self, lead: str, text: str) -> None:
        """Text as it is, line breaks included, behind a lead in bold."""
        self._add("quote", lead=lead, text=text)

    def files(self, entries: Iterable[tuple[str, str]]) -> None:
        """A list of (path, what it holds)."""
        self._add("files", entries=list(entries))

    def numbers(self, **values: Any) -> None:
        """Adds keys to the JSON file; a key that is given twice is replaced."""
        self._numbers |= values

    def write(self, workdir: str | os.PathLike) -> pathlib.Path:
        """Writes WORKDIR/report.json, then report.html, whose path it returns.

        Each is seen whole: the old file or the new one.
        """
        workdir = paths.path(workdir)
        report.write_json(workdir / "report.json", self._numbers)
        folders.write_text(workdir / "report.html", self.html())
        return workdir / "report.html"

    def html(self) -> str:
        """The page."""
        return _template().render(title=self.title, parts=self._parts)

    def _add(self, kind: str, **content: Any) -> None:
        self._parts.append({"kind": kind, **content})


def image(figure: Any) -> str:
    """A matplotlib figure as the source of an <img>: a PNG, inline."""
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error
    )
    text = pathlib.Path(__file__).with_name(_TEMPLATE).read_text("utf-8")
    return environment.from_string(text)
