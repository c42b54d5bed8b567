"""Checkpoint directory format: arrays, description, checksums, verification.

Orbax v1 writes zarr3 without compression (on random floats zstd gains 8 % of the size
for three times the time). Beside the arrays goes a checksum of every leaf, computed on
the devices (`tree.fingerprint`), so that a truncated, flipped or half-written
checkpoint is found when it is read.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import errors, interrupts, paths, tree

# In errors of jax, TensorStore and gcsfs that say nothing about the files.
_ELSEWHERE = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "DEADLINE_EXCEEDED",
    "Unable to initialize backend",
    "Too many open files",
    "Cannot allocate memory",
)
_PART_BYTES = 2**30  # read at a time to verify
NOT_FINITE = "NaN or infinity"  # what `verify` says of a leaf with its checksum


class CorruptError(errors.UserError):
    """A checkpoint cannot be read back as it was written."""


def describe(state: Any, axes: Mapping[str, list]) -> dict[str, Any]:
    """What is written beside the arrays: checksums, shapes and logical axes by path."""
    shapes = _shapes(state)
    return {
        "fingerprint": tree.fingerprint(state),
        "shapes": shapes,
        "axes": dict(axes),
    }


def load(path: pathlib.Path, abstract: Any) -> Any:
    """One checkpoint, checked leaf by leaf; of a part when `abstract` is a part.

    Raises:
        CorruptError: unreadable, or not what was saved.
        UserError: the structure differs; every difference is listed.
    """
    from orbax.checkpoint import v1 as ocp

    path = paths.absolute(path)
    metadata, saved = read_description(path)
    wanted = tree.flatten(abstract)
    _check_structure(path, saved, wanted)
    as_saved = jax.tree_util.tree_map_with_path(
        lambda p, leaf: _with_saved_dtype(leaf, saved[tree.path_name(p)]), abstract
    )
    settings = context()
    settings.pytree.loading.partial_load = len(wanted) < len(saved)
    with _tell_corrupt(path), settings:
        state = ocp.load(path, as_saved)
    if lines := tree.differences([as_saved, state]):
        raise CorruptError(f"checkpoint {path} is corrupt: {lines[0]}")
    _check_fingerprints(path, state, metadata["fingerprint"])
    return jax.tree.map(
        lambda leaf, to: leaf if leaf.dtype == to.dtype else leaf.astype(to.dtype),
        state,
        abstract,
    )


def load_leaves(
    path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Some leaves of a checkpoint by their paths, checked; of the wanted dtypes.

    Raises:
        CorruptError: unreadable, or not what was saved.
    """
    from orbax.checkpoint import v1 as ocp

    path = paths.absolute(path)
    metadata, _ = read_description(path)

    def leaf_to_load(key_path, leaf):
        name = tree.path_name(key_path)
        if name not in wanted:
            return ocp.PLACEHOLDER
        return _with_saved_dtype(wanted[name], leaf)

    abstract = ocp.metadata(path).metadata
    abstract = jax.tree_util.tree_map_with_path(leaf_to_load, abstract)
    with _tell_corrupt(path), context():
        leaves = tree.flatten(ocp.load(path, abstract))
    leaves = {name: leaves[name] for name in wanted}
    _check_fingerprints(path, leaves, metadata["fingerprint"])
    return {name: leaf.astype(wanted[name].dtype) for name, leaf in leaves.items()}


def _check_fingerprints(path, leaves: Any, expected: Mapping[str, int]) -> None:
    actual = tree.fingerprint(leaves)
    if wrong := [name for name in actual if actual[name] != expected[name]]:
        raise CorruptError(
            f"checkpoint {path} is corrupt: {len(wrong)} leaves do not match their "
            f"checksum, first {wrong[0]}"
        )


