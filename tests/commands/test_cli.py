"""The command line itself: help, misspelt verbs, exit codes, what becomes one line."""

import importlib
import io
import pathlib
import subprocess
import sys

import pytest

from jaxlab import cli, commands
from jaxlab.commands import arguments, convert
from jaxlab.core import installation

ACTIONS = {
    "ablate": ("pool", "rank", "search", "report"),
    "checkpoint": ("ls", "verify", "export"),
    "data": ("prepare", "tokenize", "verify", "inspect"),
    "retrieve": ("index", "search", "refit", "evaluate"),
    "tram": ("domains", "languages"),
}


def run_python(*argv):
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, check=False
    )


def test_help_answers_without_jax():
    every = [[verb] for verb in cli.VERBS]
    every += [[verb, action] for verb, actions in ACTIONS.items() for action in actions]
    code = (
        "import sys; from jaxlab import cli; "
        f"codes = [cli.run([*words, '--help']) for words in [[], *{every}]]; "
        "sys.exit(any(codes) or 'jax' in sys.modules or 'numpy' in sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0
    assert done.stderr == ""
    for words in every:
        assert f"usage: jaxlab {' '.join(words)}" in done.stdout


def test_every_verb_has_what_the_command_line_asks_of_it():
    for summary, module in cli.VERBS.values():
        command = importlib.import_module(module)
        assert summary == command.SUMMARY
        for part in (command, *getattr(command, "ACTIONS", {}).values()):
            assert isinstance(part.SUMMARY, str)
            assert isinstance(part.DETAILS, str)
            assert callable(part.arguments)
            assert callable(part.run)


def test_every_file_of_a_verb_is_in_the_table():
    folder = pathlib.Path(commands.__path__[0])
    files = {file.stem for file in folder.glob("*.py")}
    files |= {file.parent.name for file in folder.glob("*/__init__.py")}
    modules = {module.rpartition(".")[2] for _, module in cli.VERBS.values()}
    shared = {"__init__", "arguments", "devices", "local_inputs", "output"}
    assert files - shared == modules


def test_version_is_printed(said):
    assert said("--version").startswith("jaxlab 0.")


def test_no_verb_shows_the_overview(capsys):
    assert cli.run([]) == 2
    assert "usage: jaxlab VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "jaxlab: unknown verb 'evalute'; did you mean evaluate?"),
        (["qqq"], "jaxlab: unknown verb 'qqq'; use one of train, configs, eval"),
        (["evaluate"], "jaxlab evaluate: the following arguments are required: MODEL"),
        (["evaluate", "x", "--lenght=3"], "--lenght=3; did you mean --length?"),
        (
            ["retrieve", "search", "x", "--index=x"],
            "--index=x; see jaxlab retrieve --help",
        ),
        (["generate", "x", "-n", "two"], "argument -n: invalid int value: 'two'"),
        (["merge", "a", "b", "-o", "c", "--weights=1;2"], "'1;2' is not like 0.7,0.3"),
        (["merge", "a", "b", "-o", "c", "--memory=lots"], "'lots' is not like 256MB"),
        (["merge", "a", "-o", "c"], "give two or more models to merge, or a recipe"),
        (["merge", "a.yaml", "-o", "c"], "a.yaml does not exist; give a recipe"),
        (["ablate", "rank", "--experts", "law"], "'law' is not NAME=MODEL"),
        (["data"], "jaxlab data: the following arguments are required: ACTION"),
        (["data", "inspect", "--workdir=x"], "required: --step"),
        (
            ["data", "prepare", "a", "b"],
            "one of the arguments --tokenizer --vocab-size",
        ),
    ],
)
def test_a_misused_verb_is_one_line(line, argv, message):
    assert message in line(*argv)


def test_the_module_and_the_verb_are_one_command():
    done = run_python("-m", "jaxlab.train", "--confg=x")
    assert done.returncode == 2
    expected = "jaxlab train: unknown flag '--confg'; did you mean --config?\n"
    assert done.stderr == expected


@pytest.mark.parametrize("module", ["jaxlab", "jaxlab.cli"])
def test_the_package_is_the_command_line(module):
    done = run_python("-m", module, "evaluate")
    assert done.returncode == 2
    assert done.stderr.startswith("jaxlab evaluate: the following arguments are req")


def test_verbose_logs_each_line_once(text, tmp_path, capsys):
    argv = ["data", "prepare", str(text), str(tmp_path / "d"), "--vocab-size=300", "-v"]
    assert cli.run(argv) == 2  # too small, which is found after the reading
    argv[-2] = "--vocab-size=320"
    assert cli.run(argv) == 0
    logged = [line for line in capsys.readouterr().err.splitlines() if "INFO" in line]
    assert [line.split(":")[1] for line in logged] == [" code", " law"]


def run_with(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr(convert, "run", fail)
    return cli.run(["convert", "a", "b"])


def test_an_interruption_is_one_line_and_130(monkeypatch, capsys):
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or"),
        (OSError(28, "No space left on device"), "No space left on device; free some"),
        (PermissionError(13, "Permission denied", "x"), "x: Permission denied; give"),
        (NotADirectoryError(20, "Not a directory", "f/x"), "f/x: Not a directory; a p"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), "out of memory; use smaller"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, message):
    assert run_with(monkeypatch, error) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxlab convert: {message}")


