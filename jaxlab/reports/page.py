"""A report: text, tables, figures and numbers in one HTML file and one JSON file.

    page = Page("Which optimizer is best?")
    page.finding("adam has the lowest loss, 3.10 [3.05, 3.15], of two.")
    page.table(["optimizer", "loss"], [["adam", "3.10"]])
    page.terms({"loss": "nats per token on held-out text"})
    page.figures("Loss by step; adam is lowest throughout.", figure)
    page.numbers(loss={"adam": 3.1})
    page.write("runs/study")             report.html and report.json

A page opens with its finding: the answer, how sure it is, and its catch. It is made for
a wide screen and for a phone: tables and figures scroll in a box of their own, figures
are vectors. It is self-contained: it loads nothing from anywhere. All text
is escaped by Jinja2, whatever a domain, a query or a document is called. The JSON holds
what `core.json_text.json_value` makes of the numbers: null where one is not finite.
"""

import base64
import functools
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlab.core import folders, paths, report

_TEMPLATE = "template.html"  # beside this file
_MANY = 4  # sections of a page without contents


class Page:
    """One report, written top down.

    Args:
        title: of the page, and its heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._finding = ""
        self._parts: list[dict[str, Any]] = []
        self._numbers: dict[str, Any] = {}

    def finding(self, text: str) -> None:
        """What the page has to say, in a paragraph at its top."""
        self._finding = text

    def heading(self, text: str, *, level: int = 2, aside: str = "") -> None:
        """A heading of a section (level 2) or below (3), and small print beside it."""
        self._add("heading", text=text, level=level, aside=aside)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text=text)

    def note(self, text: str) -> None:
        """A paragraph in grey: how to read what stands above."""
        self._add("note", text=text)

    def terms(self, meanings: Mapping[str, str]) -> None:
        """What the words of the table or figure above mean, a line each."""
        self._add("terms", entries=list(meanings.items()))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; the first column is text, the others are numbers."""
        self._add("table", head=list(head), rows=[list(row) for row in rows])

    def figures(self, caption: str, *figures: Any) -> None:
        """Figures side by side, where there is room, and what they show.

        Args:
            caption: stands below, and is what a reader hears who does not see them.
            *figures: each a `matplotlib.figure.Figure`; one that is at most
                `figures.WIDTH` inches wide can be read on a phone as a whole.
        """
        first, *others = figures
        images = [_image(first, caption)]
        for figure in others:  # the caption is said once
            titles = filter(None, (axes.get_title() for axes in figure.axes))
            what = ", ".join(titles) or f"panel {len(images) + 1}"
            images.append(_image(figure, f"The same for {what}; see the caption."))
        self._add("figures", images=images, caption=caption)

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
        """The page; with its contents, where there are many sections."""
        contents = [
            (number, part["text"])
            for number, part in enumerate(self._parts, start=1)
            if part["kind"] == "heading" and part["level"] == 2
        ]
        return _template().render(
            title=self.title,
            finding=self._finding,
            contents=contents if len(contents) > _MANY else [],
            parts=self._parts,
        )

    def _add(self, kind: str, **content: Any) -> None:
        self._parts.append({"kind": kind, **content})


def image(figure: Any) -> str:
    """A matplotlib figure as the source of an <img>: an SVG, inline.

    Letters are drawn as paths, so that they look alike everywhere; the same figure is
    the same bytes.
    """
    import matplotlib

    figure.tight_layout()
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxlab", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _image(figure: Any, alt: str) -> dict[str, Any]:
    """An image with its size; beyond a phone's width it shrinks by a quarter only."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return {
        "source": image(figure),
        "alt": alt,
        "width": width,
        "height": height,
        "least": round(0.75 * width),
    }


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
