"""The process that asks XLA:TPU: settings that are read when jax and libtpu load.

Call `prepare` before jax is imported. libtpu (the version that jax pins, the extra
`plan` of this package) compiles without a TPU, and without these settings it looks for
one, waits for a metadata server, takes a lock on the machine and writes to stderr.
"""

import importlib.metadata
import os

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


def prepare() -> None:
    """Sets what is not set.

    Raises:
        UserError: libtpu is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise errors.UserError(
            "--aot needs the compiler: pip install 'jaxlab[plan]' (libtpu, which "
            "works without a TPU)"
        ) from None
