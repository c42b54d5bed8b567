"""Which compiler fits the installed jax."""

import importlib.metadata

import pytest

from jaxlab.core import errors, installation
from jaxlab.plan import environment


@pytest.fixture
def installed(monkeypatch):
    """Packages and their versions, which a test may change."""
    versions = {
        "jax": "0.12.0.1",
        "libtpu": "0.0.50.3",
        "jax-cuda12-plugin": "0.12.0.1",
    }
    requires = [
        "jaxlib<=0.12.0.1,>=0.12.0.1",
        'libtpu==0.0.50.*; extra == "tpu"',
        'jax-cuda12-plugin[with-cuda]<=0.12.0.1,>=0.12.0.1; extra == "cuda12"',
        'jax-cuda12-plugin<=0.12.0.1,>=0.12.0.1; extra == "cuda12-local"',
    ]

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    return versions


def test_the_compilers_that_jax_asks_for_are_no_mismatch(installed):
    assert environment.mismatch("tpu") == ""
    assert environment.mismatch("cuda") == ""


def test_a_compiler_for_another_jax_is_named_with_the_right_version(installed):
    installed["libtpu"] = "0.0.5"  # not of 0.0.50
    assert environment.mismatch("tpu") == (
        "libtpu 0.0.5 is installed and jax 0.12.0.1 asks for ==0.0.50.*: "
        f"{installation.how_to_add('plan')}"
    )
    installed["jax-cuda12-plugin"] = "0.12.0"
    assert "[plan-gpu]" in environment.mismatch("cuda")


def test_a_compiler_that_is_absent_is_asked_for_by_its_extra(installed):
    del installed["libtpu"]
    with pytest.raises(errors.UserError, match=r"\[plan\].*without a TPU"):
        environment.prepare("tpu")


def test_the_installed_jax_names_a_version_of_both_compilers():
    requirements = importlib.metadata.requires("jax")
    for package, extra in (("libtpu", "tpu"), ("jax-cuda12-plugin", "cuda12-local")):
        assert environment.required_version(package, extra, requirements)
