"""Environment of the process that asks XLA: set before jax and its plugins load.

Call `prepare` before jax is imported. libtpu (the extra `plan` of this package)
compiles without a TPU, and without these settings it looks for one, waits for a
metadata server, takes a lock on the machine and writes to stderr. The CUDA plugin
(extra `plan-gpu`) compiles without CUDA, and only where jax computes on the CPU: with
the CUDA platform allowed, jax drops a plugin that finds no driver.

A compiler reads the programs of one version of jax. Which one fits is written in an
extra of jax itself; our extras name that extra, and `mismatch` reads it.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator

from jaxlab.core import errors, installation

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",  # arrays of this process; else jax tries to open a TPU
    # Both together silence libtpu; its log levels do not.
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked where it is
    "TPU_LOG_DIR": "disabled",  # else one file per run, in the temporary folder
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once, beside a run
}
_COMPILERS = {  # platform -> (package, our extra, jax's extra, what is not needed)
    "tpu": ("libtpu", "plan", "tpu", "a TPU"),
    "cuda": ("jax-cuda12-plugin", "plan-gpu", "cuda12-local", "CUDA and a GPU"),
}


def prepare(platform: str) -> None:
    """Sets what is not set.

    Args:
        platform: "tpu" or "cuda".

    Raises:
        UserError: the compiler is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    package, extra, _, what = _COMPILERS[platform]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise errors.UserError(
            f"--aot needs the compiler: {installation.how_to_add(extra)} ({package}, "
            f"which works without {what})"
        ) from None
    if platform == "cuda":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if importlib.util.find_spec("jax_cuda12_plugin"):  # which tells of no driver
        with quiet():
            importlib.import_module("jax").devices()  # loads the plugin


def mismatch(platform: str) -> str:
    """Says that the compiler is not the one that the installed jax asks for, or "".

    Args:
        platform: "tpu" or "cuda".
    """
    package, extra, jax_extra, _ = _COMPILERS[platform]
    installed = importlib.metadata.version(package)
    wanted = required_version(package, jax_extra, importlib.metadata.requires("jax"))
    pins = [pin.removesuffix(".*") for pin in re.findall(r"[\d.]+(?:\*)?", wanted)]
    if not pins or any(f"{installed}.".startswith(f"{pin}.") for pin in pins):
        return ""
    return (
        f"{package} {installed} is installed and jax "
        f"{importlib.metadata.version('jax')} asks for {wanted}: "
        f"{installation.how_to_add(extra)}"
    )


def required_version(package: str, extra: str, requirements: list[str] | None) -> str:
    """The version of a package that an extra asks for, "" if it does not ask.

    >>> lines = ['libtpu==0.0.50.*; extra == "tpu"', 'requests; extra == "tpu"']
    >>> required_version("libtpu", "tpu", lines)
    '==0.0.50.*'
    """
    for line in requirements or ():
        name = rf"{re.escape(package)}(?:\[[^]]*\])?"
        match = re.fullmatch(rf"{name}\s*([^;\s]*)\s*;(.*)", line)
        if match and re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", match[2]):
            return match[1]
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing reaches stderr.

    The CUDA plugin tells four times that there is no driver, before its own log level
    is read, and XLA:GPU warns of shardings; errors are raised all the same.
    """
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
