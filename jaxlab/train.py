"""`fit`, the one training loop of every system, and the work of `jaxlab train`.

    resume > init_from > scratch;  then for each step:
        batch = batches(step)                     a pure function of (seed, step)
        grads = d/dparams sum(total) / sum(weight)      over all microbatches
        updates = tx.update(grads, ..., grad_fn=...)    any optax transform
        a step whose loss, gradient or new parameters are not finite changes nothing
        and is counted

A run that is killed and started again continues bit for bit: the state is in the
checkpoint, the data order is a function of the step, the keys are fold_in(key, step).
The loop reads only the metrics of the step before, so the device never waits for it.
"""

import contextlib
import functools
import importlib
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxlab.core import (
    checkpoint,
    errors,
    interrupts,
    locks,
    paths,
    process,
    profiling,
    progress,
    ranges,
    report,
    runs,
    step_rows,
    tree,
    types,
)
from jaxlab.core import config as config_lib
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import state as state_lib
from jaxlab.core import step as step_lib

_SILENT = contextlib.nullcontext()
_DATA_PATHS = ("data.source", "data.folder", "data.files", "data.tokenizer")


class Result(NamedTuple):
    """What `fit` returns."""

    state: types.TrainState
    finished: bool  # False when a signal ended the run early
    signal: int | None = None  # that did


def fit(
    experiment: types.Experiment,
    workdir: str | pathlib.Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    save_every: int | None = None,
    eval_every: int | None = None,
    keep: int = 2,
    keep_every: int | None = None,
    max_skipped: int = 10,
    name: str = "",
    is_brief: bool = False,
    log_seconds: float = 5.0,
    profile: int = 0,
    programs: dict | None = None,
) -> Result:
    """Runs an experiment to its last step, resuming what `workdir` holds.

    Args:
        experiment: what to train.
        workdir: gets config.json, metrics.jsonl and checkpoints/<step>/; a folder, or
            gs://BUCKET/FOLDER, where metrics.jsonl is at most half a minute old.
        mesh: of devices; None puts all of them on the `data` axis.
        save_every: steps between checkpoints; None or 0 saves only at the end.
        eval_every: steps between evaluations; None or 0: only at the end.
        keep, keep_every: see `checkpoint.Checkpointer`.
        max_skipped: non-finite steps in a row after which the run stops.
        name: shown in front of the rows.
        is_brief: little goes to stdout: of a run that is one of many.
        log_seconds: how often a row goes to stdout; metrics.jsonl gets every step.
        profile: steps after the first that are traced into `workdir`/profile.
        programs: the steps of earlier runs that differ in their traced numbers, seed
            and data alone; this run takes its own from there, or adds it.

    Raises:
        UserError: another run or config in `workdir`, NaN weights, missing data, a full
            disk, or too many non-finite steps. What was trained is on disk.
    """
    often = {"save_every": save_every, "eval_every": eval_every, "profile": profile}
    often |= {"keep": keep, "keep_every": keep_every, "log_seconds": log_seconds}
    often |= {"max_skipped": max_skipped}
    ranges.check("run.", often, dict.fromkeys(often, ranges.AT_LEAST_0))
    ranges.check("", {"seed": experiment.seed}, {"seed": ranges.AT_LEAST_0})
    workdir, steps = paths.path(workdir), experiment.steps
    mesh = mesh_lib.make_mesh() if mesh is None else mesh
    if jax.process_count() > 1:
        mesh_lib.check_batches(experiment.batches)
    folder = runs.checkpoints(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_hold(workdir))
        stack.enter_context(mesh_lib.use(mesh))
        stop = stack.enter_context(process.stop_on_signal())
        paths.make_folder(workdir)
        runs.refuse_other_folder(workdir)
        if checkpoint.steps(folder):  # else there is nothing to be spoilt
            runs.check_config(workdir, experiment.config, free=_free_keys(experiment))

        # ---- resume > init_from > scratch
        target, axes = state_lib.abstract(experiment, mesh)
        restored = checkpoint.restore(folder, target)
        first, state = restored or (0, state_lib.initial(experiment, target))
        _check_finite(state.params, folder / str(first) if restored else None)
        if jax.process_index() == 0:
            runs.write_config(workdir, experiment.config)
        saver = stack.enter_context(
            checkpoint.Checkpointer(folder, keep=keep, keep_every=keep_every, axes=axes)
        )
        rows = stack.enter_context(
            report.Reporter(
                workdir, steps, first, name=name, is_brief=is_brief, seconds=log_seconds
            )
        )
        meter = step_rows.StepRows(experiment, rows, max_skipped)
        meter.start(first, state, mesh)
        profiler = stack.enter_context(profiling.Profile(workdir, first, profile))
        train_step, numbers = step_lib.make_step(experiment, target), experiment.traced
        if programs is not None and numbers:
            train_step = programs.setdefault(tuple(numbers), train_step)

        announce = functools.partial(progress.announce, say=rows.say)

        # ---- the loop
        try:
            for step in range(first, steps):
                batch = mesh_lib.global_batch(experiment.batches, step, mesh)
                profiler.next(step, state)
                with announce("compiling the step") if step == first else _SILENT:
                    state, metrics = train_step(
                        state, batch, experiment.frozen, numbers
                    )
                done = step + 1
                meter.next(done, metrics, batch)
                last = done == steps or stop(done)
                if _due(done, eval_every) or done == steps:
                    meter.flush()
                    for target_name, evaluate in experiment.evals.items():
                        with announce(f"evaluating on {target_name}"):
                            result = evaluate(state.params)
                        rows.evaluation(done, target_name, result)
                    rows.publish()
                if _due(done, save_every) or last:
                    meter.flush()  # rows first: a resumed run writes only those after
                    rows.publish()
                    _check_finite(state.params, folder / str(done))
                    saver.save(done, state)
                if last:
                    break
        except errors.UserError:
            # Data or numbers failed, not the weights: a bad step leaves them alone.
            with contextlib.suppress(errors.UserError):
                meter.flush()
                rows.publish()
            with contextlib.suppress(errors.UserError):
                _check_finite(state.params, None)
                saver.save(int(state.step), state)
            raise
        meter.flush()
        with announce("saving the last checkpoint"):
            saver.wait()
        done = int(state.step)
        if done >= steps:
            return Result(state, finished=True)
        rows.say(f"stopped at step {done}, saved; the same command continues")
        return Result(state, finished=False, signal=stop.signal)


