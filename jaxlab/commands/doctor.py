"""`jaxlab doctor`: versions, devices, caches, extras, disk, locks of this machine."""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator

from jaxlab.commands import output
from jaxlab.core import accelerators, errors, installation, locks, paths

SUMMARY = "Versions, devices, caches, extras, disk and locks of this machine"
DETAILS = """\
The exit code is 1 where something is missing that every command needs. With FOLDER,
also its disk and who is writing there. For example:

  jaxlab doctor runs/tiny"""

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections",
    "sentencepiece", "tokenizers", "zstandard",
)  # fmt: skip
_EXTRAS = {
    "tpu": "libtpu",
    "cuda": "jax_cuda13_plugin",
    "gcs": "gcsfs",
    "beam": "apache_beam",
    "bm25": "bm25s",
    "tensorboard": "tensorboardX",
}
_VARIABLES = ("JAX_", "JAXLAB_", "XLA_", "TPU_", "CUDA_VISIBLE", "LIBTPU_")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder."""
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER",
        help="a run directory, or where one shall go; default: the one you are in",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Prints one row per finding; 1 where something is missing."""
    lacking = [name for name in _PACKAGES if _version(name) is None]
    devices = _devices() if "jax" not in lacking else "none: jax is missing"
    rows = [
        ["jaxlab", f"{_version('jaxlab') or 'a clone'}, {installation.clone() or ''}"],
        ["python", f"{platform.python_version()}, {platform.platform()}"],
        *([name, _version(name) or "MISSING"] for name in _PACKAGES),
        ["devices", devices],
        *([name, value] for name, value in _variables()),
        *([f"extra {name}", _extra(name, module)] for name, module in _EXTRAS.items()),
        *([f"cache {name}", words] for name, words in _caches()),
        ["disk", _disk(pathlib.Path(args.folder))],
        ["writer", locks.owner(args.folder) or f"nobody holds {args.folder}"],
    ]
    width = max(len(name) for name, _ in rows) + 2
    for name, words in rows:
        output.line(f"{name:<{width}}{words}".rstrip())
    return int(bool(lacking) or devices.startswith("none"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> str:
    try:
        accelerators.check()
    except errors.UserError as error:
        return f"none: {error}"
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    counts = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return f"{', '.join(counts)} ({jax.default_backend()}), {os.cpu_count()} cores"


def _variables() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(_VARIABLES):
            yield name, value


def _extra(name: str, module: str) -> str:
    if importlib.util.find_spec(module) is not None:
        return "installed"
    return f"not installed; {installation.how_to_add(name)}"


def _caches() -> Iterator[tuple[str, str]]:
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or paths.cache("compiled")
    if os.environ.get("JAXLAB_COMPILATION_CACHE") == "0":
        compiled = None
    for name, folder in (("compiled", compiled), ("data", paths.cache("data"))):
        if folder is None:
            yield name, "off (JAXLAB_COMPILATION_CACHE=0)"
            continue
        folder = pathlib.Path(folder)
        size = paths.size_bytes(folder) / 1e6 if folder.is_dir() else 0.0
        above = next(f for f in (folder, *folder.parents) if f.exists())
        can = "" if os.access(above, os.W_OK) else ", NOT WRITABLE"
        yield name, f"{folder}, {size:,.0f} MB{can}"


def _disk(folder: pathlib.Path) -> str:
    above = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    usage = shutil.disk_usage(above)
    can = "" if os.access(above, os.W_OK) else ", NOT WRITABLE"
    return f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB free{can}"
