"""The command line: `jaxlab VERB`, also behind `python -m jaxlab.train`.

The grammar is in `commands/grammar.py`, the work in `commands/VERB.py`. A verb's module
is imported only when it runs, so that `jaxlab --help` and `jaxlab VERB --help` answer
at once, without jax. A user's mistake is one line on stderr and exit code 2; a defect
of ours keeps its traceback.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Sequence

import jaxlab
from jaxlab.commands import grammar
from jaxlab.core import host_memory


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: without the program's name; None takes it from `sys.argv`.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(grammar.overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"jaxlab {jaxlab.__version__}")
        return 0
    verb, *rest = argv
    try:
        args = grammar.parse(verb, rest)
    except grammar.UsageError as error:
        return _fail(str(error))
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    try:
        with _quiet(args.verbose):
            host_memory.keep_freed()  # before jax has threads
            command = importlib.import_module(f"jaxlab.commands.{verb}")
            return command.run(args) or 0
    except KeyboardInterrupt:
        return _fail(f"jaxlab {verb}: interrupted", code=130)
    except BrokenPipeError:  # the reader of our stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        return _fail(f"jaxlab {verb}: {message}")


@contextlib.contextmanager
def _quiet(verbose: bool):
    """Our log lines on stderr; the libraries' silenced."""
    from absl import logging as absl_logging

    # XLA's C++ log, read when jax is imported: 2 leaves errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("jax", "orbax", "flax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ours, handler = logging.getLogger("jaxlab"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
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


def _user_message(error: Exception) -> str | None:
    """What to tell the user, or None for a defect of ours."""
    from jaxlab.core import errors

    if isinstance(error, errors.UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    is_full = "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)
    if is_full:
        first = (str(error).splitlines() or ["no reason given"])[0][:200]
        return f"out of memory; use smaller batches or more devices ({first})"
    return None


def _fail(message: str, code: int = 2) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code
