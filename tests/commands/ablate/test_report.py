"""`jaxlab ablate report`."""

import json

import pytest

from jaxlab import train
from tests.support import pools


@pytest.mark.slow
def test_a_report_trains_nothing_unless_asked(said, copied, monkeypatch):
    runs = pools.contents(copied / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", None)
        said("report", copied)
    assert pools.contents(copied / "runs") == runs
    page = (copied / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert page.count("data:image/svg+xml;base64,") == 2
    found = json.loads((copied / "report.json").read_text())
    assert {len(rows) for rows in found["ranking"].values()} == {7}
    assert found["correlation"]["law"]["n"] == 0

    shown = said("report", copied, "--trained=2", "--searched=law", "--budget=member")
    assert "over 2 trained mixtures" in shown
    found = json.loads((copied / "report.json").read_text())
    assert found["correlation"]["law"]["n"] == 2
    assert "What each search chose" in (copied / "report.html").read_text()

    runs = pools.contents(copied / "runs")
    monkeypatch.setattr(train, "fit", None)
    elsewhere = copied.rename(copied.with_name("elsewhere"))
    said("report", elsewhere)  # what was trained is used again, wherever it is
    assert pools.contents(elsewhere / "runs") == runs
    again = json.loads((elsewhere / "report.json").read_text())
    assert again["correlation"] == found["correlation"]


def test_reports_that_cannot_be_are_one_line(line, pool):
    assert "give --trained N" in line("report", pool, "--searched=law")
    message = line("report", pool, "--trained=1", "--searched=web")
    assert "no target web; there are code, cook, law" in message
