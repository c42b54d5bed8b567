"""`jaxlab ablate`: its options, and mistakes in them."""

import pytest

from jaxlab.ablation import method_names
from jaxlab.systems import sizes


def test_the_options_offer_the_methods_and_sizes_that_there_are(line):
    message = line("search", "p", "--target", "a", "--method=guess")
    assert all(name.replace(" ", "-") in message for name in method_names.METHODS)
    message = line("pool", "p", "--data", "d", "--size=huge")
    assert all(name in message for name in sizes.SIZES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rank"], "give a POOL, or --experts"),
        (["rank", "p", "--experts", "a=b"], "give a POOL, or --experts"),
        (["rank", "p", "--seed-model", "s"], "leave out --seed-model"),
        (["rank", "--experts", "a=b", "a=c"], "an expert's name is given twice"),
        (["rank", "nowhere"], "nowhere does not exist; make a pool with"),
        (["report", "nowhere"], "nowhere does not exist; make a pool"),
        (["search", "p"], "arguments are required: --target"),
        (["search", "p", "--target", "a", "--pareto"], "--pareto needs two or more"),
        (["search", "p", "--target", "a", "a=2"], "a target is given twice"),
        (["pool", "p"], "one of the arguments --data --add is required"),
        (["pool", "p", "--add", "a"], "'a' is not NAME=PATH"),
        (["pool", "p", "--data", "d", "--units=a,,b"], "'a,,b' is not like A,B"),
        (["pool", "p", "--add", "a=b", "--size=small"], "--size cannot be given with"),
        (["pool", "nowhere", "--add", "a=b"], "nowhere does not exist; make a pool"),
        (["pool", "p", "--data", "nowhere"], "no data at nowhere"),
        (
            ["pool", "p", "--data=embedded", "--units=law"],
            "no partition law; there are",
        ),
        (["pool", "p", "--data=embedded", "--seed-domains=x"], "no partition x; there"),
        (
            ["pool", "p", "--data=embedded", "--parts=2", "--units=legal"],
            "no partition legal; there are python_source.1, python_source.2",
        ),
        (["pool", "p", "--data", "d", "--unit-steps=0"], "--unit-steps 0; use 1"),
        (["pool", "p", "--data", "d", "--seed-model", "no"], "model no does not exist"),
        (
            ["pool", "p", "--data", "d", "--seed-model", "no", "--vocab-size=9"],
            "--vocab-size cannot be given with --seed-model",
        ),
    ],
)
def test_a_misused_action_is_one_line(line, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in line(*argv)
    assert not list(tmp_path.iterdir())
