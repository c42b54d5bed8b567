"""A tiny pool of experts, as `jaxlab ablate` makes it, and how its answers are read."""

import json
import pathlib
import random

from jaxlab import ablation
from jaxlab.systems import sizes

WORDS = {
    "law": "the licensee shall retain this notice and any person may distribute it",
    "code": "def total ( items ) : return sum ( value for value in items )",
    "cook": "stir the butter into warm flour then add salt and simmer gently",
    "sea": "the captain sailed his ship over the cold waves to a far harbour",
}
TINY = sizes.Size(32, 1, 2, 64, 330, 32, 8, 6, 1e-2, 1, 3, 5e-3, 2, 0)
MADE = ("--size=quick", "--unit-steps=3")


def write_text(folder: pathlib.Path) -> None:
    """Folders of text: three partitions in `text`, and one in `more`, to be added."""
    draw = random.Random(0)
    for domain, words in WORDS.items():
        part = folder / ("more" if domain == "sea" else "text") / domain
        part.mkdir(parents=True)
        for number in range(16):
            lines = [" ".join(draw.choices(words.split(), k=9)) for _ in range(12)]
            (part / f"{number}.txt").write_text("\n".join(lines) + "\n")


def contents(folder):
    """Path -> bytes of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(shown, heading):
    """Rows of the printed table under a heading, as lists of cells."""
    lines = shown[shown.index(heading) :].splitlines()
    start = next(i for i, row in enumerate(lines) if "mixture" in row.split()) + 1
    rows = []
    for row in lines[start:]:
        if "  " not in row:
            break
        rows.append([cell for cell in row.split("  ") if cell.strip()])
    return rows


def last_perplexity(run_dir, target):
    """The last perplexity of a target in a run's metrics."""
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").open()]
    key = f"eval/{target}/perplexity"
    return next(row[key] for row in reversed(rows) if key in row)


def forbid_models(monkeypatch, *names):
    """Lets what runs models fail: nothing may call it."""

    def fail(*args, **kwargs):
        raise AssertionError("a model is run")

    for name in names:
        monkeypatch.setattr(ablation, name, fail)
