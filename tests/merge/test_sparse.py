"""Sparse merges: mergekit's values, one answer on every route, algebra, bad input."""

import json
import os
import pathlib
import re

import flax.core
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import merge
from jaxlab.merge.sparse import (
    at_random,
    random_bits,
    select_on_device,
    select_on_host,
    thresholds,
)

FEW = hypothesis.settings(max_examples=10, deadline=None)
floats = hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32))
VALUES = pathlib.Path(__file__).parents[1] / "values" / "merge"
TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-3}
SPARSE = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
KEY = jax.random.key(3)
BY_SHARE = {
    "ties": lambda b, f, share: merge.ties(b, f, 1.0, jnp.full(len(f), share)),
    "global": lambda b, f, share: merge.ties(
        b, f, 1.0, jnp.full(len(f), share), scope="global"
    ),
    "breadcrumbs": lambda b, f, share: merge.breadcrumbs(
        b, f, 1.0, jnp.full(len(f), share), 0.1
    ),
    "sce": lambda b, f, share: merge.sce(b, f, select_topk=share),
    "dare": lambda b, f, share: merge.dare(b, f, 1.0, share, key=KEY),
    "della": lambda b, f, share: merge.della(b, f, 1.0, share, 0.1, key=KEY),
}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def random_tree(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": {"w": jax.random.normal(keys[0], (8, 6), dtype)},
        "b": [jax.random.normal(keys[1], (2, 3, 4), dtype)],
        "c": jax.random.normal(keys[2], (5,), dtype),
    }


def models(dtype=jnp.float32):
    return random_tree(0, dtype), [random_tree(i, dtype) for i in (1, 2, 3)]


def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def place(tree):
    specs = {"a": {"w": P("x", "y")}, "b": [P("y", None, "x")], "c": P()}

    def put(leaf, spec):
        return jax.device_put(leaf, NamedSharding(mesh(), spec))

    return jax.tree.map(put, tree, specs)


# The values of mergekit.


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


@pytest.mark.parametrize(
    "select", [pytest.param("host", marks=pytest.mark.slow), "bisect"]
)
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


# One answer on every route.


@FEW
@hypothesis.given(
    st.integers(1, 300), st.integers(0, 5), st.integers(0, 2**31), st.data()
)
def test_cuts_are_those_of_a_sort(size, kind, seed, data):
    generator = np.random.default_rng(seed)
    base, tuned = generator.normal(size=(2, size)).astype(np.float32)
    if kind == 1:
        base, tuned = (x.astype(ml_dtypes.bfloat16) for x in (base, tuned))
    if kind == 2:  # many ties, many zeros
        tuned = base + generator.integers(0, 3, size).astype(np.float32)
    if kind == 3:
        base[: size // 2], tuned[: size // 2] = 0, 1e-40
        tuned[-1], tuned[-2:-1] = np.nan, np.inf
    split_at = data.draw(st.integers(0, size))
    parts = [(base[:split_at], tuned[:split_at]), (base[split_at:], tuned[split_at:])]
    patterns = select_on_host.bits(base, tuned)
    ranks = [1, size, size // 2 + 1]
    inside = np.sort(patterns)[::-1]
    wanted = [
        (int(inside[r - 1]), r - int((inside > inside[r - 1]).sum())) for r in ranks
    ]
    assert select_on_host.cuts(parts, ranks) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select_on_host, "CHUNK", 16)
        patch.setattr(select_on_host, "SAMPLE", 8)  # brackets that miss
        assert select_on_host.cuts(parts, ranks) == wanted
        by_digit = select_on_host._cuts_by_digit(parts, ranks, select_on_host.DIGITS[4])
        assert [by_digit[r] for r in ranks] == wanted
    for devices in (1, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "device_count", lambda devices=devices: devices)
            found = jax.jit(lambda p, r: select_on_device.largest([p], r))(
                jnp.asarray(patterns), select_on_device.words(ranks[2])
            )
        assert int(found) == wanted[2][0]


def test_ranks_are_exact_integers_of_the_density():
    assert thresholds.ranks_of(np.float32([0.7, 0.3, 0.01, 0, 1]), 10).tolist() == [
        7, 3, 1, 0, 11,
    ]  # fmt: skip
    assert thresholds.ranks_between(np.array([0.6]), np.array([0.7]), 10).tolist() == [
        [10],
        [5],
    ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scope": "global"},
        pytest.param(
            {"scope": "global", "ties": "lowest_index"}, marks=pytest.mark.slow
        ),
    ],
)
def test_ties_is_the_same_on_the_host_under_jit_and_sharded(dtype, options):
    base, finetuned = models(dtype)

    def merged(b, f, **more):
        return merge.ties(b, f, [0.5, 0.3, -0.2], [0.3, 0.5, 0.8], **options, **more)

    expected = bits(merged(base, finetuned))
    assert bits(merged(base, finetuned, select="bisect")) == expected
    assert bits(jax.jit(merged)(base, finetuned)) == expected
    by_weights = jax.jit(
        lambda w: merge.ties(base, finetuned, w, [0.3, 0.5, 0.8], **options)
    )
    assert bits(by_weights(jnp.array([0.5, 0.3, -0.2]))) == expected
    placed = place(base), [place(tree) for tree in finetuned]
    sharded = merged(*placed)
    assert bits(sharded) == expected
    for got, given in zip(*map(jax.tree.leaves, (sharded, placed[0])), strict=True):
        assert got.sharding.is_equivalent_to(given.sharding, got.ndim)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, f, w: merge.ties(b, f, w, 0.4),
        lambda b, f, w: merge.ties(b, f, w, 0.4, scope="global", ties="lowest_index"),
        lambda b, f, w: merge.breadcrumbs(b, f, w, 0.4, 0.1),
        lambda b, f, w: merge.sce(b, f, select_topk=0.4),
        lambda b, f, w: merge.dare(b, f, w, 0.4, key=jax.random.key(0)),
    ],
)
def test_sharded_merges_gather_nothing(function):
    base, finetuned = models()
    base, *finetuned = (place(tree) for tree in (base, *finetuned))
    program = jax.jit(function).lower(base, finetuned, jnp.ones(3)).compile().as_text()
    assert "all-reduce" in program
    moves = set(re.findall(r"(all-gather|all-to-all|collective-permute)", program))
    assert not moves
    wide = re.findall(r"= \S*\[(\d+,)*\d{2,}[^ ]* all-reduce\(", program)
    assert not wide