def verify(path: pathlib.Path) -> dict[str, str]:
    """Reads every leaf back: path -> what is wrong with it, "" where nothing is.

    Needs no model: the checkpoint describes itself. Leaves are read in parts of a
    gigabyte, into the memory of one device. What repeats the parameters, as moments
    and averages do, has to be finite as they have.

    Raises:
        CorruptError: its description cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    path = paths.absolute(path)
    metadata, leaves = read_description(path)
    expected = metadata["fingerprint"]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = [x.removeprefix("params") for x in leaves if x.startswith("params/")]

    def is_weight(name: str) -> bool:
        return any(name.endswith(param) for param in params)

    def faults(names: set[str]) -> dict[str, str]:
        def leaf_to_load(key_path, leaf):
            if tree.path_name(key_path) not in names:
                return ocp.PLACEHOLDER
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

        abstract = ocp.metadata(path).metadata
        abstract = jax.tree_util.tree_map_with_path(leaf_to_load, abstract)
        try:
            with context():
                arrays = tree.flatten(ocp.load(path, abstract))
            arrays = {name: arrays[name] for name in names}
            actual, broken = tree.fingerprint(arrays), {*tree.non_finite(arrays)}
        except Exception as error:
            refuse_unreadable(path, error)
            if len(names) == 1:
                return dict.fromkeys(names, f"cannot be read: {first_line(error)}")
            return {
                name: fault for one in names for name, fault in faults({one}).items()
            }
        return {
            name: "another checksum"
            if actual[name] != expected[name]
            else NOT_FINITE * (name in broken and is_weight(name))
            for name in names
        }

    texts = {
        name: text for part in _parts(leaves) for name, text in faults(part).items()
    }
    return {name: texts[name] for name in leaves}


def _parts(leaves: Mapping[str, Any]) -> Iterator[set[str]]:
    part, size = set(), 0
    for name, leaf in leaves.items():
        bytes_ = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        if part and size + bytes_ > _PART_BYTES:
            yield part
            part, size = set(), 0
        part.add(name)
        size += bytes_
    if part:
        yield part


def context():
    """How every checkpoint is written and read."""
    from orbax.checkpoint import v1 as ocp

    settings = ocp.Context()
    settings.array.saving.use_zarr3 = True
    settings.array.saving.use_compression = False
    return settings


def read_description(path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `save` wrote beside the arrays, saved leaves by path)."""
    from orbax.checkpoint import v1 as ocp

    is_whole = False
    with _tell_corrupt(path):
        # Of a relative path it reads only half.
        description = ocp.metadata(paths.absolute(path))
        leaves = {
            name: leaf
            for name, leaf in tree.flatten(description.metadata).items()
            if hasattr(leaf, "shape")
        }
        custom = dict(description.custom_metadata or {})
        shapes = {name: list(leaf.shape) for name, leaf in leaves.items()}
        # Orbax logs an unreadable description and goes on without it.
        is_whole = shapes == custom["shapes"] and {*shapes} == {*custom["fingerprint"]}
        if not is_whole:
            refuse_unreadable(path)
    if not is_whole:
        raise CorruptError(f"checkpoint {path} is corrupt: its files disagree")
    return custom, leaves


@contextlib.contextmanager
def _tell_corrupt(path) -> Iterator[None]:
    """Says of what Orbax raises while it reads whether the checkpoint is corrupt.

    Raises:
        CorruptError: its files are not what was written.
        UserError, Interrupt: it could not be read now; see `refuse_unreadable`.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        refuse_unreadable(path, error)
        raise CorruptError(
            f"checkpoint {path} cannot be read: {first_line(error)}"
        ) from None


def refuse_unreadable(path, error: Exception | None = None) -> None:
    """Raises where a checkpoint may be whole and only could not be read.

    Then no file is moved and no older checkpoint is used in its place.

    Args:
        path: of the checkpoint.
        error: that the reading raised; None where Orbax went on without a file.

    Raises:
        UserError: a file that may not be read, a device or a bucket that is not
            there, no memory.
        Interrupt: a signal came while it was read.
    """
    interrupts.check()
    if not paths.is_remote(path):
        _open_files(path)
    reason = "" if error is None else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(words in reason for words in _ELSEWHERE):
        raise errors.UserError(
            f"checkpoint {path} could not be read just now: {first_line(error)}; it is "
            "left as it is"
        ) from None


def _open_files(path) -> None:
    """Opens every file of a checkpoint, as a user who may not will be told by name."""

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        raise errors.UserError(
            f"checkpoint {path} cannot be read: {error.filename}: {error.strerror}; it "
            "is left as it is; make its files readable for this user, e.g. chmod -R "
            f"u+rX {path}"
        ) from None

    for folder, _, files in os.walk(path, onerror=refuse):
        for file in files:
            try:
                os.close(os.open(os.path.join(folder, file), os.O_RDONLY))
            except OSError as error:
                refuse(error)


def _shapes(state) -> dict[str, list[int]]:
    def shape(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return list(leaf.shape)

    return {name: shape(leaf) for name, leaf in tree.flatten(state).items()}


def _check_structure(path, saved, wanted) -> None:
    lines = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    parts = {name.split("/")[0] for name in wanted}
    lines += [
        f"{name} is only in the checkpoint"
        for name in saved
        if name.split("/")[0] in parts and name not in wanted
    ]
    for name in saved.keys() & wanted.keys():
        leaf = wanted[name]
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if not is_key and tuple(saved[name].shape) != tuple(leaf.shape):
            lines.append(f"{name}: saved {saved[name].shape}, wanted {leaf.shape}")
    if lines:
        shown = "; ".join(sorted(lines)[:8])
        raise errors.UserError(
            f"checkpoint {path} has another structure than this run ({len(lines)} "
            f"differences): {shown}"
        )


def _with_saved_dtype(leaf, saved):
    """The wanted placement with the saved dtype, so that checksums can be compared."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, saved.dtype, sharding=leaf.sharding)


def first_line(error: Exception) -> str:
    """The first line of an error, shortened."""
    lines: Iterator[str] = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)[:300]
