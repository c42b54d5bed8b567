"""One self-contained HTML page: text, tables, plots inline."""

import base64
import html
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlab.core import folders

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#1b1b1b}h1{margin-bottom:.2rem}table{border-collapse:collapse;margin:1rem 0}
td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f4;padding:.8rem;
white-space:pre-wrap;overflow-wrap:anywhere}img{max-width:100%}.note{color:#666}
"""


def write(path: pathlib.Path, title: str, parts: Iterable[str]) -> None:
    """Writes a page so that a reader sees the old one or the new one, never half.

    Args:
        path: of the file.
        title: of the page, and its heading.
        parts: HTML, in order.
    """
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{safe(title)}</title><style>{_STYLE}</style>"
        f"<body><h1>{safe(title)}</h1>{''.join(parts)}</body></html>"
    )
    folders.write_text(path, page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    cells = "".join(f"<th>{safe(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def note(text: str) -> str:
    """A paragraph beside the matter."""
    return f'<p class="note">{safe(text)}</p>'


def image(figure: Any) -> str:
    """A matplotlib figure, inline; it is closed."""
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def safe(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))
