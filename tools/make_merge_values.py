"""Makes the small reference values under `tests/values/merge/` from mergekit.

    pip install mergekit==0.1.5 && python tools/make_merge_values.py

The tests read the values, so that running them needs neither mergekit nor torch.
mergekit (LGPL) is run, one tensor at a time; nothing of it is copied.

`values.npz` holds flat arrays in which the leaves of SHAPES follow one another:

    base ft1 ft2 ft3      f32[n]: the models
    CASE                  f32[n]: the merge; the leaves that the case lacks are NaN
    CASE/mask             bool[M, n]: the elements kept of model k, for random methods

`cases.json`: `shapes`, and per case its method, models in order, base (or null),
params (lists follow the order of the models without the base), the leaves it covers,
and `dtype`: "bfloat16" means that the models are rounded to bfloat16 first, mergekit
computes in float32 and the result is rounded to bfloat16.

Degenerate leaves: `zero` (all models equal), `constant` (every difference the same),
`antipodal` (ft2 is opposite to ft1 about the base, which is 0), `one`, `empty`. A case
lacks the leaves for which mergekit raises or gives NaN, and, where elements are chosen
by size, `constant` and `antipodal`, whose ties its unstable sort breaks arbitrarily.
The other leaves have no ties, in bfloat16 either.
"""

import argparse
import json
import math
import pathlib

import numpy as np

VALUES = pathlib.Path(__file__).parents[1] / "tests" / "values" / "merge"

SHAPES = {
    "matrix": (6, 5),
    "square": (4, 4),
    "vector": (7,),
    "conv": (2, 3, 4),
    "zero": (3, 3),
    "constant": (3, 4),
    "antipodal": (2, 3),
    "one": (1,),
    "empty": (0, 3),
}
MODELS = ("base", "ft1", "ft2", "ft3")
FINETUNED = MODELS[1:]
MIXED = {"weight": [1.0, -0.4, 0.7], "lambda": 1.3}
PLAIN = {"weight": [0.5, 0.3, 0.2]}
UNEQUAL = {"density": [0.3, 0.6, 0.9]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=VALUES)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    models, arrays, written = make_models(), {}, []
    for case in cases():
        values, masks, leaves = run(case, models)
        arrays[case["name"]] = values
        if masks is not None:
            arrays[case["name"] + "/mask"] = masks
        written.append(case | {"leaves": leaves})
        print(f"{case['name']}: {' '.join(leaves)}")
    flat = {
        m: np.concatenate([x.ravel() for x in t.values()]) for m, t in models.items()
    }
    np.savez_compressed(out / "values.npz", **flat, **arrays)
    lines = ",\n".join("  " + json.dumps(case) for case in written)
    head = f'"mergekit": "0.1.5", "shapes": {json.dumps(SHAPES)}'
    (out / "cases.json").write_text(f'{{{head}, "cases": [\n{lines}\n]}}\n')
    print(sum(file.stat().st_size for file in out.iterdir()) / 1e3, "kB")


def cases() -> list[dict]:
    """Every case without its leaves; a `_bf16` twin for each method."""
    linear = [
        _case("linear", "linear", {"weight": [4.0, 3.0, 2.0, 1.0]}, base=None),
        _case(
            "linear_sum",
            "linear",
            {"weight": [1.2, -0.5, 0.3], "normalize": False},
            models=FINETUNED,
            base=None,
        ),
        _case("task_arithmetic", "task_arithmetic", MIXED),
        _case("task_arithmetic_mean", "task_arithmetic", PLAIN | {"normalize": True}),
    ]
    return [
        twin
        for case in [*linear, *_geometric(), *_sparse(), *_random()]
        for twin in (case, case | {"name": case["name"] + "_bf16", "dtype": "bfloat16"})
    ]


def _geometric():
    pair = ("ft1", "ft3")
    return [
        *(_case(f"slerp_{t}", "slerp", {"t": t}, ("base", "ft3")) for t in (0, 0.3, 1)),
        _case("nuslerp", "nuslerp", {"weight": [0.7, 0.3]}, pair, None),
        _case("nuslerp_base", "nuslerp", {"weight": [0.2, 0.9]}, ("base", *pair)),
        *(
            _case(
                f"nuslerp_{axis}",
                "nuslerp",
                {"weight": [0.7, 0.3], "nuslerp_flatten": False}
                | {"nuslerp_row_wise": axis == "row_wise"},
                pair,
                None,
            )
            for axis in ("row_wise", "last_axis")
        ),
        _case("multislerp", "multislerp", PLAIN, FINETUNED, None),
        _case("multislerp_base", "multislerp", {"weight": [0.9, 0.4, 0.3]}),
        _case(
            "multislerp_sum",
            "multislerp",
            {"weight": [0.9, 0.4, 0.3], "normalize_weights": False},
            FINETUNED,
            None,
        ),
        _case("karcher", "karcher", {}, FINETUNED, None),
        _case("karcher_pair", "karcher", {"max_iter": 3}, pair, None),
        _case("model_stock", "model_stock", {}),
        _case("model_stock_pair", "model_stock", {}, ("base", *pair)),
        _case("model_stock_filter_wise", "model_stock", {"filter_wise": True}),
    ]


