"""A report's page: what it escapes, what it leaves out, and that it stands alone."""

import base64
import html
import itertools
import json
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import text as text_lib

from jaxlab.reports import figures
from jaxlab.reports import page as page_lib
from tests.support import runs

HOSTILE = "<script src=\"http://x.y/z.js\">alert('1')</script> & {{ 7 * 6 }}"


class Loss(NamedTuple):
    mean: float
    spread: float


def drawn(name="loss"):
    figure, [[axes]] = figures.panels(size=(2, 2))
    axes.plot([1, 2], [3, 4], label=figures.label(name))
    axes.set_xticks([1], [figures.label(name)])
    axes.legend()
    return figure


def a_page():
    """One of each part, with text of somebody who means harm."""
    page = page_lib.Page(HOSTILE)
    page.text(HOSTILE)
    page.note(HOSTILE)
    page.heading(HOSTILE, level=3, aside=HOSTILE)
    page.table([HOSTILE, "loss"], [[HOSTILE, "3.10"]])
    page.figures(HOSTILE, drawn(), drawn())
    page.finding(HOSTILE)
    page.terms({HOSTILE: HOSTILE})
    page.quote(HOSTILE, HOSTILE)
    page.files([(HOSTILE, HOSTILE)])
    return page


def cells(content):
    rows = re.findall("<tr>(.*?)</tr>", content, re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_all_text_is_escaped():
    content = a_page().html()
    assert "<script" not in content
    assert "42" not in re.sub('src="data:[^"]*"', "", content)  # nothing is evaluated
    # The title twice, finding, text, note, heading and aside, head, cell, alt, caption,
    # lead, quote, file and what it holds, term and meaning.
    assert content.count("&lt;script src=") == 17
    assert cells(content) == [[HOSTILE, "loss"], [HOSTILE, "3.10"]]


def test_a_page_loads_nothing():
    page = page_lib.Page("Losses")
    page.table(["a", "b"], [["c", "d"]])
    page.figures("Losses rise.", drawn())
    content = page.html()
    for pattern in ("http:", "https:", "<link", "<script", "@import", "url("):
        assert pattern not in content
    assert all(x.startswith("data:") for x in re.findall('src="([^"]*)"', content))


def test_parts_come_in_the_order_they_were_added():
    page = page_lib.Page("Title")
    page.heading("First")
    page.quote("lead", " indented\n\n  text ")
    page.heading("Second", level=3)
    page.note("last")
    content = page.html()
    order = ["<h1>Title</h1>", "<h2>First</h2>", "<h3>Second</h3>", ">last</p>"]
    starts = [content.index(part) for part in order]
    assert starts == sorted(starts)
    assert "<pre><b>lead</b> indented\n\n  text </pre>" in content


def test_a_page_opens_with_its_finding_and_fits_a_phone():
    page = page_lib.Page("Losses")
    for number in range(6):
        page.heading(f"Part {number}")
    page.table(["a", "b"], [["c", "d"]])
    page.figures("Losses rise.", drawn(), drawn())
    page.finding("adam is best.")
    content = page.html()
    assert '<h1>Losses</h1>\n<p class="finding">adam is best.</p>' in content
    assert '<meta name="viewport" content="width=device-width' in content
    links = re.findall('href="#([^"]*)"', content)
    assert len(links) == 6
    assert links == re.findall('<h2 id="([^"]*)"', content)
    said = re.findall('alt="([^"]*)"', content)
    assert said == ["Losses rise.", "The same for panel 2; see the caption."]
    assert "<figcaption>Losses rise.</figcaption>" in content
    boxes = content.split('class="scroll"')
    assert len(boxes) == 4  # of the table, and of each figure
    assert '<th scope="col">a</th>' in content


def test_a_figure_is_vectors_inside_and_the_same_bytes_each_time():
    head, data = page_lib.image(drawn()).split(",")
    assert head == "data:image/svg+xml;base64"
    assert b"<svg" in base64.b64decode(data)
    assert page_lib.image(drawn()) == f"{head},{data}"


def test_what_is_compared_with_training_has_a_line_where_both_are_equal():
    _, [[axes]] = figures.panels(size=(2, 2))
    figures.agreement(axes, {"merged": [1.0, 4.0], "mean": [2.0, 3.0]}, [2.0, 5.0])
    (line,) = axes.lines
    assert [*line.get_xdata()] == [*line.get_ydata()] == [1.0, 5.0]
    names = axes.get_legend_handles_labels()[1]
    assert {*names} == {"merged", "mean", "equal"}


def test_an_axis_of_shares_ends_at_1_and_its_ticks_are_its_values():
    figure, [[axes]] = figures.panels(size=(2, 2))
    axes.plot([5, 10, 20], [0.5, 1.0, 1.0])
    axes.set_xscale("log")
    figures.end_at_shares(axes)
    figures.tick_values(axes.xaxis, [5, 10, 20])
    assert axes.get_ylim()[1] == 1.0
    assert [x.get_text() for x in axes.get_xticklabels()] == ["5", "10", "20"]
    assert page_lib.image(figure)


@pytest.mark.parametrize("name", [r"$\notacommand{$", "$5 to $10", "a_b^c", "$", r"\$"])
def test_any_name_can_be_drawn(name):
    assert page_lib.image(drawn(name))


def test_figures_leave_pyplot_as_it_is():
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.get_backend(), pyplot.get_fignums()
    page_lib.image(drawn())
    assert (matplotlib.get_backend(), pyplot.get_fignums()) == before


def test_stacked_bars_begin_where_the_last_part_ended():
    figure, [[axes]] = figures.panels(size=(2, 2))
    figures.stacked_bars(axes, ["a", "b"], {"one": [1.0, 2.0], "two": [3.0, 5.0]})
    ends = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert ends == [(0, 1), (0, 2), (1, 3), (2, 5)]
    assert page_lib.image(figure)


def test_numbers_that_json_lacks_are_null(tmp_path):
    page = page_lib.Page("Losses")
    page.numbers(
        loss=Loss(1.5, math.nan),
        array=np.array([1.0, np.inf, -np.inf], np.float32),
        scalar=np.float32("nan"),
        count=np.int64(3),
        nested={"rows": ({"x": math.nan}, None, True, "nan")},
    )
    page.write(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "loss": {"mean": 1.5, "spread": None},
        "array": [1.0, None, None],
        "scalar": None,
        "count": 3,
        "nested": {"rows": [{"x": None}, None, True, "nan"]},
    }


def test_page_and_json_say_the_same_numbers(tmp_path):
    losses = {"adam": 3.0625, "asam": 2.984375}
    page = page_lib.Page("Losses")
    page.numbers(loss={"adam": 0.0}, kind="loss")
    page.table(["optimizer", "loss"], [[k, f"{v:.6f}"] for k, v in losses.items()])
    page.numbers(loss=losses)  # the later one counts
    path = page.write(tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers == {"kind": "loss", "loss": losses}
    _, *rows = cells(path.read_text())
    assert {name: float(value) for name, value in rows} == numbers["loss"]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).map(sorted))