def test_random_masks_do_not_depend_on_sharding_or_chunks_or_other_leaves():
    base, finetuned = models()
    key = jax.random.key(5)

    def run(b, f):
        return merge.dare(b, f, 1.0, 0.5, key=key, rescale="expectation")

    whole = run(base, finetuned)
    assert bits(run(place(base), [place(tree) for tree in finetuned])) == bits(whole)
    assert bits(jax.jit(run)(base, finetuned)) == bits(whole)
    fewer = run({"c": base["c"]}, [{"c": tree["c"]} for tree in finetuned])
    assert bits(fewer) == bits(whole["c"])
    legacy = merge.dare(
        base, finetuned, 1.0, 0.5, key=jax.random.PRNGKey(5), rescale="expectation"
    )
    assert bits(legacy) == bits(whole)

    def ranked(b, f):
        return merge.della(b, f, 1.0, 0.5, key=key, rescale="expectation")

    assert bits(jax.jit(ranked)(base, finetuned)) == bits(ranked(base, finetuned))

    assert bits(ranked(place(base), [place(t) for t in finetuned])) == bits(
        ranked(base, finetuned)
    )


def test_ranks_in_rows_are_those_of_a_stable_sort():
    generator = np.random.default_rng(0)
    for shape in ((), (5,), (3, 7), (2, 5, 3), (4, 1), (0, 3), (3, 0)):
        base, tuned = generator.integers(0, 4, (2, *shape)).astype(np.float32)
        base, tuned = np.reshape(base, shape), np.reshape(tuned, shape)
        found = select_on_host.row_ranks(base, tuned)
        under_jit = jax.jit(at_random.row_ranks)(jnp.asarray(tuned - base))
        np.testing.assert_array_equal(found, under_jit)
        sizes = np.abs(tuned - base)
        if shape == (2, 5, 3):
            order = np.argsort(sizes, axis=1, kind="stable")
            np.testing.assert_array_equal(found, np.argsort(order, axis=1))