def test_a_defect_keeps_its_traceback(monkeypatch):
    with pytest.raises(AssertionError, match="ours"):
        run_with(monkeypatch, AssertionError("ours"))


def test_help_tells_every_default_that_is_a_value():
    parser = arguments.Parser("jaxlab x", description="")
    seed = parser.add_argument("--seed", type=int, default=0)
    parts = parser.add_argument("--parts", default=("a", "b"), help="of it")
    said = parser.add_argument("--size", default=3, help="the default is 3")
    others = [
        parser.add_argument("--all", action="store_true", help="everything"),
        parser.add_argument("--top", help="of them"),
        parser.add_argument("names", nargs="*", default=[], help="words"),
    ]
    assert seed.help == "default: 0"
    assert parts.help == "of it; default: a,b"
    assert said.help == "the default is 3"
    assert [action.help for action in others] == ["everything", "of them", "words"]


def test_a_character_that_stdout_does_not_have_is_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(convert, "run", lambda args: print("caf\xe9 \ud83d"))
    assert cli.run(["convert", "a", "b"]) == 0
    assert out.buffer.getvalue() == b"caf\\xe9 \\ud83d\n"


def test_a_closed_stdout_is_no_mistake(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.run(["--version"]) == 0
    assert cli.run(["-h"]) == 0


@pytest.mark.parametrize("argv", [["-h"], ["train", "-h"], ["--version"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(argv):
    code = f"import sys; from jaxlab import cli; sys.exit(cli.run({argv}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stderr.close()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["evaluate", "x"], 0, ""),
        (["evalute"], 2, "did you mean evaluate?"),
        (["train", "--config=olmo:tiny", "--workdir=gs://b/r"], 0, ""),
        (["train", "--config=olmo:tiny"], 2, "give --workdir=DIR"),
        (["train", "--config=olmo:tiny", "--workdir=w", "--config.steps=-1"], 2, "ste"),
        ([], 2, "unknown verb ''"),
    ],
)
def test_a_command_line_is_checked_without_being_run(capsys, argv, code, message):
    assert cli.check(argv) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "here", "new", "there"),
    [
        (["--config.data.source=text"], "", "text is on this", "text is on this"),
        (["--config.data.source=gone"], "gone does not exist", "", ""),
        (["--config.data.source=embedded"], "", "", ""),
        (["--config.data.source=gs://b/t"], "", "", ""),
        (["--config.init_from=gone"], "model gone does not exist", "", ""),
        (["--config.init_from=text"], "", "text is on this", "text is on this"),
        (["--config.data.files=('a.npy',)"], "a.npy does not exist", "", ""),
        (
            ["--config.data.folder=text", "--config.data.source="],
            "",
            "text is on this",
            "text is on this",
        ),
        (["--config=my.py:tiny"], "", "--config: my.py is on", "--config: my.py is on"),
    ],
)
def test_inputs_that_will_not_be_where_a_command_runs_are_named(
    tmp_path, monkeypatch, capsys, words, here, new, there
):
    (tmp_path / "text").mkdir()
    olmo = installation.configs()["olmo"]
    (tmp_path / "my.py").write_text(olmo.read_text() + "\n")
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--config=olmo:tiny", *words, "--workdir=gs://b/r"]
    if "init_from" in words[0]:
        argv[1] = "--config=tulu:tiny"
    for where, message in (("new", new), ("there", there)):
        code = 2 if message and where == "new" else 0
        assert cli.check(argv, where, str(tmp_path)) == code
        said = capsys.readouterr()
        assert message in said.err + said.out
        assert bool(message) == bool(said.err + said.out)
    argv[-1] = "--workdir=run"
    assert cli.check(argv, "here", ".") == (2 if here else 0)
    assert here in capsys.readouterr().err
    (tmp_path / "run").mkdir()  # it has begun: its text was read
    assert cli.check(argv, "here", ".") == 0


def test_help_and_verbose_may_come_before_the_verb(said, capsys):
    assert "usage: jaxlab convert" in said("help", "convert")
    assert cli.run(["help"]) == 0
    assert "usage: jaxlab VERB" in capsys.readouterr().out
    assert cli.run(["-v", "evaluate"]) == 2
    assert capsys.readouterr().err.startswith("jaxlab evaluate: the following arg")
    assert cli.run(["help", "evalute"]) == 2
    assert "did you mean evaluate?" in capsys.readouterr().err


def test_what_orbax_reports_to_a_loop_that_is_closed_is_left_out(capsys):
    late, own = RuntimeError("Event loop is closed"), RuntimeError("a defect")
    cli._leave_out_late_reads(RuntimeError, late, None)
    assert not capsys.readouterr().err
    cli._leave_out_late_reads(RuntimeError, own, None)
    assert "a defect" in capsys.readouterr().err
