"""What verbs print: tables on stdout; or JSON alone, where `--json -` asks for it."""

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from jaxlab.core import errors, folders


def line(text: str) -> None:
    """A line on stdout, whatever the names in it hold."""
    print(errors.spell_out(text), flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns: the first on the left, the others, which are numbers, right.

    >>> table(["domain", "loss"], [["law", "3.1"], ["code", "10.2"]])
    domain  loss
    law      3.1
    code    10.2
    """
    rows = [[errors.spell_out(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for first, *others in rows:
        cells = [
            f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)
        ]
        print("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip(), flush=True)


def say_step(model: str, step: int | None) -> None:
    """Says on stderr which checkpoint of a run an answer is of."""
    if step is not None:
        print(f"INFO: {model}, step {step}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def json_on_stdout(args: argparse.Namespace) -> Iterator[None]:
    """With `--json -`, a verb's JSON goes to stdout and all that it prints to stderr.

    The verb writes a file, as always; nothing is printed of one that fails. A file that
    cannot be written is refused before the work.
    """
    wanted = getattr(args, "json", None)
    if wanted != "-":
        if wanted:
            folders.check_target("--json", wanted)
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "answer.json"
        args.json = str(file)
        with contextlib.redirect_stdout(sys.stderr):
            yield
        sys.stdout.write(file.read_text("utf-8"))