def test_uniform_numbers_are_uniform_and_independent():
    words = random_bits.stream(np.uint32([1, 2]), "blocks/attn/q", 0)
    drawn = random_bits.uniform(words, (400, 500), xp=np)
    on_device = random_bits.uniform(jnp.asarray(words), (400, 500), xp=jnp)
    np.testing.assert_array_equal(drawn, on_device)
    piece = random_bits.uniform(words, (300,), start=700, xp=np)
    np.testing.assert_array_equal(piece, drawn.ravel()[700:1000])
    far = random_bits.uniform(words, (6,), start=2**32 - 3, xp=np)
    np.testing.assert_array_equal(
        far[3:], random_bits.uniform(words, (3,), 2**32, xp=np)
    )
    assert not np.isin(far[3:], drawn.ravel()[:3]).any()
    counts = np.bincount((drawn.ravel() * 64).astype(int), minlength=64)
    expected = drawn.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi2(63): 1 in 10^5
    streams = [
        random_bits.stream(np.uint32([1, 3]), "blocks/attn/q", 0),
        random_bits.stream(np.uint32([1, 2]), "blocks/attn/q", 1),
        random_bits.stream(np.uint32([1, 2]), "blocks/attn/k", 0),
    ]
    others = [random_bits.uniform(stream, drawn.shape, xp=np) for stream in streams]
    others += [np.roll(drawn, shift) for shift in (1, 2, 256, 500, 4096)]
    for other in others:
        correlation = np.corrcoef(drawn.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(drawn.size)


def test_the_share_kept_is_the_density_and_for_della_grows_with_size():
    base = {"w": jnp.zeros((50, 400))}
    model = {"w": jnp.tile(jnp.arange(1.0, 401.0), (50, 1))}
    dropped = merge.dare(base, [model], None, 0.3, key=jax.random.key(1))
    assert abs(float((dropped["w"] != 0).mean()) - 0.3) < 0.02
    assert abs(float(dropped["w"].sum() / model["w"].sum()) - 1) < 1e-5  # L1 is back
    ranked = merge.della(base, [model], None, 0.5, 0.4, key=jax.random.key(1))
    kept = np.asarray(ranked["w"] != 0).mean(axis=0)
    assert abs(kept[:40].mean() - 0.14) < 0.03
    assert abs(kept[-40:].mean() - 0.86) < 0.03


# What is written out, algebra, odd trees.


def test_ties_elects_the_sign_of_the_weighted_sum():
    base = {"w": jnp.zeros(4)}
    first, second = (
        {"w": jnp.array([2.0, 1, -4, 0])},
        {"w": jnp.array([-1.0, 3, -2, 0])},
    )
    np.testing.assert_array_equal(
        merge.ties(base, [first, second])["w"], [2.0, 2.0, -3.0, 0.0]
    )
    np.testing.assert_array_equal(
        merge.ties(base, [first, second], [1, 3], lam=2, normalize=False)["w"],
        [-6.0, 20.0, -20.0, 0.0],
    )


def test_scopes_and_ties_at_the_cut_are_as_defined():
    base = {"a": jnp.zeros(4), "b": jnp.zeros(2)}
    model = {"a": jnp.array([1.0, -1, 1, 3]), "b": jnp.array([9.0, 8.0])}
    by_leaf = merge.ties(base, [model], density=0.5)
    np.testing.assert_array_equal(by_leaf["a"], [1.0, -1, 1, 3])
    np.testing.assert_array_equal(by_leaf["b"], [9.0, 0])
    exact = merge.ties(base, [model], density=0.5, ties="lowest_index")
    np.testing.assert_array_equal(exact["a"], [1.0, 0, 0, 3])
    at_once = merge.ties(base, [model], density=0.5, scope="global")
    np.testing.assert_array_equal(at_once["a"], [0.0, 0, 0, 3])
    np.testing.assert_array_equal(at_once["b"], [9.0, 8.0])
    four = merge.ties(base, [model], density=0.7, scope="global", ties="lowest_index")
    np.testing.assert_array_equal(four["a"], [1.0, 0, 0, 3])


def test_rescaling_restores_the_norm_or_the_expectation():
    base, model = {"w": jnp.zeros(4)}, {"w": jnp.array([1.0, -2, 3, 4])}
    masks = [{"w": np.array([True, True, False, False])}]

    def run(rescale):
        return merge.dare(base, [model], density=0.25, masks=masks, rescale=rescale)[
            "w"
        ]

    np.testing.assert_allclose(run("l1"), [10 / 3, -20 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(run("expectation"), [4.0, -8, 0, 0])
    np.testing.assert_array_equal(run(None), [1.0, -2, 0, 0])
    trimmed = merge.ties(base, [model], density=0.5, rescale="l1")["w"]
    np.testing.assert_allclose(trimmed, [0, 0, 30 / 7, 40 / 7], rtol=1e-6)


@FEW
@hypothesis.given(floats, floats, floats, st.floats(-2, 2, width=16))
def test_ties_follows_its_algebra(x, y, z, lam):
    base, finetuned = {"w": x}, [{"w": y}, {"w": z}]

    def run(f=finetuned, w=(0.5, 0.25), **more):
        return merge.ties(base, f, w, **more)["w"]

    assert bits(run(f=[base, base], density=0.5)) == bits(x)
    assert bits(run(lam=0.0, density=0.5)) == bits(x)
    assert bits(run(w=(0, 0), density=0.5)) == bits(x)
    bound = 1e-5 * np.abs([x, y, z]).max() * (1 + abs(lam)) + 1e-30
    swapped = run(f=finetuned[::-1], w=(0.25, 0.5), density=0.5)
    np.testing.assert_allclose(run(density=0.5), swapped, rtol=0, atol=bound)
    one = run(density=0.5, normalize=False) - x
    scaled = run(density=0.5, normalize=False, lam=lam) - x
    np.testing.assert_allclose(lam * one, scaled, rtol=0, atol=4 * bound)
    whole = merge.apply_task_vectors(
        base, [{"w": y - x}, {"w": z - x}], (0.5, 0.25), lam=lam
    )["w"]
    for same in (
        merge.breadcrumbs(base, finetuned, (0.5, 0.25), 1.0, lam=lam),
        merge.dare(base, finetuned, (0.5, 0.25), 1.0, lam=lam, key=jax.random.key(0)),
    ):
        np.testing.assert_allclose(same["w"], whole, rtol=0, atol=bound)


def test_every_sparse_merge_of_equal_trees_is_the_base():
    base = {"w": jnp.array([-0.0, 0.0, 1e-39, 3.5]), "step": jnp.int32(3)}
    key = jax.random.key(0)
    for merged in (
        merge.ties(base, [base] * 2, density=0.5),
        merge.breadcrumbs(base, [base] * 2, density=0.5),
        merge.sce(base, [base] * 2, select_topk=0.5),
        merge.dare(base, [base] * 2, density=0.5, key=key),
        merge.della(base, [base] * 2, density=0.5, key=key),
    ):
        assert bits(merged) == bits(base)


def test_nan_in_any_model_is_nan_in_the_result_and_nowhere_else():
    base, finetuned = models()
    broken = finetuned[1] | {"c": finetuned[1]["c"].at[2].set(jnp.nan)}
    trees = [finetuned[0], broken, finetuned[2]]
    key = jax.random.key(0)
    for merged in (
        merge.ties(base, trees, density=0.2),
        merge.ties(base, trees, density=0.2, select="bisect"),
        merge.ties(base, trees, density=0.0),
        merge.breadcrumbs(base, trees, density=0.2, gamma=0.4),
        merge.dare(base, trees, density=0.2, key=key, rescale=None),
        merge.della(base, trees, density=0.2, key=key, rescale="expectation"),
    ):
        assert np.isnan(merged["c"]).tolist() == [False, False, True, False, False]
        assert not any(np.isnan(merged["a"]["w"]).ravel())
    assert np.isnan(merge.sce(base, trees, select_topk=0.5)["c"][2])


def test_one_program_serves_all_weights_lams_and_densities(caplog):
    base, finetuned = models()

    def run(w, d, lam):
        return (
            merge.ties(base, finetuned, w, d, lam=lam),
            merge.ties(base, finetuned, w, d, lam=lam, select="bisect"),
            merge.breadcrumbs(base, finetuned, w, d, d / 9, lam=lam, select="bisect"),
            merge.dare(base, finetuned, w, d, lam=lam, key=jax.random.key(0)),
            merge.sce(base, finetuned, select_topk=d),
        )

    run([1, 2, 3], 0.5, 1.0)
    with jax.log_compiles():
        run([3, 2, -1], 0.25, 0.3)
    assert not [r.message for r in caplog.records if "Finished XLA" in r.message]


@pytest.mark.slow
def test_weights_can_be_mapped_over_and_differentiated():
    base, finetuned = models()
    # All differences positive: no elected sign flips, where the merge jumps.
    finetuned = [jax.tree.map(lambda a, b: a + abs(b), base, f) for f in finetuned]
    rows = jnp.array([[0.5, 0.3, 0.2], [1.0, 0.4, 0.7]])

    def merged(w):
        return merge.ties(base, finetuned, w, 0.5)

    single = [merged(row) for row in rows]
    for many in (jax.vmap(merged)(rows), jax.lax.map(merged, rows)):
        for k in range(2):
            jax.tree.map(
                lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=1e-6),
                many,
                single[k],
            )

    def total(w, lam):
        return sum(
            jnp.sum(x**2)
            for x in jax.tree.leaves(merge.ties(base, finetuned, w, 0.5, lam=lam))
        )

    slopes = jax.grad(total, (0, 1))(rows[0], 0.8)
    step = 1e-2
    for k in range(3):
        to = [total(rows[0].at[k].add(s), 0.8) for s in (step, -step)]
        np.testing.assert_allclose(
            (to[0] - to[1]) / (2 * step), slopes[0][k], rtol=0.05
        )
    to = [total(rows[0], 0.8 + s) for s in (step, -step)]
    np.testing.assert_allclose((to[0] - to[1]) / (2 * step), slopes[1], rtol=0.01)


def test_weights_and_densities_may_differ_by_path():
    base, finetuned = models()
    weights = merge.weights_by_path([("a", 0.5), (None, 0.0)])
    merged = merge.ties(base, finetuned, weights, 0.5)
    only = merge.ties(base, finetuned, 0.5, 0.5)
    assert bits(merged["a"]) == bits(only["a"])
    assert bits(merged["c"]) == bits(base["c"])
    density = merge.weights_by_path([("a", 0.25), (None, 1.0)])
    merged = merge.ties(base, finetuned, 1.0, density)
    assert bits(merged["a"]) == bits(merge.ties(base, finetuned, 1.0, 0.25)["a"])
    assert bits(merged["c"]) == bits(merge.ties(base, finetuned, 1.0, 1.0)["c"])
    key = jax.random.key(0)
    merged = merge.della(base, finetuned, 1.0, density, 0.1, key=key)
    assert bits(merged["a"]) == bits(
        merge.della(base, finetuned, 1.0, 0.25, 0.1, key=key)["a"]
    )


def test_odd_trees_are_merged_and_tied_leaves_stay_tied():
    def tree(seed):
        w = jax.random.normal(jax.random.key(seed), (4, 3))
        state = optax.ScaleByAdamState(jnp.int32(7), {"w": w + 1}, {"w": w * w})
        return flax.core.freeze(
            {"in": w, "out": w, "none": None, "empty": jnp.zeros((0, 3)), "opt": state}
        )

    base, finetuned = tree(0), [tree(1), tree(2)]
    for merged in (
        merge.ties(base, finetuned, density=0.5),
        merge.dare(base, finetuned, density=0.5, key=jax.random.key(0)),
        merge.sce(base, finetuned, select_topk=0.5),
    ):
        assert jax.tree.structure(merged) == jax.tree.structure(base)
        assert merged["in"] is merged["out"]
        assert merged["opt"].count == 7
        assert merged["empty"].shape == (0, 3)


def test_a_donated_base_is_overwritten_by_the_same_merge():
    base, finetuned = models()
    expected = bits(merge.ties(base, finetuned, density=0.5))
    given = jax.tree.map(jnp.copy, base)
    assert bits(merge.ties(given, finetuned, density=0.5, donate=True)) == expected
    assert given["c"].is_deleted()


def test_everything_wrong_is_said_at_once():
    base, finetuned = models()
    other = {"a": finetuned[0]["a"], "b": finetuned[0]["b"]}
    with pytest.raises(ValueError, match=r"lacks c; scope .*; weights .*; density .*"):
        merge.ties(base, [base, other], [np.nan, 1], [0.5, 0.4, 0.3], scope="layer")
    with pytest.raises(ValueError, match=r"weights .*not all finite; density \[1.5"):
        merge.ties(base, finetuned[:1], [np.nan], 1.5)
    with pytest.raises(ValueError, match=r"need a key: key=jax.random.key"):
        merge.dare(base, finetuned, 1.0, 0.5)
    with pytest.raises(ValueError, match="a key and masks"):
        merge.dare(base, [base], key=jax.random.key(0), masks=[base])
    with pytest.raises(ValueError, match="2 masks for 3 trees"):
        merge.dare(base, finetuned, masks=[base] * 2)
    with pytest.raises(ValueError, match="mask 0 lacks c"):
        merge.dare(base, [base], masks=[other])
    with pytest.raises(ValueError, match=r"use an epsilon below 0.1"):
        merge.della(base, finetuned, 1.0, 0.9, 0.2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="scope 'layer' is not one of"):
        merge.ties(base, finetuned, scope="layer")
    with pytest.raises(ValueError, match="no finetuned"):
        merge.ties(base, [])
    with pytest.raises(ValueError, match="complex numbers have no sign"):
        merge.ties({"w": 1j * jnp.ones(2)}, [{"w": 1j * jnp.ones(2)}])
    with pytest.raises(ValueError, match="select='host' needs concrete"):
        jax.jit(lambda b: merge.ties(b, finetuned, density=0.5, select="host"))(base)


@pytest.mark.parametrize("method", BY_SHARE)
@pytest.mark.parametrize("shape", [(2**16, 2**15 + 1), (80, 8192, 28672)])
def test_leaves_of_more_elements_than_one_word_counts_are_taken(method, shape):
    function = BY_SHARE[method]
    tree = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    merged = jax.eval_shape(lambda b, m: function(b, [m, m], 0.5), tree, tree)
    assert (merged["w"].shape, merged["w"].dtype) == (shape, jnp.float32)


@pytest.mark.parametrize("method", BY_SHARE)
def test_leaves_that_are_counted_by_slices_merge_as_ever(method, monkeypatch):
    base, finetuned = models()
    placed = place(base), [place(tree) for tree in finetuned]

    def merged():
        jax.clear_caches()  # of programs that know another limit
        function = jax.jit(BY_SHARE[method])
        return [bits(function(*trees, 0.4)) for trees in ((base, finetuned), placed)]

    expected = merged()
    monkeypatch.setattr(select_on_device, "LIMIT", 20)
    assert max(leaf.size for leaf in jax.tree.leaves(base)) > 20
    assert merged() == expected
    jax.clear_caches()


def test_counts_and_indices_beyond_one_word_are_exact():
    counts = np.uint32([2**32 - 1] * 70)
    high, low = select_on_device._total(jnp.asarray(counts))
    assert int(high) * 2**16 + int(low) == 70 * (2**32 - 1)
    assert select_on_device.words(np.float32(3 * 2**33 + 2**12)).tolist() == [
        3 * 2**17,
        2**12,
    ]
    assert thresholds.ranks_of(np.array([0.5]), 2**35).tolist() == [2**34]
    traced = jax.jit(lambda d: select_on_device.words(thresholds.ranks_of(d, 2**35)))
    found = traced(jnp.array([0.5, 0, 1])).tolist()
    assert found[:2] == [[2**18, 0], [0, 0]]
    assert found[2][0] >= 2**19
    words, shape = np.uint32([7, 9]), (80, 8192, 28672)  # drawn only where it is read
    read = jax.jit(lambda: random_bits.uniform(words, shape, xp=jnp)[::79, 8191, -5:])()
    starts = [(i * 8192 + 8191) * 28672 + 28667 for i in (0, 79)]
    expected = [random_bits.uniform(words, (5,), start, xp=np) for start in starts]
    np.testing.assert_array_equal(read, expected)
    where = jax.jit(
        lambda: random_bits.uniform(words, shape, xp=jnp)[18:20, 2340:2342, ::7]
    )
    near = where()  # around 2^32
    for i in range(2):
        for j in range(2):
            start = ((18 + i) * 8192 + 2340 + j) * 28672
            row = random_bits.uniform(words, (28672,), start, xp=np)
            np.testing.assert_array_equal(near[i, j], row[::7])


def test_a_leaf_that_cannot_be_counted_is_refused_with_its_fix():
    def merged(shape, **options):
        tree = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
        jax.eval_shape(lambda b, m: merge.ties(b, [m], 1.0, 0.5, **options), tree, tree)

    with pytest.raises(ValueError, match=r"w has 4295032832 elements: reshape it"):
        merged((2**16 + 1, 2**16))
    with pytest.raises(ValueError, match=r"'lowest_index' takes less than 2\^32"):
        merged((2, 2**31), ties="lowest_index")
