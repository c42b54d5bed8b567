"""Configs from the command line: every override typed, every mistake one line."""

import sys

import pytest

from jaxlab.core import config, errors
from tests.support import runs

FILE = """
import ml_collections


def get_config(variant="small"):
    sizes = {"small": 1, "large": 9}
    if variant not in sizes:
        raise ValueError(f"variant {variant!r}; use one of {', '.join(sizes)}")
    return ml_collections.ConfigDict({
        "steps": sizes[variant],
        "model": {"norm": "layernorm", "tied": False, "rope": {"theta": 1e4}},
        "optim": {"learning_rate": 0.1, "no_decay": ("embed",)},
        "data": {"weights": {}, "files": ()},
    })
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "house.py"
    path.write_text(FILE)
    return str(path)


def parse(file, *overrides, variant=""):
    return config.parse([f"--config={file}{variant}", "--workdir=run", *overrides])[0]


def test_a_variant_is_passed_to_the_file(file):
    assert parse(file).steps == 1
    assert parse(file, variant=":large").steps == 9


def test_overrides_take_the_type_of_what_they_replace(file):
    found = parse(
        file,
        "--config.steps=7",
        "--config.optim.learning_rate=3",
        "--config.model.norm=rmsnorm",
        "--config.model.tied=true",
        "--config.model.rope.theta=5e5",
        "--config.data.files=a.npy",
        "--config.data.files=b.npy",
    )
    assert (found.steps, found.model.norm, found.model.tied) == (7, "rmsnorm", True)
    assert isinstance(found.optim.learning_rate, float)
    assert found.model.rope.theta == 500_000.0
    assert found.data.files == ("a.npy", "b.npy")


def test_tuples_are_also_read_as_literals(file):
    found = parse(file, "--config.optim.no_decay=('embed', 'norm')")
    assert found.optim.no_decay == ("embed", "norm")


def test_flags_and_values_may_be_separated_by_a_space_and_come_in_any_order(file):
    argv = ["--config.steps", "3", "--workdir", "w", "--config", f"{file}:large"]
    found, workdir = config.parse([*argv, "--config.optim.learning_rate", "-1"])
    assert found.steps == 3
    assert found.optim.learning_rate == -1.0
    assert str(workdir) == "w"


def test_bools_may_be_bare(file):
    assert parse(file, "--config.model.tied").model.tied is True
    assert parse(file, "--noconfig.model.tied").model.tied is False


def test_an_empty_section_takes_new_keys_that_are_numbers(file):
    found = parse(file, "--config.data.weights.web=2", "--config.data.weights.law=.5")
    assert found.data.weights.to_dict() == {"web": 2.0, "law": 0.5}
    found = parse(file, "--config.data.weights={'web': 2}")
    assert found.data.weights.to_dict() == {"web": 2}


def test_the_config_is_locked(file):
    with pytest.raises(AttributeError):
        parse(file).stepz = 3


def test_the_arguments_of_this_process_do_not_matter(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--config.nonsense=1"])
    assert parse(file, "--config.steps=5").steps == 5
    assert sys.argv == ["pytest", "--config.nonsense=1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.optim.learnig_rate=3",
            "key 'optim.learnig_rate'; did you mean optim.learning_rate?",
        ),
        (
            "--config.learning_rate=3",
            "unknown config key 'learning_rate'; did you mean optim.learning_rate?",
        ),
        (
            "--config.optim.zzzz=3",
            "unknown config key 'optim.zzzz'; there are optim.learning_rate, "
            "optim.no_decay",
        ),
        (
            "--config.qqq=3",
            "unknown config key 'qqq'; there are data, model, optim, st",
        ),
        (
            "--config.steps=many",
            "config key 'steps' cannot be 'many'; it takes a value of type int",
        ),
        (
            "--config.steps=1e3",
            "config key 'steps' cannot be '1e3'; it takes a value of type int",
        ),
        (
            "--config.model.tied=maybe",
            "config key 'model.tied' cannot be 'maybe'; it takes a value of type bool",
        ),
        ("--config.data.weights.web=x", "'data.weights.web' cannot be 'x'"),
        (
            "--config.model=3",
            "config key 'model' cannot be '3'; it is a section: set a key of it, e.g. "
            "--config.model.",
        ),
        ("--config.optim.rate=3", "'optim.rate'; there are optim.learning_rate"),
        ("--config.steps", "Missing value for flag --config.steps"),
        ("--wrkdir=x", "unknown flag '--wrkdir'; did you mean --workdir?"),
        ("--quiet", "unknown flag '--quiet'; use --config, --workdir, or a key of"),
        ("--steps=10", "unknown flag '--steps'; did you mean --config.steps?"),
        ("--learning-rate=1", "did you mean --config.optim.learning_rate?"),
        ("steps=3", "unexpected argument 'steps=3'; flags begin with --"),
        ("config.steps=3", "flags begin with --: --config.steps=3"),
    ],
)
def test_a_mistake_names_what_was_meant(file, override, message):
    with pytest.raises(errors.UserError) as error:
        config.parse([f"--config={file}", override, "--workdir=w"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_variant_shows_only_what_the_file_says(file):
    with pytest.raises(errors.UserError) as error:
        parse(file, variant=":huge")
    assert str(error.value) == f"{file}: variant 'huge'; use one of small, large"


def test_a_file_without_variants_says_so(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(): return {}")
    with pytest.raises(
        errors.UserError, match=r"takes no variant; use --config=.*mine"
    ):
        config.load(f"{tmp_path / 'mine.py'}:tiny")


def test_the_variants_that_a_file_lists_are_told_before_it_is_asked(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("VARIANTS = ('small', 'large')\ndef get_config(variant): 1 / 0")
    assert config.variants(path) == ("small", "large")
    with pytest.raises(errors.UserError, match="'smal'; did you mean small\\?"):
        parse(path, variant=":smal")


@pytest.mark.parametrize("name", ["olmo:1b", "configs/olmo.py:1b"])
def test_what_comes_with_jaxlab_is_found_by_its_name_anywhere(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert config.load(name).model.embed == 2048
    (tmp_path / "configs").mkdir()
    mine = "import ml_collections\ndef get_config(variant):\n"
    mine += "  return ml_collections.ConfigDict({'mine': variant})"
    (tmp_path / "configs" / "olmo.py").write_text(mine)
    own = config.load("configs/olmo.py:1b")
    assert own.to_dict() == {"mine": "1b"}  # a file of the user's comes first
    for wrong in ("olmoo", "configs/olmoo.py"):
        with pytest.raises(errors.UserError, match="did you mean olmo\\?"):
            config.load(wrong)
    with pytest.raises(errors.UserError, match="there are languages, olmo, refit"):
        config.load("elsewhere/qqq.py")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --config=FILE[:VARIANT], e.g. --config=olmo:tiny"),
        (["--config"], "give --config=FILE"),
        (["--config=no.py:tiny", "--workdir=w"], "config file 'no.py' does not exist"),
        (["--config=configs/olmo", "--workdir=w"], "did you mean configs/olmo.py?"),
        (["--config=configs/olmo.py"], "give --workdir=DIR"),
        (["--config=pyproject.toml", "--workdir=w"], "is not a Python file"),
        (["--config=tests", "--workdir=w"], "config 'tests' is a folder; name a Py"),
        (["olmo:tiny", "--workdir=w"], "flags begin with --: --config=olmo:tiny"),
    ],
)
def test_missing_files_and_flags_are_said(argv, message):
    with pytest.raises(errors.UserError) as error:
        config.parse(argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import nonsense_",
            "ModuleNotFoundError: No module named 'nonsense_' (line 1)",
        ),
        ("def get_config():\n  return {}['a']", "KeyError: 'a' (line 2)"),
        ("def get_config():\n  return 3", "get_config returned int, not a ConfigDict"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("", "it defines no get_config(variant)"),
    ],
)
def test_a_config_file_that_fails_says_where(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(errors.UserError) as error:
        parse(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_reading_a_config_does_not_import_jax(file):
    code = (
        "import sys; from jaxlab.core import config; "
        f"config.parse(['--config={file}', '--workdir=w', '--config.steps=2']); "
        "sys.exit('jax' in sys.modules)"
    )
    assert runs.python(code, check=False).returncode == 0
