"""Sparse merges repeat the values of mergekit."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab import merge

VALUES = pathlib.Path(__file__).parents[1] / "values" / "merge"
TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-3}
SPARSE = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def arguments(method, params, count):
    """A case's parameters as ours: (function, keywords)."""
    names = {"weight": "weights", "lambda": "lam"}
    keywords = {names.get(name, name): value for name, value in params.items()}
    keywords.pop("int8_mask", None)
    if keywords.get("rescale") is False:
        keywords["rescale"] = None
    if method == "sce":
        return merge.sce, keywords
    keywords.setdefault("weights", [1.0] * count)
    function = getattr(merge, method.split("_")[0])
    if method != "ties":
        keywords["consensus"] = method in ("breadcrumbs_ties", "dare_ties", "della")
    return function, keywords


def check(got, wanted, tolerance, where):
    for name, value in wanted.items():
        found, value = np.float32(got[name]), np.float32(value)
        bound = tolerance * np.abs(value).max(initial=0)
        np.testing.assert_allclose(found, value, 0, bound, err_msg=f"{where} {name}")


def own_cases():
    recorded = json.loads((VALUES / "cases.json").read_text())
    return recorded["shapes"], recorded["cases"]


def split(flat, shapes, leaves):
    tree, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        piece = flat[..., at : at + size].reshape(*flat.shape[:-1], *shape)
        tree |= {name: piece} if name in leaves else {}
        at += size
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("select", ["host", "bisect"])
@pytest.mark.parametrize("method", SPARSE)
def test_what_mergekit_selects_and_sums_is_repeated(method, select):
    values = np.load(VALUES / "values.npz")
    shapes, cases = own_cases()
    cases = [case for case in cases if case["method"] == method]
    assert len(cases) >= 4
    for case in cases:
        trees = {
            name: jax.tree.map(
                lambda x, case=case: jnp.asarray(x, case["dtype"]),
                split(values[name], shapes, case["leaves"]),
            )
            for name in case["models"]
        }
        base = trees.pop("base")
        function, keywords = arguments(method, case["params"], 3)
        got = function(base, [*trees.values()], select=select, **keywords)
        wanted = split(values[case["name"]], shapes, case["leaves"])
        check(got, wanted, TOLERANCE[case["dtype"]], case["name"])


@pytest.mark.parametrize("method", RANDOM)
def test_what_mergekit_drops_by_a_mask_is_repeated(method):
    values = np.load(VALUES / "values.npz")
    shapes, cases = own_cases()
    cases = [case for case in cases if case["method"] == method]
    assert len(cases) >= 2
    for case in cases:

        def load(name, case=case):
            return split(values[name], shapes, case["leaves"])

        base, *finetuned = (
            jax.tree.map(lambda x, case=case: jnp.asarray(x, case["dtype"]), load(name))
            for name in case["models"]
        )
        drawn = load(case["name"] + "/mask")
        masks = [{name: mask[k] for name, mask in drawn.items()} for k in range(3)]
        function, keywords = arguments(method, case["params"], 3)
        got = function(base, finetuned, masks=masks, **keywords)
        check(got, load(case["name"]), TOLERANCE[case["dtype"]], case["name"])


def shared_cases():
    folder = os.environ.get("JAXLAB_TEST_DATA")
    folder = pathlib.Path(folder or "absent").resolve().parent / "vectors" / "merge"
    if not (folder / "merge_cases.json").exists():
        pytest.skip("beside JAXLAB_TEST_DATA there are no vectors/merge")
    recorded = json.loads((folder / "merge_cases.json").read_text())
    cases = [c for c in recorded["cases"] if c.get("method") in (*SPARSE, *RANDOM)]
    files = (np.load(folder / f"merge_{name}.npz") for name in ("inputs", "outputs"))
    return cases, *files


@pytest.mark.slow
def test_the_shared_values_of_mergekit_are_repeated():
    cases, inputs, outputs = shared_cases()
    assert len(cases) >= 10
    for case in cases:
        dtype = case.get("out_dtype") or case["inp"]

        def load(name, case=case):
            return {
                leaf: jnp.asarray(inputs[f"{name}/{leaf}"], case["inp"])
                for leaf in case["leaves"]
            }

        finetuned = [load(m) for m in case["models"] if m != case["base"]]
        function, keywords = arguments(case["method"], case["params"], len(finetuned))
        if case["method"] in RANDOM:
            keywords["masks"] = [
                {
                    leaf: outputs.get(
                        f"{case['case']}/{leaf}/mask{k}",
                        np.ones(inputs[f"base/{leaf}"].shape),
                    )
                    for leaf in case["leaves"]
                }
                for k in range(len(finetuned))
            ]
        got = function(load("base"), finetuned, **keywords)
        for leaf in case["leaves"]:
            wanted = outputs[f"{case['case']}/{leaf}"]
            if dtype == "bfloat16":
                wanted = np.float32(wanted.view(ml_dtypes.bfloat16))
            found = np.float32(got[leaf])
            wrong = np.abs(found - wanted) > TOLERANCE[dtype] * np.abs(wanted).max()
            # Of elements that tie at the cut mergekit keeps arbitrary ones.
            if case["case"] == "ties_bf16_acc32":
                wrong &= ~tied(load("base")[leaf], [f[leaf] for f in finetuned], 0.5)
            assert not wrong.any(), (case["case"], leaf)


def tied(base, finetuned, density):
    found = np.zeros(base.shape, bool)
    for model in finetuned:
        sizes = np.abs(np.float32(model) - np.float32(base))
        cut = np.sort(sizes.ravel())[::-1][int(density * sizes.size) - 1]
        equal = sizes == cut
        found |= equal if (sizes >= cut).sum() > int(density * sizes.size) else False
    return found
