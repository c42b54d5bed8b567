"""The rules that a reader relies on: arrows, imports, sizes, a README that runs."""

import ast
import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from jaxlab import cli
from jaxlab.core import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxlab").rglob("*.py"))
README = ROOT / "README.md"
ROOMS_READMES = [
    *sorted((ROOT / "jaxlab").rglob("README.md")),
    *(file for folder in ("launch", "tools") for file in (ROOT / folder).glob("*.md")),
]
READMES = [README, *ROOMS_READMES]

# A room imports rooms of lower ranks and itself. `train.fit` stands on `core` alone, so
# systems may call it; `train.main` finds its system by name, when it runs.
RANKS = (
    ("core",),
    (
        "models", "data", "optim", "objectives", "stats", "merge", "sandbox",
        "similarity", "plan", "reports", "train",
    ),
    ("load", "generate", "remote"),
    ("ablation", "retrieval", "routing", "annotation", "libraries", "serving"),
    ("evals",),
    ("systems",),
    ("commands",),
    ("cli",),
    ("__main__",),
)  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
PEERS = {"torch", "transformers", "tensorflow", "grain"}
COMMAND = r"(?m)^(?:python -m )?jaxlab (.+)$"
MAY_PRINT = ("cli.py", "commands/", "core/progress.py")
# "a row a chip": say "one row per chip". A preposition or verb before "a" is fine.
DOUBLE_ARTICLE = (
    r"\b(?:an?|one|two|three|four|another|else) (?:\w+ )?"
    r"(?!(?:and|are|at|beside|by|for|from|in|into|is|like|nor|of|on|or|per|than|that|to"
    r"|via|where|with|without)\b)\w+ an? (?:chip|device|day|domain|example|host|layer"
    r"|leaf|line|minute|model|process|query|row|run|second|shard|step|token)\b"
)
PARTICIPLE = r"_?[a-z]+(?:ed|en|ept|ound|own)"
# Verbs and nouns that look like participles; names that flax or a user calls by.
NO_PARTICIPLES = {
    "_feed", "_open", "_widen", "embed", "flatten", "open",
    "accumulated", "elapsed", "factored", "hidden", "untrained",
}  # fmt: skip


def _name(file):
    return file.relative_to(ROOT / "jaxlab").as_posix()


def _room(file):
    return _name(file).split("/")[0].removesuffix(".py")


def _is_main_guard(node):
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _imports(node):
    """Names of all modules imported anywhere below a node, but under `__main__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not _is_main_guard(child):
            yield from _imports(child)


def _rooms_imported(file):
    for module in _imports(_parsed(file)):
        package, _, rest = module.partition(".")
        if package == "jaxlab" and rest:
            yield rest.split(".")[0]


@functools.cache
def _parsed(file):
    return ast.parse(file.read_text("utf-8"))


def test_every_room_has_a_rank():
    assert {_room(file) for file in FILES} - {"__init__"} <= RANK.keys()


def test_arrows_point_one_way():
    backwards = [
        f"{_name(file)} imports {other}"
        for file in FILES
        for other in _rooms_imported(file)
        if other != _room(file) and RANK[other] >= RANK[_room(file)]
    ]
    assert not backwards


def _module(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count: there a circle is hidden, and not gone."""
    modules = {_module(file): file for file in FILES}
    arrows = {
        module: {
            name
            for found in _imports(_parsed(file))
            for name in (found, found.rpartition(".")[0])
            if name in modules and not f"{module}.".startswith(f"{name}.")
        }
        for module, file in modules.items()
    }
    while leaves := {module for module, others in arrows.items() if not others}:
        arrows = {m: others - leaves for m, others in arrows.items() if m not in leaves}
    assert not arrows, "these are on a circle, or stand on one"


def test_the_loop_stands_on_the_core_alone():
    assert {*_rooms_imported(ROOT / "jaxlab" / "train.py")} == {"core"}


def test_peers_are_never_imported():
    imported = {
        _name(file): {module.split(".")[0] for module in _imports(_parsed(file))}
        for file in FILES
    }
    assert not {name for name, modules in imported.items() if modules & PEERS}


def _modules_after(statement):
    script = f"{statement}; import sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return {*done.stdout.split()}


def test_importing_the_package_and_its_verbs_imports_no_heavy_thing():
    modules = _modules_after(
        "import importlib, jaxlab, jaxlab.cli; "
        "[importlib.import_module(module) for _, module in jaxlab.cli.VERBS.values()]"
    )
    heavy = {"jax", "flax", "numpy", "orbax", "orbax.checkpoint", "tensorflow_datasets"}
    assert not modules & heavy


