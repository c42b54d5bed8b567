"""A TPU's compiler is no TPU."""

import glob
import importlib.util
import os

import jax
import pytest

from jaxlab.core import accelerators, errors


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One with libtpu and no accelerator; `machine(FILE)` adds a device file."""
    files = []
    for name in [*os.environ]:
        if name.startswith("TPU_") or name == "JAX_PLATFORMS":
            monkeypatch.delenv(name)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "libtpu" or None
    )
    monkeypatch.setattr(
        glob, "glob", lambda pattern: [f for f in files if _fits(f, pattern)]
    )
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *change: asked.append(change))
    return files, asked


def _fits(file, pattern):
    return file.startswith(pattern.split("[")[0].rstrip("*"))


def test_a_compiler_without_a_tpu_leaves_the_cpu(machine):
    accelerators.skip_absent_tpu()
    assert os.environ.pop("JAX_PLATFORMS") == "cpu"
    assert machine[1] == [("jax_platforms", "cpu")]


@pytest.mark.parametrize(
    "file", ["/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd"]
)
def test_an_accelerator_is_looked_for_where_there_is_one(machine, file):
    machine[0].append(file)
    accelerators.skip_absent_tpu()
    assert "JAX_PLATFORMS" not in os.environ
    assert not machine[1]


@pytest.mark.parametrize("name", ["JAX_PLATFORMS", "TPU_WORKER_ID"])
def test_what_the_user_has_set_is_kept(monkeypatch, machine, name):
    monkeypatch.setenv(name, "1")
    accelerators.skip_absent_tpu()
    assert os.environ.get("JAX_PLATFORMS") == ("1" if name == "JAX_PLATFORMS" else None)
    assert not machine[1]


def test_without_the_compiler_nothing_is_decided(monkeypatch, machine):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    accelerators.skip_absent_tpu()
    assert "JAX_PLATFORMS" not in os.environ


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'tpu': no"), AssertionError()]
)
def test_a_device_that_is_not_there_is_one_line_that_says_what_to_unset(
    monkeypatch, error
):
    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(errors.UserError, match="no device to compute on: JAX_") as said:
        accelerators.check()
    assert "unset JAX_PLATFORMS" in str(said.value)
    assert "install" in str(said.value)
    assert "\n" not in str(said.value)
