"""`jaxlab checkpoint`: what a run has saved, whether it is whole, and as a folder."""

import argparse
import time

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import convert, output
from jaxlab.core import accelerators, errors, missing_models, paths, runs

SUMMARY = "List, verify or export the checkpoints of a run"
DETAILS = """\
RUN is a run directory, also one in a bucket. For example:

  jaxlab checkpoint ls runs/tiny
  jaxlab checkpoint verify gs://bucket/run --all
  jaxlab checkpoint export gs://bucket/run exported --dtype bfloat16"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = arguments_lib.add_action(actions, "ls", "Which checkpoints a run has")
    verify = arguments_lib.add_action(
        actions,
        "verify",
        "Read checkpoints back and compare every leaf with its checksum",
        "The exit code is 1 where one is corrupt, or holds NaN or infinity.",
    )
    export = arguments_lib.add_action(
        actions, "export", "Write the parameters as a Hugging Face folder"
    )
    for action in (listing, verify, export):
        action.add_argument("run", metavar="RUN")
    which = verify.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="default: the newest")
    which.add_argument("--all", action="store_true", help="every finished one")
    export.add_argument("out", metavar="OUT", help="a new folder")
    export.add_argument("--step", type=int, metavar="N", help="default: the newest")
    arguments_lib.add_dtype(export)


def run(args: argparse.Namespace) -> int:
    """Runs the action; 1 where a checkpoint is corrupt or not finite."""
    return {"ls": _list, "verify": _verify, "export": _export}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from jaxlab.core import checkpoint, progress

    folder = checkpoint.folder_of(args.run)
    every = runs.keep_every(folder.parent)
    rows = []
    for entry in _entries(args.run):
        age = "-"  # of a save that was killed nothing says when
        if entry.is_finished:
            age = progress.duration(time.time() - checkpoint.finished_at(entry.path))
        rows.append(
            [
                str(entry.step),
                f"{paths.size_bytes(entry.path) / 1e6:,.2f}",
                age,
                "for good" if every and entry.step % every == 0 else "the last",
                "ok" if entry.is_finished else "unfinished",
            ]
        )
    output.table(["step", "MB", "age", "kept", "state"], rows)
    return 0


def _verify(args: argparse.Namespace) -> int:
    accelerators.check()
    finished = {e.step: e.path for e in _entries(args.run) if e.is_finished}
    if not finished or (args.step is not None and args.step not in finished):
        have = ", ".join(map(str, finished)) or "none"
        raise errors.UserError(
            f"{args.run} has no checkpoint of step {args.step}; use one of {have}"
            if finished
            else f"{args.run} has no finished checkpoint; train it further"
        )
    newest = next(iter(finished))
    chosen = [*finished] if args.all else [newest if args.step is None else args.step]
    return max([_verify_one(step, finished[step]) for step in chosen])


def _verify_one(step: int, path) -> int:
    from jaxlab.core import checkpoint_files

    try:
        faults = checkpoint_files.verify(path)
    except checkpoint_files.CorruptError as error:
        output.line(f"step {step}: {error}")
        return 1
    wrong = [f"{name} ({fault})" for name, fault in faults.items() if fault]
    if not wrong:
        output.line(f"step {step}: ok, {len(faults)} leaves have their checksums")
        return 0
    shown = "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
    count = f"{len(wrong)} of {len(faults)} leaves"
    is_whole = {*faults.values()} <= {"", checkpoint_files.NOT_FINITE}
    kind = "not finite" if is_whole else "corrupt"
    output.line(f"step {step}: {kind}, {count}: {shown}")
    return 1


def _export(args: argparse.Namespace) -> int:
    if paths.is_remote(args.out):
        raise errors.UserError(f"{args.out} is no local folder; export, then copy it")
    run = runs.find(args.run)
    if run is None:
        raise errors.UserError(f"{args.run} is a Hugging Face folder already")
    if run.kind in ("encoder", "scorer"):
        raise errors.UserError(f"{args.run} is an encoder; only decoders are exported")
    convert.export(args.run, args.out, step=args.step, dtype=args.dtype)
    return 0


def _entries(run: str) -> list:
    from jaxlab.core import checkpoint

    entries = checkpoint.entries(checkpoint.folder_of(run))
    if not paths.is_folder(paths.path(run)):
        raise missing_models.explain(run)
    if not entries:
        raise errors.UserError(f"{run} has no checkpoint; give a run directory")
    return entries