def test_importing_the_rooms_imports_no_orbax_tfds_or_peer():
    modules = _modules_after(
        "from jaxlab import data, evals, generate, merge, models, optim, train"
    )
    heavy = {"orbax.checkpoint", "tensorflow_datasets", "matplotlib", "sentencepiece"}
    assert not modules & (heavy | PEERS)


def test_a_file_is_one_idea_that_fits_in_a_sitting():
    assert not [_name(f) for f in FILES if len(f.read_text().splitlines()) > 400]
    drawers = {"utils", "helpers", "common", "base", "manager", "handler"}
    assert not {file.stem for file in FILES} & drawers
    full = [file for file in FILES if file.read_text()]
    assert not [_name(f) for f in full if not ast.get_docstring(_parsed(f))]


def test_functions_are_verbs_and_not_participles():
    names = {
        node.name
        for file in FILES
        for node in ast.walk(_parsed(file))
        if isinstance(node, ast.FunctionDef) and re.fullmatch(PARTICIPLE, node.name)
        if not any("property" in ast.unparse(d) for d in node.decorator_list)
    }
    assert names <= NO_PARTICIPLES


def test_each_is_written_with_per():
    lines = [
        f"{_name(file)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if re.search(DOUBLE_ARTICLE, line)
    ]
    assert not lines, 'say "one row per chip", not "a row a chip"'


def test_only_the_border_prints():
    calls = [
        f"{_name(file)}:{node.lineno}"
        for file in FILES
        if not _name(file).startswith(MAY_PRINT)
        for node in ast.walk(_parsed(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not calls, "use a Reporter or a logger"


def _title(readme):
    return readme.relative_to(ROOT).as_posix()


every_readme = pytest.mark.parametrize("readme", READMES, ids=_title)


def _blocks(readme, language=r"\w*"):
    """The code blocks of a README, without their indentation."""
    pattern = rf"(?ms)^( *)```{language}\n(.*?)^ *```"
    found = re.findall(pattern, readme.read_text("utf-8"))
    return [textwrap.dedent(block) for _, block in found]


def _words(readme):
    """What stands in `backticks` outside the blocks."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```", "", readme.read_text("utf-8"))
    return re.findall(r"`([^`\n]+)`", prose)


def _commands(readme):
    """Arguments of the lines that begin with `jaxlab`, without shell variables."""
    text = "\n".join(_blocks(readme)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(COMMAND, text)]


@pytest.mark.slow
@every_readme
def test_the_python_of_every_readme_runs(readme, tmp_path, monkeypatch):
    blocks = _blocks(readme, "python")
    assert blocks or readme != README
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, _title(readme), "exec"), {})


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 150


def test_every_verb_is_in_the_readme_and_every_verb_of_a_readme_exists():
    def verbs(readme):
        code = "\n".join([*_blocks(readme), *_words(readme)])
        return {*re.findall(r"(?m)^jaxlab ([a-z]+)", code)}

    assert verbs(README) == {*cli.VERBS}
    assert {verb for file in ROOMS_READMES for verb in verbs(file)} <= {*cli.VERBS}


@every_readme
def test_every_command_line_of_a_readme_would_be_understood(readme, monkeypatch):
    monkeypatch.chdir(ROOT)
    for verb, *argv in _commands(readme):
        args = cli.parse(verb, argv)
        if verb == "train":
            config, _ = config_lib.parse(args.flags)
            assert config.system


def test_the_readme_shows_how_to_begin():
    assert len(_commands(README)) >= 6


@every_readme
def test_the_links_of_every_readme_lead_somewhere(readme):
    links = re.findall(r"\]\((?!\w+://)([^)#]+)", readme.read_text("utf-8"))
    assert links or readme != README
    assert not [link for link in links if not (readme.parent / link).exists()]


@every_readme
def test_the_files_that_a_readme_names_exist(readme):
    tops = "launch|configs|tests|tools|jaxlab"
    code = [*_words(readme), *_blocks(readme)]
    paths = {p for c in code for p in re.findall(rf"\b(?:{tops})/[\w./*-]+", c)}
    assert paths or readme != README
    paths = {path.rstrip(".") for path in paths}
    folders = (ROOT, readme.parent)
    assert not [p for p in paths if not any([*folder.glob(p)] for folder in folders)]
