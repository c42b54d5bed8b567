"""Which accelerators jax looks for; standard library only, as it is asked first."""

import glob
import importlib.util
import os
import sys

from jaxlab.core import errors

# How a TPU, an NVIDIA and an AMD GPU appear to a process.
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def skip_absent_tpu() -> None:
    """Keeps jax from opening a TPU where there is none but its compiler.

    `jaxlab plan --aot` needs libtpu (the extra `plan`). With it installed every other
    command would look for a TPU first: libtpu then asks a metadata server, which takes
    seconds, and writes what it misses to stderr. Does nothing where JAX_PLATFORMS or a
    variable of TPUs is set, or where a device file says that there is an accelerator.
    """
    if os.environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None:
        return
    if any(name.startswith("TPU_") for name in os.environ):
        return
    if any(glob.glob(pattern) for pattern in _DEVICES):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the variable already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def check() -> None:
    """Asks jax for its devices, before any file is opened or any work is begun.

    Raises:
        UserError: there are none of the kind that JAX_PLATFORMS names.
    """
    import jax

    from jaxlab.core import installation  # its importlib.metadata is slow to import

    try:
        jax.devices()
    except Exception as error:  # RuntimeError; an AssertionError where CUDA is absent
        asked = jax.config.jax_platforms or os.environ.get("JAX_PLATFORMS") or "auto"
        reason = " ".join(str(error).partition(" (set JAX_PLATFORMS")[0].split())
        raise errors.UserError(
            f"no device to compute on: JAX_PLATFORMS is {asked}, and jax finds none of "
            f"that kind ({reason[:200] or type(error).__name__}); unset JAX_PLATFORMS "
            "or set it to cpu, see that no other process holds the device, or install "
            f"jax for it: {installation.how_to_add('cuda')}, or [tpu]"
        ) from None
