"""The notebooks in launch/colab/."""

import importlib
import json
import os
import pathlib
import re

import pytest

from tests.support import compiling

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_as_nobody_has_run_them(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)
    assert 'find_spec("jaxlab") is None' in "".join(code[0]["source"])


def install(path, folder, monkeypatch, address=""):
    """What the first cell installs in a kernel without jaxlab; its error."""
    asked = []
    cell = json.loads(path.read_text("utf-8"))["cells"][1]
    code = re.sub(
        r"%pip install --quiet \{(.*)\}", r"asked.append(\1)", "".join(cell["source"])
    )
    code = code.replace('JAXLAB = ""', f"JAXLAB = {address!r}")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        exec(code, {"asked": asked})
    except RuntimeError as error:
        return str(error)
    return str(*asked)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_find_jaxlab_in_a_checkout_a_wheel_or_by_an_address(
    path, tmp_path, monkeypatch
):
    assert install(path, path.parent, monkeypatch) == str(ROOT)
    assert "git+https://ADDRESS" in install(path, tmp_path, monkeypatch)
    wheel = tmp_path / "jaxlab-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert install(path, tmp_path, monkeypatch) == str(wheel)
    address = "git+https://example.org/jaxlab"
    assert install(path, tmp_path, monkeypatch, address) == address


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in compiling.quickly(dict(os.environ)).items():
        monkeypatch.setenv(name, value)
    text = path.read_text("utf-8").replace("--config.steps=150", "--config.steps=20")
    notebook = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()  # fmt: skip
    assert all(cell.get("execution_count", 1) for cell in notebook.cells)
