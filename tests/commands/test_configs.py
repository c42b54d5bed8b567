"""`jaxlab configs`: the list, and every key of a config explained."""

import shlex

import pytest

from jaxlab import cli
from jaxlab.core import config as config_lib
from jaxlab.core import installation


def test_the_list_has_every_config_and_variant(capsys):
    assert cli.run(["configs"]) == 0
    shown = capsys.readouterr().out
    for name, file in installation.configs().items():
        variants = config_lib.variants(file)
        assert variants
        assert f"{name}: " in shown
        assert " ".join(variants) in shown
        for variant in variants:
            assert config_lib.load(f"{file}:{variant}").system


@pytest.mark.parametrize("name", [*installation.configs()])
def test_every_key_has_a_type_a_default_and_a_line(name, capsys):
    assert cli.run(["configs", name]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines
    silent = [line for line in lines if len(line.split(maxsplit=2)) < 3]
    assert not silent, "write a comment beside these keys"


def test_what_is_shown_can_be_given_to_train(capsys):
    cli.run(["configs", "tulu:dpo_7b"])
    lines = capsys.readouterr().out.splitlines()[2:]
    flags = [
        shlex.split(line.split("  ")[0])[0] for line in lines if " dict " not in line
    ]
    config, _ = config_lib.parse(["--config=tulu:dpo_7b", "--workdir=w", *flags])
    assert config.to_dict() == config_lib.load("tulu:dpo_7b").to_dict()
