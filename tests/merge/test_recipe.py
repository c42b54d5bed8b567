"""Recipes: mergekit's YAML gives mergekit's numbers, mistakes are named by line."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import yaml

from jaxlab.core import errors, safetensors
from jaxlab.merge.files import stream
from jaxlab.merge.files.recipe import methods, recipe

VALUES = pathlib.Path(__file__).parents[1] / "values" / "merge"
BF16 = np.dtype(ml_dtypes.bfloat16)
CASES = [
    case
    for case in json.loads((VALUES / "cases.json").read_text())["cases"]
    if not case["method"].startswith(("dare", "della"))
]


def save(folder, tensors):
    folder.mkdir(parents=True)
    specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    safetensors.write_folder(folder, specs, tensors.get, shard_bytes=10**9)
    (folder / "config.json").write_text("{}")
    return str(folder)


# ------------------------------------------------------------------ mergekit's values


@pytest.fixture(scope="session")
def leaves():
    """Array name -> leaf -> values."""
    shapes = json.loads((VALUES / "cases.json").read_text())["shapes"]
    arrays = np.load(VALUES / "values.npz")

    def split(name):
        found, at = {}, 0
        for leaf, shape in shapes.items():
            size = int(np.prod(shape))
            found[leaf] = arrays[name][at : at + size].reshape(shape)
            at += size
        return found

    return split


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_recipes_give_the_values_of_mergekit(case, leaves, tmp_path):
    dtype = BF16 if case["dtype"] == "bfloat16" else np.dtype(np.float32)
    for name in case["models"]:
        own = {leaf: leaves(name)[leaf].astype(dtype) for leaf in case["leaves"]}
        save(tmp_path / name, own)
    spec = methods.find(case["method"])
    shared = {k: v for k, v in case["params"].items() if not isinstance(v, list)}
    models, number = [], 0
    for name in case["models"]:
        own = {}
        if name != case["base"]:
            lists = {k: v for k, v in case["params"].items() if isinstance(v, list)}
            own, number = {k: v[number] for k, v in lists.items()}, number + 1
        models.append({"model": str(tmp_path / name), "parameters": own})
    raw = {"merge_method": case["method"], "models": models, "parameters": shared}
    if case["base"]:
        raw["base_model"] = str(tmp_path / case["base"])
    assert {*case["params"]} <= {*spec.parameters, *spec.inert}
    (tmp_path / "recipe.yaml").write_text(yaml.dump(raw))
    plan = recipe.read(tmp_path / "recipe.yaml")
    stream.merge_recipe(plan, tmp_path / "out", chunk_bytes=4096)
    found, expected = safetensors.read_folder(tmp_path / "out"), leaves(case["name"])
    for leaf in case["leaves"]:
        assert found[leaf].dtype == dtype
        a, b = found[leaf].astype(np.float32), expected[leaf]
        limit = 3e-6 if dtype == np.float32 else 4e-3
        scale = np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit * scale, err_msg=leaf)


def shared_cases(test_data):
    folder = test_data.parent / "vectors" / "merge"
    if not (folder / "merge_cases.json").is_file():
        pytest.skip("no reference values of mergekit")
    cases = json.loads((folder / "merge_cases.json").read_text())["cases"]
    found = {case["case"]: case["yaml"] for case in cases if "yaml" in case}
    return found, np.load(folder / "merge_inputs.npz"), folder


def llamas(inputs, folder):
    for number in range(3):
        start = f"llama{number}/"
        own = {n.removeprefix(start): inputs[n] for n in inputs if n.startswith(start)}
        save(folder / f"M{number}", own)
        narrow = {name: value.astype(BF16) for name, value in own.items()}
        save(folder / f"M{number}b", narrow)


@pytest.mark.parametrize("name", ["yaml_slerp_filters", "yaml_ta_bf16_default"])
def test_whole_merges_of_mergekit_are_reproduced(
    name, test_data, tmp_path, monkeypatch
):
    cases, inputs, folder = shared_cases(test_data)
    llamas(inputs, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(cases[name])
    stream.merge_recipe(recipe.read("recipe.yaml"), "out")
    found, outputs = (
        safetensors.read_folder("out"),
        np.load(folder / "merge_outputs.npz"),
    )
    wanted = [key for key in outputs if key.startswith(f"{name}/")]
    assert {*found} == {key.removeprefix(f"{name}/") for key in wanted}
    for key in wanted:
        a, b = found[key.removeprefix(f"{name}/")], outputs[key]
        is_narrow = b.dtype == np.uint16  # mergekit computes in bfloat16 there
        b = b.view(BF16).astype(np.float32) if is_narrow else b
        limit = (2e-2 if is_narrow else 3e-6) * np.abs(b).max()
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=limit)


def test_slices_are_refused_by_name(test_data, tmp_path):
    cases, _, _ = shared_cases(test_data)
    (tmp_path / "recipe.yaml").write_text(cases["yaml_passthrough_slices"])
    with pytest.raises(errors.UserError) as caught:
        recipe.read(tmp_path / "recipe.yaml")
    for part in ("'passthrough' is not supported", "line 3: key 'slices' is not supp"):
        assert part in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "model_stock"])
def test_a_live_mergekit_agrees(method, leaves, tmp_path):
    api = pytest.importorskip("mergekit.merge_methods.api")
    torch = pytest.importorskip("torch")
    names = ["base", "ft1", "ft2", "ft3"]
    own = {name: {"w": leaves(name)["conv"]} for name in names}
    paths = {name: save(tmp_path / name, own[name]) for name in names}
    given = {"weight": [0.5, 0.3, 0.2]} if method != "model_stock" else {}
    given |= {"density": 0.5} if method == "ties" else {}
    is_based = method != "linear"
    stream.merge_files(
        [paths[name] for name in names[1:]], tmp_path / "out", method,
        base=paths["base"] if is_based else None, **given,
    )  # fmt: skip
    used = names if is_based else names[1:]
    tensors = [torch.tensor(own[name]["w"]) for name in used]
    extra = {"base_index": 0} if is_based else {}
    expected = api.merge_tensors(tensors, method, parameters=given, **extra)
    found = safetensors.read_folder(tmp_path / "out")["w"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=3e-6)


# ------------------------------------------------------------------ values


def settled(parameters, names, count=5, **model):
    """The weight of model `a` for tensors of given names and depths."""
    raw = {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": model}, {"model": "b"}],
        "parameters": {"weight": 9} | parameters,
    }
    plan = recipe.parse(raw)
    return [recipe.resolve(plan, n, t)[1][0]["weight"] for n, t in names]


def test_the_first_condition_that_holds_wins():
    rows = [
        {"filter": "attn", "value": 1},
        {"regex": r"mlp\.(up|down)", "value": [2, 4]},
        {"filter": "*", "value": 3},
    ]
    names = [("x.attn.mlp.up", 0.5), ("x.mlp.up", 0.5), ("x.mlp.gate", 0.5)]
    assert settled({"weight": rows}, names) == [1, 3, 3]
    assert settled({"weight": rows[:2]}, names[:2]) == [1, 3]


def test_a_list_is_piecewise_linear_over_the_layers():
    depths = [("w", t) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert settled({"weight": [0, 4, 2]}, depths) == [0, 2, 4, 3, 2]
    assert settled({"weight": [7]}, depths) == [7] * 5


def test_a_models_own_parameters_come_first_and_fall_through():
    rows = [{"filter": "attn", "value": 1}]
    names = [("attn", 0), ("mlp", 0)]
    assert settled({"weight": 5}, names, weight=rows) == [1, 5]
    assert settled({}, names, weight="1e-1") == [0.1, 0.1]


def test_a_recipe_says_itself_again():
    raw = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "/a", "parameters": {"weight": 1, "density": [0.1, 1]}},
            {"model": "/b", "parameters": {"weight": [{"filter": "x", "value": 2}]}},
        ],
        "parameters": {"weight": 3, "normalize": False},
        "out_dtype": "bfloat16",
        "dtype": "float32",
        "seed": 7,
    }
    plan = recipe.parse(raw)
    assert plan.dtype == "bfloat16"
    again = recipe.parse(plan.as_mapping())
    assert again.as_mapping() == plan.as_mapping()
    assert recipe.resolve(again, "x", 0.5) == recipe.resolve(plan, "x", 0.5)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmodls: []", "line 2: key 'modls' is not supported; did "
         "you mean models?"),
        ("merge_method: tiess", "line 1: merge_method 'tiess' is not supported; did you"
         " mean ties?"),
        ("merge_method: nearswap", "'nearswap' is not supported; use one of bread"),
        ("models: [a]", "merge_method None is not supported"),
        ("[1, 2]", "a recipe is a mapping of keys"),
        ("a: [1", "line 1: expected ',' or ']'"),
        ("seed: 1\nseed: 2", "line 2: seed is given twice"),
    ],
)  # fmt: skip
def test_mistakes_in_the_outline_have_their_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(errors.UserError) as caught:
        recipe.read(tmp_path / "r.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/r.yaml: ")


GOOD = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight: 1
  - model: b
    parameters:
      weight: [0, 1]
parameters:
  density: 0.5
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight: 1", "wieght: 1", "line 6: parameter 'wieght' of ties is not supporte"
         "d; did you mean weight?"),
        ("weight: 1", "lambda: 1", "line 6: lambda of one model is not supported; set"
         " it for the recipe"),
        ("weight: 1", "weight: much", "line 6: weight 'much' is no finite number"),
        ("weight: [0, 1]", "weight: [0, yes]", "line 9: weight True is no finite"),
        ("weight: [0, 1]", "weight: []", "line 9: weight is an empty list"),
        ("weight: [0, 1]", "weight: [{filter: x}]", "line 9: a condition of weight is"),
        ("weight: [0, 1]", "weight: [{regex: '(', value: 1}]", "line 9: regex of w"),
        ("      weight: 1\n", "      density: 1\n", "line 4: ties needs weight of a"),
        ("- model: a", "- modell: a", "line 4: a model needs model: PATH"),
        ("density: 0.5", "normalize: maybe", "line 11: normalize 'maybe' is not t"),
        ("parameters:\n  density", "dtype: int4\nparameters:\n  density", "line 10: dty"
         "pe 'int4' is not supported; use float32, bfloat16"),
        ("parameters:\n  density", "tokenizer_source: union\nparameters:\n  density",
         "line 10: tokenizer_source 'union' is not supported; use base or one of"),
        ("parameters:\n  density", "chat_template: auto\nparameters:\n  density",
         "line 10: key 'chat_template' is not supported"),
        ("base_model: base\n", "", "ties needs base_model"),
    ],
)  # fmt: skip
def test_mistakes_in_parameters_have_their_line(tmp_path, old, new, message):
    assert old in GOOD
    (tmp_path / "r.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(errors.UserError) as caught:
        recipe.read(tmp_path / "r.yaml")
    assert message in str(caught.value)


def test_all_mistakes_are_one_line(tmp_path):
    text = GOOD.replace("weight: 1", "x: 1").replace("density", "y") + "slices: []\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(errors.UserError) as caught:
        recipe.read(tmp_path / "r.yaml")
    message = str(caught.value)
    assert "4 problems: line 12: key 'slices'" in message
    assert "line 6: parameter 'x'" in message
    assert "line 11: parameter 'y'" in message
    assert "line 4: ties needs weight of a" in message
    assert "\n" not in message


def test_what_mergekit_ignores_is_said(tmp_path):
    text = GOOD.replace("- model: a", "- model: base").replace(
        "density: 0.5", "int8_mask: true"
    )
    (tmp_path / "r.yaml").write_text(text)
    assert (
        recipe.read(tmp_path / "r.yaml").notes
        == (
            "int8_mask has no effect on ties",
            "weight of base has no effect, it is the base",
        )[::-1]
    )


def test_a_condition_that_no_tensor_meets_is_said(tmp_path):
    paths = [save(tmp_path / n, {"norm": np.ones(3, np.float32)}) for n in "ab"]
    weight = [{"filter": "nrom", "value": 2}, {"value": 1}]
    report = stream.merge_files(paths, tmp_path / "out", weight=[weight, 1])
    assert report["notes"] == ["filter 'nrom' of weight holds for no tensor"]
