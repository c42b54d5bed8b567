"""The command line: `jaxlab VERB`, also behind `python -m jaxlab` and `jaxlab.train`.

A verb is one file, or folder, of `commands/`: SUMMARY, DETAILS, `arguments(parser)`,
`run(args)` and, where argparse alone does not do, `parse(parser, argv)`. It is imported
when it is asked for and imports the work when it runs, so that `jaxlab --help` and
`jaxlab VERB --help` answer at once, without jax. A user's mistake is one line on stderr
and exit code 2; a defect of ours keeps its traceback.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import jaxlab
from jaxlab.commands import arguments, output
from jaxlab.core import accelerators, errors, host_memory, interrupts

# Verb -> its line in `jaxlab --help` (SUMMARY in its file) and its module.
VERBS = {
    "train": (
        "Train what a config describes, or resume it",
        "jaxlab.commands.train",
    ),
    "configs": (
        "List the configs that come with jaxlab, or explain every key of one",
        "jaxlab.commands.configs",
    ),
    "evaluate": (
        "Perplexity of a model on held-out text, or its choice among answers",
        "jaxlab.commands.evaluate",
    ),
    "generate": (
        "Continue prompts",
        "jaxlab.commands.generate",
    ),
    "merge": (
        "Merge models into one, streaming, by a recipe or as an average",
        "jaxlab.commands.merge",
    ),
    "ablate": (
        "Predict how data mixtures would train, from experts merged",
        "jaxlab.commands.ablate",
    ),
    "retrieve": (
        "Search a corpus of texts, and learn from a reranker while answering",
        "jaxlab.commands.retrieve",
    ),
    "tram": (
        "Compare optimizers by what a model does where it was not trained",
        "jaxlab.commands.tram",
    ),
    "plan": (
        "Memory, time and cost of a training step on TPUs that are not here",
        "jaxlab.commands.plan",
    ),
    "convert": (
        "Write a model as a Hugging Face folder, with its tokenizer",
        "jaxlab.commands.convert",
    ),
    "checkpoint": (
        "List, verify or export the checkpoints of a run",
        "jaxlab.commands.checkpoint",
    ),
    "data": (
        "Prepare text, or look up what a step read",
        "jaxlab.commands.data",
    ),
    "doctor": (
        "Versions, devices, caches, extras, disk and locks of this machine",
        "jaxlab.commands.doctor",
    ),
    "demo": (
        "A whole data ablation on real text, within minutes",
        "jaxlab.commands.demo",
    ),
}

_SPACE = "free some disk space, and start the same command again"
_RIGHTS = "give yourself the right to (ls -l says whose it is), or use another path"
_FIXES = {  # of what the operating system refuses, where its words are not enough
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "that disk cannot be written; use another path",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.ENOTDIR: "a part of that path is a file; use another path",
    errno.EISDIR: "that is a folder; name a file",
    errno.EEXIST: "that is a file; remove it, or name another folder",
    errno.ENOENT: "look at its spelling, or make its folder first",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENAMETOOLONG: "use a shorter name",
}


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: without the program's name; None takes it from `sys.argv`.

    Returns:
        The exit code: 0, 2 for a user's mistake; 130 after Ctrl-C and 143 after
        SIGTERM, whether the command had begun its work or saved it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = " ".join(["jaxlab", *argv[:1]])
    _write_any_character()
    try:
        with interrupts.raise_signals():
            code = _run(argv)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a reader that is gone is expected
            interrupts.check()  # a library may have swallowed it
            return code
    except arguments.UsageError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        return _fail(f"{name}: interrupted", code=interrupts.exit_code(error))
    except BrokenPipeError:  # the reader of our stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        return _fail(f"{name}: {message}")


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help") or argv == ["help"]:
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"jaxlab {jaxlab.__version__}")
        return 0
    verb, *rest = argv
    if verb == "help":
        verb, rest = rest[0], ["--help"]
    if verb in ("-v", "--verbose") and rest:
        verb, *rest = [*rest, verb]
    try:
        args = parse(verb, rest)
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    with _quiet(args.verbose), output.json_on_stdout(args):
        host_memory.keep_freed_memory()  # before jax has threads
        accelerators.skip_absent_tpu()  # before jax looks for one
        return _command(verb).run(args) or 0


def check(argv: Sequence[str], where: str = "", user: str = ".") -> int:
    """What `launch/` asks of a command line before it pays for the machine to run it.

    Args:
        argv: as for `run`. Nothing is run, no device is looked at.
        where: it will run: "here"; "new", on a machine that has yet to be made from
            the checkout in this folder; "there", on one that was. Whether it has the
            text and the models that are named is looked for; "": it is not.
        user: the folder where the user is.

    Returns:
        0, perhaps after notes on stdout; 2 after one line on stderr where `run` would
        refuse it; 3 where this Python lacks what is needed to say.
    """
    verb, *rest = [*argv, ""][: max(len(argv), 1)]
    try:
        args = parse(verb, rest)
        from jaxlab.commands import local_inputs

        look = getattr(_command(verb), "check", None)
        if look is not None:
            look(args)
        for note in local_inputs.check(_command(verb), args, where, user):
            print(note)
    except arguments.UsageError as error:
        return _fail(str(error))
    except SystemExit:  # --help was printed
        return 0
    except ImportError:
        return 3
    except errors.UserError as error:
        return _fail(f"jaxlab {verb}: {error}")
    return 0


def overview() -> str:
    """What `jaxlab --help` prints."""
    lines = [f"  {verb:<12}{summary}" for verb, (summary, _) in VERBS.items()]
    more = "`jaxlab VERB --help` shows more; `-v` after a verb logs what it does."
    return "\n".join(["usage: jaxlab VERB [ARGUMENTS]", "", *lines, "", more])


def parse(verb: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb; only the verb's own file is imported.

    Raises:
        UsageError: with the nearest verb or option for a misspelt one.
        SystemExit: after --help.
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(VERBS)}"
        raise arguments.UsageError(f"jaxlab: unknown verb {verb!r}; {hint}")
    command = _command(verb)
    description = f"{command.SUMMARY}.\n\n{command.DETAILS}".strip()
    parser = arguments.Parser(f"jaxlab {verb}", description=description)
    parser.set_defaults(verbose=False)
    command.arguments(parser)
    if hasattr(command, "parse"):
        return command.parse(parser, argv)
    return parser.parse_args(argv)


def _command(verb: str) -> ModuleType:
    _, module = VERBS[verb]
    return importlib.import_module(module)


@contextlib.contextmanager
def _quiet(verbose: bool):
    """Our log lines on stderr; the libraries' silenced."""
    from absl import logging as absl_logging

    # XLA's C++ log, read when jax is imported: 2 leaves errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Orbax logs a failed save from every one of its threads, with a thousand lines of
    # traceback; what it raises in the end is told in one line of ours.
    absl_logging.set_verbosity(absl_logging.ERROR if verbose else absl_logging.FATAL)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _leave_out_late_reads
    for name in ("jax", "orbax", "flax", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR if verbose else logging.CRITICAL)
    ours, handler = logging.getLogger("jaxlab"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(levelname)s: %(message)s"))
    level, propagate = ours.level, ours.propagate
    ours.propagate = False  # some library installs a root handler: every line twice
    ours.setLevel(logging.INFO if verbose else logging.WARNING)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = propagate


def _leave_out_late_reads(kind, error, trace) -> None:
    """Prints an exception that nobody caught, but for those of orbax's threads.

    After a read that failed they still report to its loop, which was closed: pages of
    traceback around the one line of ours, until the process ends.
    """
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


class _Line(logging.Formatter):
    """Names of others cannot command the terminal, nor forge a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return errors.spell_out(super().formatMessage(record))


def _write_any_character() -> None:
    """A character that stdout or stderr does not have is written as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _user_message(error: Exception) -> str | None:
    """What to tell the user, or None for a defect of ours."""
    if isinstance(error, errors.UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename else ""
        fix = _FIXES.get(error.errno, "")
        return f"{file}{error.strerror}{fix and f'; {fix}'}"
    is_full = "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)
    if is_full:
        first = (str(error).splitlines() or ["no reason given"])[0][:200]
        return f"out of memory; use smaller batches or more devices ({first})"
    return None


def _fail(message: str, code: int = 2) -> int:
    print(errors.spell_out(" ".join(message.split())), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run())