def main(argv: Sequence[str], *, dry_run: bool = False) -> int:
    """`--config=FILE[:VARIANT] [--config.KEY=VALUE ...] --workdir=DIR` -> fit.

    Args:
        argv: the flags.
        dry_run: say what would be trained, and write nothing.

    The config names its system, e.g. "olmo.pretrain" is
    `jaxlab.systems.olmo.pretraining.pretrain(config, workdir, mesh)`; one that keeps
    files of its own refuses a bucket itself.

    Raises:
        Interrupt: a signal ended the run early, what was trained is saved; so that
            nobody takes it for a run that is finished.
    """
    # By name: `fit` stands below the systems, which call it.
    systems = importlib.import_module("jaxlab.systems")
    short_runs = importlib.import_module("jaxlab.systems.short_runs")
    config, workdir = config_lib.parse(argv, short_runs.shorten_schedule)
    importlib.import_module("jaxlab.systems.checks").check(config)
    process.start()
    mesh = mesh_lib.make_mesh(config.mesh.to_dict())
    if dry_run:
        describe = importlib.import_module("jaxlab.systems.dry_run").describe
        for what, words in describe(config, workdir, mesh):
            progress.line(f"{what:<8}  {words}")
        progress.line("a dry run: nothing was trained, and nothing written")
        return 0
    system = systems.resolve(systems.entry(config.system).experiment)
    if paths.is_remote(workdir):
        paths.make_folder(workdir)  # asked before the work, not after it
    runs.refuse_other_folder(workdir)
    with _hold(workdir):
        try:
            with mesh_lib.use(mesh), progress.announce("preparing data and model"):
                experiment = system(config, workdir, mesh)
        except errors.ArgumentError as error:  # how models, objectives refuse settings
            raise errors.UserError(f"this config does not work: {error}") from error
        result = fit(experiment, workdir, mesh=mesh, **config.run.to_dict())
    if not result.finished:
        raise interrupts.Interrupt(result.signal)
    if jax.process_index() == 0:
        progress.line(f"{workdir} holds the trained model; {_what_next(workdir)}")
    return 0


def _what_next(workdir: pathlib.Path) -> str:
    """What a finished run is good for, as commands."""
    kind = runs.read(workdir).kind
    if kind == "encoder":
        return f"search with it: jaxlab retrieve index ... --encoder {workdir}"
    if kind == "scorer":
        return f"rerank with it: jaxlab retrieve ... --reranker {workdir}"
    if kind == "classifier":
        return f"its accuracy is in {workdir / runs.METRICS}"
    return f"try jaxlab generate {workdir} --prompt '...', jaxlab evaluate {workdir}"


def _hold(workdir: str | pathlib.Path) -> contextlib.AbstractContextManager:
    """The run directory for this run alone; of several hosts the first one asks."""
    if jax.process_index() != 0:
        return contextlib.nullcontext()
    return locks.hold(workdir, "jaxlab train")


def _free_keys(experiment: types.Experiment) -> tuple[str, ...]:
    """Config keys that may change on resume: how a run is computed, not what.

    Of the model, those that its config calls free; but not the dtype: the run would go
    on in another rounding than it began.
    """
    config = getattr(experiment.model, "config", None)
    names = [name for name in getattr(config, "FREE", ()) if name != "dtype"]
    order = experiment.config.get("data_order")
    data = _DATA_PATHS if order else ()  # it says what is read, wherever that lies now
    # Told by what the run began with (`corpora.held_out_windows`), not set by anybody.
    told = ("held_out_windows", "base.path")
    return ("mesh", "run", *told, *(f"model.{name}" for name in names), *data)


def _check_finite(params: types.Params, step_folder: pathlib.Path | None) -> None:
    """Refuses to train on, or to save as `step_folder`, what is not finite."""
    if not (bad := tree.non_finite(params)):
        return
    what = f"NaN or infinity in {len(bad)} "
    if step_folder is None:
        raise errors.UserError(
            f"{what}starting weights, first {bad[0]}; start from another checkpoint"
        )
    raise errors.UserError(
        f"{what}weights of {step_folder}, first {bad[0]}; remove that folder, if it is "
        "there, and start the same command to go on from the checkpoint before it"
    )


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


if __name__ == "__main__":  # the same as `python -m jaxlab train`
    sys.argv.insert(1, "train")
    runpy.run_module("jaxlab", run_name="__main__")
