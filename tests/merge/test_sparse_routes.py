"""Sparse merges: one answer on the host, under jit, sharded, and of large leaves."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab import merge
from jaxlab.merge.sparse import (
    at_random,
    random_bits,
    select_on_device,
    select_on_host,
    thresholds,
)
from tests.support.trees import bits, models, place

FEW = hypothesis.settings(max_examples=10, deadline=None)
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


UNDER_JIT = {
    "ties": lambda b, f: merge.ties(b, f, [0.5, 0.3, -0.2], 0.3, lam=0.7),
    "ties, rescaled": lambda b, f: merge.ties(b, f, 1.0, 0.3, rescale="l1"),
    "breadcrumbs": lambda b, f: merge.breadcrumbs(b, f, [0.5, 0.3, 0.2], 0.4, 0.1),
    "breadcrumbs_ties": lambda b, f: merge.breadcrumbs(
        b, f, 1.0, 0.4, 0.1, consensus=True, normalize=True, rescale="l1"
    ),
    "sce": lambda b, f: merge.sce(b, f, select_topk=0.4),
    "dare": lambda b, f: merge.dare(b, f, [0.5, 0.3, 0.2], 0.3, key=KEY),
    "dare_ties": lambda b, f: merge.dare(
        b, f, 1.0, 0.3, key=KEY, consensus=True, rescale="expectation"
    ),
    "della": lambda b, f: merge.della(b, f, 1.0, 0.5, key=KEY, rescale="expectation"),
    "della_linear": lambda b, f: merge.della(
        b, f, [0.5, 0.3, 0.2], 0.5, 0.1, key=KEY, consensus=False
    ),
}


@pytest.mark.parametrize("method", UNDER_JIT)
def test_a_sparse_merge_under_jit_is_the_one_outside(method):
    trees = [{"w": tree["a"]["w"]} for tree in (models()[0], *models()[1])]
    function = UNDER_JIT[method]
    expected = bits(function(trees[0], trees[1:]))
    assert bits(jax.jit(function)(trees[0], trees[1:])) == expected


@pytest.mark.parametrize("method", BY_SHARE)
@pytest.mark.parametrize("shape", [(2**16, 2**15 + 1), (80, 8192, 28672)])
def test_leaves_of_more_elements_than_one_word_counts_are_taken(method, shape):
    function = BY_SHARE[method]
    tree = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    merged = jax.eval_shape(lambda b, m: function(b, [m, m], 0.5), tree, tree)
    assert (merged["w"].shape, merged["w"].dtype) == (shape, jnp.float32)


@pytest.mark.slow
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
