"""The process that asks XLA: settings that are read when jax and its plugins load.

Call `prepare` before jax is imported. libtpu (the version that jax pins, the extra
`plan` of this package) compiles without a TPU, and without these settings it looks for
one, waits for a metadata server, takes a lock on the machine and writes to stderr. The
CUDA plugin (extra `plan_gpu`) compiles without CUDA, and only where jax computes on the
CPU: with the CUDA platform allowed, jax drops a plugin that finds no driver.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator

from jaxlab.core import errors

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",  # arrays of this process; else jax tries to open a TPU
    # Both together silence libtpu; its log levels do not.
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked where it is
    "TPU_LOG_DIR": "disabled",  # else a file a run, in the temporary folder
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once, beside a run
}
_COMPILERS = {
    "tpu": ("libtpu", "plan", "a TPU"),
    "cuda": ("jax-cuda12-plugin", "plan_gpu", "CUDA and a GPU"),
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
    package, extra, what = _COMPILERS[platform]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise errors.UserError(
            f"--aot needs the compiler: pip install 'jaxlab[{extra}]' ({package}, "
            f"which works without {what})"
        ) from None
    if platform == "cuda":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if importlib.util.find_spec("jax_cuda12_plugin"):  # which tells of no driver
        with quiet():
            importlib.import_module("jax").devices()  # loads the plugin


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing reaches stderr.

    The CUDA plugin tells four times that there is no driver, before its own log level
    is read, and XLA:GPU warns of shardings; errors are raised all the same.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