def test_names_beside_points_are_apart_in_order_and_inside(places):
    gap = min(0.07, 1 / max(len(places) - 1, 1))
    moved = np.array(figures.spread(places, 0.07))
    assert (np.diff(moved) >= gap - 1e-9).all()
    assert moved.min() >= -1e-9
    assert moved.max() <= 1 + 1e-9
    if len(places) == 1 or min(np.diff(places)) > gap:
        np.testing.assert_allclose(moved, places, atol=1e-9)


def test_no_name_of_a_point_covers_another():
    figure, [[axes]] = figures.panels(size=(figures.HALF, 3.4))
    points = {f"tram_{i}": (1 + 1e-3 * i, 34 + 1e-3 * i, 0.4) for i in range(12)}
    figures.points_with_names(axes, points, "tram_3")
    figure.tight_layout()
    boxes = [text_lib.Text.get_window_extent(text) for text in axes.texts]  # no line
    boxes = sorted((box.y0, box.y1) for box in boxes)
    assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(boxes))


def test_a_figure_leaves_no_folder_of_settings_and_takes_none_of_this_folder(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "matplotlibrc").write_text("lines.linewidth: 77\n")
    code = (
        "import os, sys; os.chdir(sys.argv[1]); from jaxlab.reports import figures; "
        "_, [[axes]] = figures.panels(size=(2, 2)); [line] = axes.plot([1, 2]); "
        "print(line.get_linewidth())"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "caches", "XDG_CONFIG_HOME": ""}
    done = runs.python(code, tmp_path / "here", MPLCONFIGDIR="", **home)
    assert float(done.stdout) < 5, done.stderr
    left = {x.name for x in (*tmp_path.iterdir(), *(tmp_path / "here").iterdir())}
    assert left == {"here", ".cache", "matplotlibrc"}
