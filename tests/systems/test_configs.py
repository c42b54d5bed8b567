"""Every variant of every config is what it was, key by key and value by value."""

import hashlib
import json
import pathlib

import ml_collections
import pytest

from jaxlab.core import config as config_lib
from jaxlab.systems import sections

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# `values`: one config of each system in full; `sha256`: of all variants. A number that
# changes on purpose changes here too.
FROZEN = json.loads(pathlib.Path(__file__).with_name("configs.json").read_text("utf-8"))


def flat(name):
    """Dotted key -> value as Python writes it, so that 1 is not 1.0."""
    file, variant = name.split(":")
    values = flattened(config_lib.load(f"{CONFIGS / file}.py:{variant}").to_dict())
    return dict(sorted(values.items()))


def flattened(value, prefix=""):
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): repr(value)}
    items = (flattened(each, f"{prefix}{key}.") for key, each in value.items())
    return {key: each for item in items for key, each in item.items()}


def sha256(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", FROZEN["values"])
def test_a_config_of_every_system_is_what_it_was(name):
    assert flat(name) == FROZEN["values"][name]


def test_every_variant_is_what_it_was():
    assert {name: sha256(flat(name)) for name in FROZEN["sha256"]} == FROZEN["sha256"]


def test_a_section_refuses_a_knob_that_it_does_not_have():
    with pytest.raises(TypeError, match="no learning_rat in this section"):
        sections.optim(learning_rat=1.0)


def test_sections_are_new_each_time():
    one, other = sections.optim(), sections.optim()
    one.learning_rate = 1.0
    assert other.learning_rate == 0.0
    assert isinstance(one, ml_collections.ConfigDict)
