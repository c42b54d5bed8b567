"""Checkpoints of a run: save in the background, restore the newest good one.

Orbax v1 writes `DIR/<step>/`. A corrupt checkpoint is found when it is read (see
`core/checkpoint_files.py`), and the newest good one before it is used and named. Mesh
and dtype may differ between saving and loading.
"""

import contextlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.core import checkpoint_files, errors, paths, runs, tree, types
from jaxlab.core import mesh as mesh_lib

METADATA = "_CHECKPOINT_METADATA"
_COMMITTED = "commit_success.txt"  # in a bucket, where nothing can be renamed, the last

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves states of a run in the background and keeps the last few.

    Use as a context manager, so that the last save is finished and its errors seen.

    Args:
        directory: where the step folders go; local, or gs://.
        keep: how many checkpoints stay; at least 2, so that a corrupt last one
            still leaves a good one.
        keep_every: steps that are multiples of this are never deleted; None for none.
        axes: logical axis names by parameter path, saved for loading onto a mesh.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        axes: Mapping[str, list] | None = None,
    ):
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        policy = policies.LatestN(max(keep, 2))
        if keep_every:
            policy = policies.AnyPreservationPolicy(
                [policy, policies.EveryNSteps(keep_every)]
            )
        self.directory = paths.absolute(directory)
        self._axes = dict(axes or {})
        self._pending = None
        with _one_line(f"cannot open {self.directory}"):
            paths.make_folder(self.directory)
            self._last = next(iter(steps(self.directory)), None)
            if not paths.is_remote(self.directory):  # there Orbax removes them
                _set_aside(self.directory, _unfinished_steps(self.directory))
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                context=checkpoint_files.context(),
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception) -> None:
        try:
            self.wait()
        finally:
            try:
                self._orbax.close()
            except Exception as error:
                # After a failed save it raises that save's error again, and at length.
                _log.warning(
                    "closing %s: %s", self.directory, checkpoint_files.first_line(error)
                )

    def save(self, step: int, state: Any) -> None:
        """Starts saving `state` as `step`; the arrays may be donated afterwards.

        A step that is on disk already is left as it is.

        Args:
            step: number of updates done.
            state: a pytree of arrays.

        Raises:
            UserError: the save before this one failed, e.g. the disk is full.
        """
        self.wait()
        if step in steps(self.directory):
            return
        metadata = checkpoint_files.describe(state, self._axes)
        with self._explain_failed_save(step):
            self._pending = (
                step,
                self._orbax.save_async(
                    step, state, force=True, custom_metadata=metadata
                ),
            )

    def wait(self) -> None:
        """Waits until the last save is on disk; raises UserError if it failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with self._explain_failed_save(step):
            response.result()
        self._last = step

    def _explain_failed_save(self, step: int):
        last_good = "none is left"
        if self._last is not None:
            last_good = f"step {self._last} is the last good checkpoint"
        return _one_line(
            f"saving step {step} to {self.directory} failed; {last_good}; free some "
            "disk space, or mend what is said here, and start the same command again"
        )


class Entry(NamedTuple):
    """A step folder."""

    step: int
    path: pathlib.Path
    is_finished: bool  # else its save was killed, or is still going on


def entries(directory: str | pathlib.Path) -> list[Entry]:
    """All step folders of a folder, newest first."""
    folder = paths.path(directory)
    if not paths.is_folder(folder):
        return []
    last = _COMMITTED if paths.is_remote(folder) else METADATA  # written when all is
    step_folders = []
    with paths.explain_errors(folder):
        for path in folder.iterdir():
            step = path.name.partition(".orbax-checkpoint-tmp")[0]
            if step.isdecimal():
                is_finished = path.name == step and paths.exists(path / last)
                step_folders.append(Entry(int(step), path, is_finished))
    return sorted(step_folders, key=lambda entry: entry.step, reverse=True)


def finished_at(path: pathlib.Path) -> float:
    """When a checkpoint was finished, in seconds since 1970."""
    return paths.modified_at(path / (_COMMITTED if paths.is_remote(path) else METADATA))


def steps(directory: str | pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, newest first."""
    return [entry.step for entry in entries(directory) if entry.is_finished]


def folder_of(run: str | pathlib.Path) -> pathlib.Path:
    """Where the step folders are: of a run directory, or this folder itself."""
    return runs.checkpoints(run) if runs.has_checkpoints(run) else paths.path(run)


def _unfinished_steps(directory: pathlib.Path) -> list[int]:
    """Steps of folders without a whole checkpoint; orbax would refuse to save them."""
    unfinished = [entry for entry in entries(directory) if not entry.is_finished]
    return sorted(entry.step for entry in unfinished if entry.path.name.isdecimal())