def _sparse():
    sparse = {"weight": [0.5, 0.3, 0.2], "density": 0.5}
    trimmed = {"density": 0.6, "gamma": 0.1}
    return [
        _case("ties", "ties", sparse),
        _case("ties_all", "ties", MIXED | {"density": 1.0}),
        _case("ties_none", "ties", MIXED | {"density": 0.0}),
        _case("ties_one_element", "ties", MIXED | {"density": 0.01}),
        _case("ties_sum", "ties", MIXED | UNEQUAL | {"normalize": False}),
        _case("ties_order", "ties", sparse, ("ft2", "base", "ft3", "ft1")),
        _case("breadcrumbs", "breadcrumbs", PLAIN | trimmed),
        _case("breadcrumbs_all", "breadcrumbs", MIXED | {"density": 1.0, "gamma": 0.2}),
        _case("breadcrumbs_capped", "breadcrumbs", MIXED | trimmed | {"gamma": 0.7}),
        _case("breadcrumbs_gamma_0", "breadcrumbs", MIXED | UNEQUAL | {"gamma": 0.0}),
        _case("breadcrumbs_ties", "breadcrumbs_ties", MIXED | UNEQUAL | {"gamma": 0.1}),
        _case(
            "breadcrumbs_ties_mean",
            "breadcrumbs_ties",
            PLAIN | trimmed | {"normalize": True},
        ),
        _case("sce", "sce", {}),
        _case("sce_half", "sce", {"select_topk": 0.5}),
        _case("sce_none", "sce", {"select_topk": 0.0}),
    ]


def _random():
    ranked = {"density": 0.6, "epsilon": 0.2}
    return [
        _case("dare_linear", "dare_linear", MIXED | UNEQUAL),
        _case("dare_linear_all", "dare_linear", MIXED | {"density": 1.0}),
        _case(
            "dare_linear_plain",
            "dare_linear",
            PLAIN | {"density": 0.6, "rescale": False, "normalize": True},
        ),
        _case("dare_ties", "dare_ties", MIXED | UNEQUAL),
        _case("dare_ties_mean", "dare_ties", PLAIN | UNEQUAL | {"normalize": True}),
        _case("della", "della", PLAIN | ranked),
        _case("della_all", "della", MIXED | {"density": 1.0}),
        _case("della_mixed", "della", MIXED | ranked | {"normalize": False}),
        _case("della_plain", "della", MIXED | ranked | {"rescale": False}),
        _case("della_linear", "della_linear", MIXED | ranked),
    ]


def _case(name, method, params, models=MODELS, base="base"):
    return {
        "name": name,
        "method": method,
        "models": list(models),
        "base": base,
        "params": params,
        "dtype": "float32",
    }


def make_models() -> dict[str, dict[str, np.ndarray]]:
    """Random models by name; no two differences of a leaf have one size in bfloat16."""
    generator = np.random.default_rng(0)
    models = {name: {} for name in MODELS}
    for leaf, shape in SHAPES.items():
        base = generator.normal(size=shape).astype(np.float32)
        others = [_moved(base, generator) for _ in FINETUNED]
        if leaf == "zero":
            others = [base] * 3
        if leaf == "constant":
            base = np.float32(np.round(4 * base) / 4)
            others = [base + np.float32(step) for step in (0.5, -0.25, 0.75)]
        if leaf == "antipodal":
            others = [others[0] - base, base - others[0], others[2] - base]
            base = np.zeros(shape, np.float32)
        for name, value in zip(MODELS, [base, *others], strict=True):
            models[name][leaf] = value
    return models


def _moved(base, generator):
    while True:
        moved = (base + 0.3 * generator.normal(size=base.shape)).astype(np.float32)
        for rounded in (np.asarray, _bfloat16):
            if np.unique(np.abs(rounded(moved) - rounded(base))).size < base.size:
                break
        else:
            return moved


def run(case: dict, models: dict) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """The merge of all leaves, the masks if it draws any, the leaves it covers."""
    values, masks, leaves = [], [], []
    for leaf, shape in SHAPES.items():
        value, mask = _run_leaf(case, [models[m][leaf] for m in case["models"]])
        if not _covered(case, leaf) or value is None or not np.isfinite(value).all():
            value, mask = np.full(shape, np.nan, np.float32), None
        else:
            leaves.append(leaf)
        values.append(value.ravel())
        count = len(case["models"]) - (case["base"] is not None)
        kept = np.ones((count, math.prod(shape)), bool) if mask is None else mask
        masks.append(kept)
    drawn = case["method"].startswith(("dare", "della"))
    return np.concatenate(values), np.hstack(masks) if drawn else None, leaves


def _covered(case, leaf):
    selects = case["method"].startswith(("ties", "breadcrumbs", "sce"))
    density = case["params"].get("density", case["params"].get("select_topk", 1.0))
    return leaf not in ("constant", "antipodal") or not selects or density in (0, 1)


def _run_leaf(case, tensors):
    """One tensor through mergekit: (the merge, masks drawn), or Nones if it raises."""
    import torch
    from mergekit import merge_methods
    from mergekit.merge_methods import api

    bfloat16 = case["dtype"] == "bfloat16"
    tensors = [torch.from_numpy(x.copy()) for x in tensors]
    base = case["models"].index(case["base"]) if case["base"] else None
    masks, draw = [], torch.bernoulli
    torch.manual_seed(sum(map(ord, case["name"])))

    def recorded(probabilities):
        masks.append(draw(probabilities))
        return masks[-1]

    torch.bernoulli = recorded
    try:
        merged = api.merge_tensors(
            [x.bfloat16() if bfloat16 else x for x in tensors],
            merge_methods.get(case["method"]),
            parameters=case["params"],
            base_index=base,
            dtype=torch.float32 if bfloat16 else None,
            out_dtype=torch.bfloat16 if bfloat16 else None,
        )
    except (ValueError, RuntimeError, IndexError) as error:
        print(f"  mergekit refuses: {error}")
        return None, None
    finally:
        torch.bernoulli = draw
    kept = [mask.bool().numpy().ravel() for mask in masks]
    return merged.float().numpy(), np.stack(kept) if kept else None


def _bfloat16(x):
    """float32 -> the nearest bfloat16 as float32, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


if __name__ == "__main__":
    main()
