"""Recipes of any shape are read, or refused in one line; the base has one name."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors, yaml_lines
from jaxlab.merge.files import stream
from jaxlab.merge.files.recipe import recipe

GOOD = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": [{"filter": "x", "value": 1}, 0.5]}},
        {"model": {"model": {"path": "b"}}, "parameters": {"weight": [0, 1]}},
    ],
    "parameters": {"density": 0.5, "normalize": True},
    "dtype": "float32",
    "tokenizer_source": "base",
    "seed": 3,
}
RECORD = {
    "format": recipe.FORMAT,
    "recipe": GOOD | {"models": ["a", "b"], "parameters": {"weight": 1}},
    "options": {"digest": "xxh3", "format": "hf", "shard_bytes": 9, "layer_axis": None},
    "inputs": [
        {"path": "/a", "xxh3": "0f", "files": [{"name": "model", "size": 3}]},
    ],
}
JUNK = st.sampled_from(
    [None, True, 1, -1.5, 2**70, 10**400, "", "x", [], ["linear"], [[1]], {}, {"a": 1},
     {"model": {}}, {"path": ["x"]}, {"value": 1, "regex": 5},
     {"filter": 1, "value": 2}, {"value": {"value": {"value": "x"}}}, float("nan")]
)  # fmt: skip


def places(value, path=()):
    """Where values lie in a structure."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(value, draw, junk):
    """A copy of a structure with one of its values replaced."""
    value = copy.deepcopy(value)
    *outer, last = draw.draw(st.sampled_from([p for p in places(value) if p]))
    part = value
    for key in outer:
        part = part[key]
    part[last] = junk
    return value


@settings(deadline=None, max_examples=150)
@given(draw=st.data(), junk=JUNK)
def test_a_recipe_of_any_types_is_read_or_is_one_line(tmp_path_factory, draw, junk):
    file = tmp_path_factory.mktemp("r") / "r.yaml"
    file.write_text(json.dumps(changed(GOOD, draw, junk), allow_nan=True))
    try:
        plan = recipe.read(file)
    except errors.UserError as error:
        message = str(error)
        assert str(file) in message
        assert "\n" not in message
        return
    recipe.settle(plan, {"x.w": [0.0, 1.0], "y": [0.0]})


@settings(deadline=None, max_examples=100)
@given(draw=st.data(), junk=JUNK)
def test_a_record_of_any_types_is_read_or_is_one_line(tmp_path_factory, draw, junk):
    file = tmp_path_factory.mktemp("r") / "merge.json"
    file.write_text(json.dumps(changed(RECORD, draw, junk)))
    with pytest.raises(errors.UserError) as caught:  # there is no model a
        stream.merge_recipe(recipe.read(file), file.parent / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"? [1]\n: 2\n", "line 1: a key is a list or a mapping"),
        (b"&a models: &m [*m]\n", "line 1: a value holds itself"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9))
            for c in b"cdefgh"), "at most 100,000 values"),
        (b"[" * 5000, "nested too deep"),
        (b"seed: " + b"1" * 5000, "line 1: Exceeds the limit"),
        (b"seed: 2020-13-01\n", "line 1: month must be in 1..12"),
        ("a: \u00e9".encode("latin-1"), "is not UTF-8 (byte 3 is 0xe9); save it as"),
        ("a: 1".encode("utf-16"), "is not UTF-8 (byte 0 is 0xff); save it as"),
        (b"a: \0", "not YAML"),
    ],
)  # fmt: skip
def test_yaml_that_is_none_is_one_line(tmp_path, text, message):
    file = tmp_path / "r.yaml"
    file.write_bytes(text)
    with pytest.raises(errors.UserError) as caught:
        recipe.read(file)
    assert message in str(caught.value)


def test_the_merge_key_adds_what_a_mapping_does_not_say(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: linear\nmodels:\n"
        "  - &one\n    model: a\n    parameters: &p {weight: 0.5}\n"
        "  - <<: *one\n    model: b\n"
        "  - model: c\n    parameters:\n      <<: [{weight: 0.25}, *p]\n"
    )
    plan = recipe.read(file)
    assert plan.models == ("a", "b", "c")
    assert [own["weight"] for own in plan.each] == [0.5, 0.5, 0.25]
    file.write_text("models: [a]\nmodels: [b]\n")
    with pytest.raises(errors.UserError, match="line 2: models is given twice"):
        recipe.read(file)


def test_merge_keys_of_merge_keys_are_put_together_once(tmp_path, monkeypatch):
    def load(*lines):
        return yaml_lines.load("\n".join(lines), "r.yaml")[0]

    nested = load(
        "a: &a {x: 1}", "b: &b {<<: *a, x: 2, y: 2}", "c: {y: 3, <<: [*b, *a]}"
    )
    assert nested["c"] == {"x": 2, "y": 3}
    ten = [", ".join([f"*a{i}"] * 10) for i in range(59)]
    tenfold = [f"a{i}: &a{i} {{<<: [{list_}]}}" for i, list_ in enumerate(ten, 1)]
    monkeypatch.setattr(yaml_lines, "_MOST", 1500)
    assert load("a0: &a0 {k: 1}", *tenfold)["a59"] == {"k": 1}
    many = "a: &a {" + ", ".join(f"k{i}: 1" for i in range(100)) + "}"
    for lines in (
        [many, f"b: {{<<: [{', '.join(['*a'] * 20)}]}}"],
        ["c: &c {<<: *c}"], ["a: {<<: 3}"], ["a: {<<: [[{b: 1}]]}"],
    ):  # fmt: skip
        with pytest.raises(errors.UserError, match=r"r\.yaml: line \d: "):
            load(*lines)


@pytest.mark.parametrize("again", ["base", "./base/", "x/../base", "link"])
def test_the_base_is_one_of_the_models_however_it_is_spelled(
    tmp_path, monkeypatch, again
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    raw = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [again, "a"],
        "parameters": {"weight": 1},
        "tokenizer_source": "./base",
    }
    plan = recipe.parse(raw)
    assert plan.models == (again, "a")
    assert plan.base == 0
    assert plan.tokenizer == again
    same = recipe.from_arguments(
        [again, "a"], "task_arithmetic", base="base", parameters={"weights": [2]}
    )
    assert recipe.resolve(same, "w")[1] == [{"weight": 2.0}]


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!bool x", "!!timestamp x", "!!python/x y"]
)
def test_a_tag_that_its_value_does_not_have_is_one_line(tmp_path, value):
    (tmp_path / "r.yaml").write_text(f"merge_method: linear\nseed: {value}\n")
    with pytest.raises(errors.UserError, match=r"r\.yaml: line 2: "):
        recipe.read(tmp_path / "r.yaml")
