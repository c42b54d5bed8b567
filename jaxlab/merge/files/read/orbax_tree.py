"""Where an Orbax checkpoint keeps the bytes of its leaves.

TensorStore decodes whole stored chunks, which may be a whole leaf, so the ranges of
uncompressed zarr3 values are looked up in the OCDBT tree and read directly. A leaf that
is stored otherwise (compressed, or cut along other axes than the first) goes through
TensorStore, in whole stored chunks: save without compression to merge in little memory.

Of a run of ours the parameters alone are taken, under their path; of any other
checkpoint every leaf. Orbax writes several layouts; those with an OCDBT manifest, zarr
and zarr3, are read.
"""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from jaxlab.core import checkpoint, checkpoint_files, errors, paths, tree
from jaxlab.merge.files.read import source


def open_checkpoint(path: pathlib.Path) -> source.Source:
    """One checkpoint of whatever structure.

    Raises:
        UserError: it cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    with _one_line(path):
        structure = ocp.metadata(path.absolute()).metadata
        leaves = tree.flatten(structure)
        values = _Values(path.absolute())
        tensors = {
            name: values.locate(name.replace("/", "."), leaf)
            for name, leaf in leaves.items()
        }
    return source.Source(
        str(path), "checkpoint", tensors, _files(path), {}, path, tree=structure
    )


def open_run(
    folder: pathlib.Path, step_folders: pathlib.Path, config: dict
) -> source.Source:
    """The newest finished checkpoint of a run directory.

    Args:
        folder: the run directory.
        step_folders, config: as `runs.merge_input` gives them.

    Raises:
        UserError: no finished checkpoint, or one that cannot be read.
    """
    steps = checkpoint.steps(step_folders)
    if not steps:
        raise errors.UserError(f"{folder} has no finished checkpoint")
    path = step_folders / str(steps[0])
    description, leaves = checkpoint_files.read_description(path)
    with _one_line(path):
        values = _Values(path.absolute())
        tensors = {
            name.removeprefix("params/"): values.locate(name.replace("/", "."), leaf)
            for name, leaf in leaves.items()
            if name.startswith("params/")
        }
    fingerprints = {
        name.removeprefix("params/"): value
        for name, value in description["fingerprint"].items()
        if name.startswith("params/")
    }
    return source.Source(
        str(folder),
        "run",
        tensors,
        _files(path),
        config,
        folder / config.get("tokenizer", ""),
        fingerprints,
        description.get("axes") or {},
        steps[0],
    )


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
    """Whatever Orbax or TensorStore says of a damaged checkpoint, in one line."""
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        checkpoint_files.refuse_unreadable(path, error)
        raise errors.UserError(
            f"checkpoint {path} cannot be read: {checkpoint_files.first_line(error)}"
        ) from None


def _files(path) -> list[str]:
    return sorted(str(file) for file in path.rglob("*") if file.is_file())


class _Values:
    """Where the OCDBT tree of a checkpoint keeps its values."""

    def __init__(self, path):
        import tensorstore as ts

        # At the top, or in the one folder that is not a process's own.
        manifests = [path / "manifest.ocdbt", *sorted(path.glob("*/manifest.ocdbt"))]
        folders = [
            each.parent
            for each in manifests
            if each.exists() and not each.parent.name.startswith("ocdbt.process_")
        ]
        if not folders:
            raise errors.UserError(
                f"{path} has no OCDBT manifest; save it with Orbax's use_ocdbt"
            )
        self._folder = str(folders[0])
        base = ts.KvStore.open({"driver": "file", "path": f"{self._folder}/"}).result()
        root = ts.ocdbt.dump(base).result()["versions"][-1]
        self._entries = {}
        if root["root_height"] == 0:  # higher trees hold 100 MB of entries
            node = ts.ocdbt.dump(base, root["root"]["location"]).result()
            self._entries = {e["key"].decode(): e for e in node["entries"]}

    def locate(self, name, leaf) -> source.Stored:
        shape, dtype = tuple(leaf.shape), _dtype_of(leaf.dtype)
        rows = self._rows(name, shape)
        if rows is None:
            return source.Stored(dtype, shape, fetch=self._fetcher(name, shape))
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        extents = []
        for number in range(-(-(shape[0] if shape else 1) // rows)):
            chunk = "/".join([str(number), *["0"] * (len(shape) - 1)])
            entry = self._entries.get(f"{name}/c/{chunk}" if shape else f"{name}/c")
            count = min(rows, (shape[0] if shape else 1) - number * rows)
            if entry is None:  # all zeros are not written by every writer
                return source.Stored(dtype, shape, fetch=self._fetcher(name, shape))
            if "inline_value" in entry:
                if len(extents) or count != (shape[0] if shape else 1):
                    return source.Stored(dtype, shape, fetch=self._fetcher(name, shape))
                value = entry["inline_value"][: count * row_bytes]
                return source.Stored(dtype, shape, inline=bytes(value))
            value = re.fullmatch(r"value:(.*):(\d+):(\d+)", entry["indirect_value"])
            if int(value[3]) < count * row_bytes:  # TensorStore says what is wrong
                return source.Stored(dtype, shape, fetch=self._fetcher(name, shape))
            folder = pathlib.Path(self._folder)
            file = str(paths.inside(folder, value[1].replace(":", ""), folder))
            extents.append(source.Extent(file, int(value[2]), count * row_bytes))
        return source.Stored(dtype, shape, tuple(extents))

    def _rows(self, name, shape) -> int | None:
        """Rows of a stored chunk, if values lie there plainly one after the other."""
        entry = self._entries.get(f"{name}/zarr.json", {})
        if "inline_value" not in entry or 0 in shape:
            return None
        spec = json.loads(entry["inline_value"])
        chunk = tuple(spec["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = spec["codecs"]
        if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
            inner = codecs[0]["configuration"]
            if tuple(inner["chunk_shape"]) != chunk or "index_location" in inner:
                return None
            codecs = inner["codecs"]
        plain = [{"configuration": {"endian": "little"}, "name": "bytes"}]
        if codecs != plain or chunk[1:] != shape[1:]:
            return None
        return chunk[0] if chunk else 1

    def _fetcher(self, name, shape):
        import tensorstore as ts

        is_old = f"{name}/.zarray" in self._entries
        store = ts.open(
            {
                "driver": "zarr" if is_old else "zarr3",
                "kvstore": {
                    "driver": "ocdbt",
                    "base": f"file://{self._folder}/",
                    "path": f"{name}/",
                },
            },
            read=True,
        ).result()

        def fetch(start, stop):
            if not shape:
                return store.read().result().reshape(1)
            row = math.prod(shape[1:])
            first, last = start // row, -(-stop // row)
            rows = store[first:last].read().result().reshape(-1)
            return rows[start - first * row : stop - first * row]

        return fetch


def _dtype_of(name: object) -> np.dtype:
    """A dtype by its name; bfloat16 is not one of numpy's."""
    return np.dtype(ml_dtypes.bfloat16 if str(name) == "bfloat16" else str(name))