def restore(directory: pathlib.Path, abstract: Any) -> tuple[int, Any] | None:
    """The newest good checkpoint, or None when there is none to be had.

    Args:
        directory: of the step folders.
        abstract: ShapeDtypeStructs with shardings: structure, dtype and placement of
            the result. They may differ from those that were saved.

    Returns:
        (step, state). Corrupt checkpoints after it are named in the log and moved to
        `DIR/../corrupt`, so that the run can save their steps again.

    Raises:
        UserError: the saved structure is not that of `abstract`, or every checkpoint
            is corrupt.
    """
    broken = []
    for step in steps(directory):
        try:
            state = checkpoint_files.load(paths.path(directory) / str(step), abstract)
        except checkpoint_files.CorruptError as error:
            _log.warning("%s; trying the one before", error)
            broken.append(step)
            continue
        if broken:
            _log.warning("using checkpoint %d, the newest good one", step)
        _set_aside(paths.path(directory), broken)
        return step, state
    if broken:
        raise errors.UserError(
            f"every checkpoint in {directory} is corrupt ({_words(broken)}); restore "
            "one from a copy, or start again with another --workdir"
        )
    return None


def load_params(
    directory: pathlib.Path,
    step: int | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    average: bool = False,
) -> types.Params:
    """The parameters of a run, without its optimizer; arguments as for `load_step`."""
    return load_step(directory, step, mesh, dtype, average=average)[1]


def load_step(
    directory: pathlib.Path,
    step: int | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    average: bool = False,
) -> tuple[int, types.Params]:
    """A step of a run and its parameters, without its optimizer.

    Args:
        directory: a run directory, or its `checkpoints` folder.
        step: which checkpoint; None for the newest good one.
        mesh: where to put them, by the logical axes saved with them; None for the
            first device.
        dtype: of the floating leaves; None as saved.
        average: their moving average instead, which a run with `optim.ema` keeps.

    Raises:
        UserError: no such checkpoint, a corrupt one was asked for by step, weights
            that are not finite, or a run without the average.
    """
    folder = folder_of(directory)
    saved_steps = steps(folder)
    if not saved_steps or (step is not None and step not in saved_steps):
        which = "" if step is None else f" of step {step}"
        have = (
            f"it has steps {_words(saved_steps)}"
            if saved_steps
            else "give a run of jaxlab train that has saved one"
        )
        raise errors.UserError(f"{folder} has no checkpoint{which}; {have}")
    for candidate in saved_steps if step is None else [step]:
        try:
            params = _load_params(folder / str(candidate), mesh, dtype, average)
        except checkpoint_files.CorruptError as error:
            if step is not None:
                raise
            _log.warning("%s; trying the one before", error)
            continue
        if bad := tree.non_finite(params):
            raise errors.UserError(
                f"{folder / str(candidate)} holds NaN or infinity in {len(bad)} of "
                f"{len(tree.flatten(params))} weights, first {bad[0]}; take another "
                f"step of {_words(saved_steps)}, or train again"
            )
        return candidate, params
    raise errors.UserError(
        f"every checkpoint in {folder} is corrupt ({_words(saved_steps)})"
    )


def _load_params(path, mesh, dtype, average):
    metadata, leaves = checkpoint_files.read_description(path)
    axes = metadata.get("axes") or {}
    params = {name: leaf for name, leaf in leaves.items() if name.startswith("params/")}
    prefix = _average_prefix(path, params, leaves) if average else ""

    def abstract(name, leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if mesh is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        else:
            names = axes.get(name.removeprefix("params/")) or [None] * len(leaf.shape)
            rules = dict(mesh_lib.RULES)
            spec = P(*(None if axis is None else rules[axis] for axis in names))
            sharding = NamedSharding(mesh, spec)
        kind = jnp.dtype(dtype) if dtype is not None and floating else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)

    wanted = {name: abstract(name, leaf) for name, leaf in params.items()}
    if average:
        # The average of a parameter has another name in the file: average -> parameter.
        names = {prefix + name.removeprefix("params/"): name for name in wanted}
        averages = checkpoint_files.load_leaves(
            path, {average: wanted[name] for average, name in names.items()}
        )
        return _nest({names[key]: leaf for key, leaf in averages.items()})["params"]
    return checkpoint_files.load(path, _nest(wanted))["params"]


def _average_prefix(path, params, leaves) -> str:
    """Where in the saved state `optim.build.EmaState` lies: its field is `average`."""
    first = next(iter(params)).removeprefix("params/")
    end = f"/average/{first}"
    prefixes = [name.removesuffix(first) for name in leaves if name.endswith(end)]
    if len(prefixes) != 1:
        raise errors.UserError(
            f"{path} has no average of the parameters; train with --config.optim.ema"
        )
    return prefixes[0]


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return nested


def _set_aside(directory: pathlib.Path, broken: list[int]) -> None:
    if not broken or jax.process_index() != 0:
        return
    aside = directory.parent / "corrupt"
    if not paths.is_remote(aside) and aside.is_symlink():
        raise errors.UserError(
            f"{aside} is a link, and checkpoints that are corrupt are moved there "
            f"({_words(broken)}); remove it"
        )
    for step in broken:
        target = aside / str(step)
        paths.move(directory / str(step), target)
        _log.warning("moved corrupt checkpoint %d to %s", step, target)


@contextlib.contextmanager
def _one_line(message: str):
    """Turns any error of the checkpoint library into one line that says what to do."""
    try:
        yield
    except Exception as error:
        raise errors.UserError(
            f"{message} ({checkpoint_files.first_line(error)})"
        ) from error


def _words(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps)
