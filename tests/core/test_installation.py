"""How jaxlab was installed, and how to add to it."""

import importlib.metadata
import pathlib
import re
import tomllib

import pytest

from jaxlab.core import installation

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_extras_of_a_clone_are_added_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert installation.how_to_add("gcs") == "pip install -e '.[gcs]'"
    monkeypatch.chdir(tmp_path)
    assert installation.how_to_add("gcs") == f"pip install -e '{ROOT}[gcs]'"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The package without a clone around it."""
    (tmp_path / "jaxlab" / "configs").mkdir(parents=True)
    (tmp_path / "jaxlab" / "configs" / "mine.py").touch()
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path / "jaxlab")


def test_extras_of_a_wheel_are_the_packages_that_they_stand_for(wheel, monkeypatch):
    lines = ["numpy>=2.0", "gcsfs>=2026.1; extra == 'gcs'", 'a; extra == "gcsfs"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert installation.how_to_add("gcs") == "pip install 'gcsfs>=2026.1'"


def test_a_wheel_has_the_configs_inside(wheel):
    assert [*installation.configs()] == ["mine"]
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"configs": "jaxlab/configs"}


def test_every_extra_that_a_message_names_exists():
    calls = [
        name
        for file in (ROOT / "jaxlab").rglob("*.py")
        for name in re.findall(
            r"""how_to_add\(["'](\w+)["']\)""", file.read_text("utf-8")
        )
    ]
    assert calls
    assert {*calls} <= {*PROJECT["project"]["optional-dependencies"]}
