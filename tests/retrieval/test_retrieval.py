"""Search, indexes on disk, encoding, measures and files of retrieval."""

import functools
import gzip
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.retrieval import bm25, encode, formats, index_files, metrics, topk

ROOT = pathlib.Path(__file__).parents[2]
quick = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**16)


def whole_numbers(seed, *shape, low=-2, high=3):
    """Small whole numbers: inner products are exact, and most of them tie."""
    drawn = np.random.default_rng(seed).integers(low, high, size=shape)
    return drawn.astype(np.float32)


def expected(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def check_search(index, vectors, queries, k):
    scores, rows = index.search(queries, k)
    wanted = expected(vectors, queries, k)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, wanted[0])
    np.testing.assert_array_equal(rows, wanted[1])


# ---- top-k ----


@quick
@given(seeds, st.sampled_from([(1, 1), (5, 9), (300, 7), (2000, 3), (2011, 3)]))
def test_search_is_a_stable_argsort_of_the_scores(seed, size):
    rows, k = size
    vectors, queries = whole_numbers(seed, rows, 4), whole_numbers(seed + 1, 3, 4)
    check_search(retrieval.Index(vectors), vectors, queries, k)


@pytest.mark.parametrize("queries", [0, 1, 5, 300])
def test_any_number_of_queries_is_answered(queries):
    vectors, some = whole_numbers(0, 70, 4), whole_numbers(1, queries, 4)
    check_search(retrieval.Index(vectors), vectors, some, 7)


@quick
@given(seeds)
def test_blocks_are_merged_in_row_order(seed):
    vectors, queries = whole_numbers(seed, 300, 4), whole_numbers(seed + 1, 3, 4)
    blocks = topk.place_blocks(vectors, rows=64)  # the last one has 44
    found = topk.top_k(queries, blocks, 50)
    scores, rows = expected(vectors, queries, 50)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize(("rows", "k"), [(3, 5), (803, 10)])
def test_eight_devices_find_what_one_finds(rows, k):
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2})
    vectors, queries = whole_numbers(2, rows, 4), whole_numbers(3, 5, 4)
    index = retrieval.Index(vectors, mesh=mesh)
    check_search(index, vectors, queries, k)
    (_, _, block), *_ = index._blocks
    assert len(block.sharding.device_set) == 8
    assert {shard.data.shape[0] for shard in block.addressable_shards} == {
        -(-rows // 8)
    }
    parts = topk.top_k(queries, topk.place_blocks(vectors, mesh, rows=320), k, mesh)
    np.testing.assert_array_equal(parts.rows, expected(vectors, queries, k)[1])


def test_real_numbers_agree_with_numpy_and_between_devices():
    rng = np.random.default_rng(4)
    vectors, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (2000, 4))
    scores, rows = retrieval.Index(vectors).search(queries, 20)
    wanted = expected(vectors, queries, 20)
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-6)
    np.testing.assert_array_equal(rows, wanted[1])
    sharded = retrieval.Index(vectors, mesh=mesh_lib.make_mesh()).search(queries, 20)
    np.testing.assert_array_equal(sharded[1], rows)
    np.testing.assert_allclose(sharded[0], scores, rtol=1e-6)


def test_equal_vectors_have_equal_scores_wherever_they_are():
    rng = np.random.default_rng(5)
    vectors = np.tile(rng.normal(size=48).astype(np.float32), (1031, 1))
    scores, rows = retrieval.Index(vectors).search(rng.normal(size=(3, 48)), 200)
    assert (scores == scores[:, :1]).all()
    assert (rows == np.arange(200)).all()


def test_zero_is_one_number():
    vectors = np.array([[-1e-30, 0.0], [0.0, 0.0], [0.0, 1.0]], np.float32)
    scores, rows = retrieval.Index(vectors).search(np.array([[1e-30, 0.0]]), 3)
    assert rows.tolist() == [[0, 1, 2]]  # the first product underflows to -0
    assert scores.tolist() == [[0.0, 0.0, 0.0]]


def test_bf16_vectors_are_searched_as_the_f32_they_are():
    rng = np.random.default_rng(6)
    vectors = jnp.asarray(rng.normal(size=(500, 8)), jnp.bfloat16)
    queries = rng.normal(size=(3, 8))
    halves = retrieval.Index(vectors)
    wide = retrieval.Index(np.asarray(vectors, np.float32))
    assert halves.dtype == jnp.bfloat16
    assert wide.dtype == np.float32
    for a, b in zip(halves.search(queries, 9), wide.search(queries, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    assert halves.take([[1, 2]]).dtype == np.float32


def test_top_k_never_sees_anything_but_f32(monkeypatch):
    seen, real = [], jax.lax.top_k

    def spy(operand, k):
        seen.append(operand.dtype)
        return real(operand, k)

    monkeypatch.setattr(jax.lax, "top_k", spy)
    jax.clear_caches()  # or nothing is traced
    for rows in (8, 4096):
        retrieval.Index(jnp.ones((rows, 8), jnp.bfloat16)).search(np.ones((2, 8)), 4)
    assert len(seen) == 3  # one level, then two
    assert {*seen} == {jnp.dtype("float32")}


@given(st.integers(1, 10**7), st.integers(1, 4096))
def test_blocks_are_bounded_equal_and_aligned(rows, dim):
    block = topk.block_rows(rows, dim)
    count = -(-rows // block)
    assert block % 64 == 0
    assert block <= 2**17
    assert 4 * dim * (block - 64) < 2**28
    assert block * count < rows + 64 * (count + 1)


# ---- what cannot be searched ----


def test_few_vectors_or_none_are_all_that_is_returned():
    queries = np.ones((2, 3))
    scores, ids = retrieval.Index(np.zeros((0, 3)), []).search(queries, 5)
    assert scores.shape == ids.shape == (2, 0)
    scores, ids = retrieval.Index(np.ones((2, 3)), ["x", "y"]).search(queries, 5)
    assert ids.tolist() == [["x", "y"]] * 2


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (np.ones(3), None, r"float64\[3\].*\[N, dim\]"),
        ([["a"]], None, r"real numbers"),
        (np.ones((2, 0)), None, r"\[2, 0\]"),
        ([[1.0], [np.nan]], None, "vector 1 is not finite"),
        ([[1.0], [-np.inf]], None, "vector 1 is not finite"),
        ([[1e300]], None, "vector 0 is not finite in float32"),
        (np.ones((2, 1)), ["a"], "1 ids for 2 vectors"),
        (np.ones((2, 1)), ["a", "a"], "'a' is given twice"),
        (np.ones((2, 1)), ["a", 1], "all strings or all whole numbers"),
        (np.ones((2, 1)), [True, False], "all strings or all whole numbers"),
    ],
)
def test_vectors_and_ids_that_do_not_fit_are_named(vectors, ids, message):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index(vectors, ids)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones(2), 1, r"shape \[2\]; use \[Q, 2\]"),
        (np.ones((1, 3)), 1, r"shape \[1, 3\]; use \[Q, 2\]"),
        ([[1.0, np.nan]], 1, "queries: vector 0 is not finite"),
        ([[1e30, 0.0]], 1, "too large for float32; divide"),
        (np.ones((1, 2)), 0, "k 0; use 1 or more"),
    ],
)
def test_queries_that_do_not_fit_are_named(queries, k, message):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index([[1e10, 1.0]]).search(queries, k)


def test_an_index_keeps_its_own_vectors():
    vectors = np.eye(64, 16, dtype=np.float32)
    index = retrieval.Index(vectors)
    vectors[:] = 7
    assert index.search(np.eye(16)[:1], 1)[0] == 1
    assert index.take([0])[0, 0] == 1


# ---- on disk ----

VECTORS = whole_numbers(7, 150, 4)
IDS = [f"dök {i}\n" for i in range(150)]


def in_batches(size, stop=None):
    """Batches of VECTORS; an interruption at row `stop`."""
    for start in range(0, len(VECTORS), size):
        if stop is not None and start >= stop:
            raise KeyboardInterrupt
        yield VECTORS[start : start + size]


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.mark.parametrize("dtype", index_files.DTYPES)
def test_what_is_built_is_what_is_searched(dtype, tmp_path, monkeypatch):
    made = {"encoder": "sha256"}
    retrieval.Index.build(tmp_path, in_batches(40), IDS, dtype=dtype, made_from=made)
    monkeypatch.setattr(topk, "block_rows", lambda rows, dim: 64)
    index = retrieval.Index.open(tmp_path, verify=True)
    assert (len(index), index.dim, index.dtype.name) == (150, 4, dtype)
    assert index.made_from == made
    queries = whole_numbers(8, 3, 4)
    scores, ids = index.search(queries, 20)
    wanted = expected(VECTORS, queries, 20)  # whole numbers this small are bf16's too
    np.testing.assert_array_equal(scores, wanted[0])
    assert ids.tolist() == [[IDS[row] for row in rows] for rows in wanted[1]]
    np.testing.assert_array_equal(index.take(wanted[1]), VECTORS[wanted[1]])
    sharded = retrieval.Index.open(tmp_path, mesh=mesh_lib.make_mesh())
    assert sharded.search(queries, 20)[1].tolist() == ids.tolist()


def test_row_numbers_are_the_ids_where_none_are_given(tmp_path):
    index = retrieval.Index.build(tmp_path, [VECTORS])
    assert index.search(VECTORS[:1], 150)[1].dtype == np.int64
    index = retrieval.Index.append(tmp_path, [VECTORS[:2]])
    assert index.ids.tolist() == list(range(152))
    index = retrieval.Index.build(tmp_path, [VECTORS], np.arange(150) * 2)
    assert index.ids[3] == 6  # built anew, over the old one
    assert not list(tmp_path.glob("*.part"))


def test_the_bytes_do_not_depend_on_batches_interruptions_or_appends(tmp_path):
    build = retrieval.Index.build
    build(tmp_path / "once", [VECTORS], IDS)
    build(tmp_path / "twice", in_batches(7), IDS)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", in_batches(20, stop=60), IDS)
    with pytest.raises(errors.UserError, match="was not finished; build it again"):
        retrieval.Index.open(tmp_path / "killed")
    with (tmp_path / "killed" / "vectors.bin.part").open("ab") as file:
        file.write(b"torn")  # written, but not recorded
    asked = []

    def rest(done):
        asked.append(done)
        return [VECTORS[done:]]

    build(tmp_path / "killed", rest, IDS)
    assert asked == [60]
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "iterated", in_batches(20, stop=60), IDS)
    build(tmp_path / "iterated", in_batches(50), IDS)
    build(tmp_path / "appended", [VECTORS[:100]], IDS[:100])
    with pytest.raises(errors.UserError, match="150 ids for 149 vectors"):
        retrieval.Index.append(tmp_path / "appended", [VECTORS[101:]], IDS[100:])
    assert len(retrieval.Index.open(tmp_path / "appended", verify=True)) == 100
    retrieval.Index.append(tmp_path / "appended", [VECTORS[100:]], IDS[100:])
    for name in ("twice", "killed", "iterated", "appended"):
        assert contents(tmp_path / name) == contents(tmp_path / "once"), name


def test_a_build_that_was_killed_goes_on(tmp_path):
    script = f"""
import os, signal, numpy as np
from jaxlab.retrieval import index_files
def batches():
    for start in range(0, 60, 20):
        yield np.arange(start, start + 20, dtype=np.float32)[:, None]
    os.kill(os.getpid(), signal.SIGKILL)
index_files.build({str(tmp_path / "killed")!r}, batches(), None)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    vectors = np.arange(90, dtype=np.float32)[:, None]
    asked = []

    def rest(done):
        asked.append(done)
        return [vectors[done:]]

    retrieval.Index.build(tmp_path / "killed", rest)
    assert asked == [60]
    retrieval.Index.build(tmp_path / "whole", [vectors])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_unfinished_index_of_something_else_is_not_continued(tmp_path):
    build = retrieval.Index.build
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, in_batches(20, stop=60), IDS)
    for ids, options, named in (
        (IDS[::-1], {}, "ids"),
        (None, {}, "ids"),
        (IDS, {"dtype": "bfloat16"}, "dtype"),
        (IDS, {"made_from": {"encoder": 2}}, "made_from"),
    ):
        with pytest.raises(errors.UserError, match=f"other {named}; remove building"):
            build(tmp_path, [VECTORS], ids, **options)
    part = tmp_path / "vectors.bin.part"
    part.write_bytes(b"\1" + part.read_bytes()[1:])
    with pytest.raises(errors.UserError, match="does not match its checksum"):
        build(tmp_path, [VECTORS], IDS)


def test_damage_is_found_when_an_index_is_opened(tmp_path):
    open_ = retrieval.Index.open
    with pytest.raises(errors.UserError, match="is not an index; build one"):
        open_(tmp_path)
    retrieval.Index.build(tmp_path, [VECTORS], IDS)
    whole = contents(tmp_path)
    vectors, ids = tmp_path / "vectors.bin", tmp_path / "ids.jsonl"
    vectors.write_bytes(whole["vectors.bin"][:-1])
    with pytest.raises(errors.UserError, match="shorter than its 150 rows"):
        open_(tmp_path)
    vectors.write_bytes(b"\1" + whole["vectors.bin"][1:])
    open_(tmp_path)
    with pytest.raises(errors.UserError, match="does not match its checksum"):
        open_(tmp_path, verify=True)
    ids.write_bytes(whole["ids.jsonl"].replace(b"1", b"2", 1))
    with pytest.raises(errors.UserError, match=r"ids.jsonl does not match"):
        open_(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(errors.UserError, match="damaged or newer"):
        open_(tmp_path)


@pytest.mark.parametrize(
    ("batches", "ids", "options", "message"),
    [
        ([], None, {}, "no vectors were given"),
        ([np.ones((2, 3)), np.ones((1, 4))], None, {}, "row 2 have 4 dimensions"),
        ([np.ones((2, 3)), [[1, np.nan, 1]]], None, {}, "vector 2 is not finite"),
        ([np.ones((2, 3))], ["a"], {}, "1 ids for 2 vectors"),
        ([np.ones((2, 3))], ["a", "b", "c"], {}, "3 ids for 2 vectors"),
        ([np.ones((2, 3))], None, {"dtype": "int8"}, "use one of float32, bfloat16"),
        ([[[3.4e38]]], None, {"dtype": "bfloat16"}, "not finite in bfloat16"),
    ],
)
def test_what_cannot_be_built_is_said(batches, ids, options, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        retrieval.Index.build(tmp_path, batches, ids, **options)


def test_what_cannot_be_appended_is_said(tmp_path):
    retrieval.Index.build(tmp_path, [np.ones((2, 3))], ["a", "b"])
    before = contents(tmp_path)
    for ids, message in ((["a"], "'a' is given twice"), (None, "has ids; give")):
        with pytest.raises(errors.UserError, match=message):
            retrieval.Index.append(tmp_path, [np.ones((1, 3))], ids)
    assert contents(tmp_path) == before


# ---- encoding ----

LETTERS = [*"abcdefgh"]


def tokenizer():
    words = {x: i for i, x in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(list(words)[:4])
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    data = model.to_str().encode()
    return byte_pairs.BytePairs.from_bytes(data, {}, pathlib.Path("made"))


SHAPES = []


def sums(variables, tokens, mask, token_types):
    """A vector that tells what was read: weighted sum, tokens, places."""
    SHAPES.append(tokens.shape)
    places = jnp.arange(1.0, tokens.shape[1] + 1)
    weighted = jnp.sum(jnp.where(mask, tokens * places[None], 0), axis=1)
    return variables["params"] * jnp.stack([weighted, mask.sum(1)], axis=1)


def texts_of_many_lengths(count=60):
    rng = np.random.default_rng(9)
    sizes = rng.integers(0, 40, size=count)
    return [" ".join(rng.choice(LETTERS, size=size)) for size in sizes]


def test_vectors_come_in_the_order_of_the_texts_whatever_the_batches():
    texts, made, seen = texts_of_many_lengths(), tokenizer(), []
    rows = text_rows.encode_texts(made, texts, 36)
    places = np.arange(1, 37)
    wanted = np.stack([(rows.tokens * rows.mask * places).sum(1), rows.mask.sum(1)], 1)
    mesh = mesh_lib.make_mesh({"data": 3, "fsdp": 2}, jax.devices()[:6])
    cases = {}, {"batch_tokens": 64}, {"batch_tokens": 1}, {"mesh": mesh}
    for options in cases:
        found = retrieval.embed_texts(
            sums, jnp.float32(2), made, texts, length=36, **options
        )
        np.testing.assert_array_equal(found.vectors, 2 * wanted)
        assert found.truncated == sum(len(text.split()) > 34 for text in texts) > 0
    windows = encode.embed_windows(
        sums, jnp.float32(2), made, iter(texts), length=36, window=25,
        batch_tokens=128, progress=seen.append,
    )  # fmt: skip
    sizes, vectors = zip(*((len(x.vectors), x.vectors) for x in windows), strict=True)
    assert sizes == (25, 25, 10)
    np.testing.assert_array_equal(np.concatenate(vectors), 2 * wanted)
    assert seen == sorted(seen)
    assert len(seen) > 6
    assert seen[-1] == 60


def test_few_shapes_are_compiled():
    texts, made = texts_of_many_lengths(200), tokenizer()
    SHAPES.clear()
    jax.clear_caches()  # other tests may have compiled some
    retrieval.embed_texts(
        sums, jnp.float32(1), made, texts, length=64, batch_tokens=256
    )
    assert len(SHAPES) == len(set(SHAPES)) <= 5
    assert {width for _, width in SHAPES} <= {16, 32, 48}
    assert all(rows * width <= 256 for rows, width in SHAPES)


def test_texts_that_cannot_be_encoded_are_said():
    embed = functools.partial(
        retrieval.embed_texts, sums, jnp.float32(1), tokenizer(), length=16
    )
    with pytest.raises(errors.UserError, match="no texts to encode"):
        embed([])
    with pytest.raises(errors.UserError, match="one string"):
        embed("abc")
    with pytest.raises(errors.UserError, match="texts from 0: text 1 is not Unicode"):
        embed(["a", None])


def test_an_index_is_built_from_windows_of_texts(tmp_path):
    texts, made = texts_of_many_lengths(), tokenizer()

    def batches(done):
        windows = encode.embed_windows(
            sums, jnp.float32(1), made, texts[done:], length=36, window=25
        )
        return (window.vectors for window in windows)

    index = retrieval.Index.build(tmp_path, batches)
    whole = retrieval.embed_texts(sums, jnp.float32(1), made, texts, length=36)
    np.testing.assert_array_equal(index.take(np.arange(60)), whole.vectors)


# ---- measures ----

QRELS = {
    "q1": {"a": 2, "b": 1, "c": 0, "d": -1, "e": 1},
    "q2": {"a": 1},
    "q3": {"a": 0},
    "q4": {"z": 1},
}
RUN = {
    "q1": {"d": 5.0, "b": 4.0, "x": 3.0, "a": 2.0, "c": 1.0},
    "q2": {"a": 1.0, "b": 1.0},
    "q3": {"a": 1.0},
    "q9": {"a": 1.0},
}
ALL = ("recall@2", "recall@10", "recall", "map@2", "map@10", "map", "mrr@1", "mrr@10",
       "mrr", "ndcg@2", "ndcg@10", "ndcg")  # fmt: skip


def test_measures_are_what_they_are_by_hand():
    found = metrics.evaluate(QRELS, RUN, ALL)
    assert found.queries == ("q1", "q2", "q3", "q4")
    assert found.missing == ("q4",)
    # q1 ranks d b x a c: gains 0 1 0 2 0, three relevant. q2: b before a, as they tie.
    log = np.log2([2, 3, 4, 5, 6])
    best = 2 / log[0] + 1 / log[1] + 1 / log[2]
    wanted = {
        "recall@2": [1 / 3, 1],
        "recall@10": [2 / 3, 1],
        "map@2": [1 / 2 / 3, 1 / 2],
        "map@10": [(1 / 2 + 2 / 4) / 3, 1 / 2],
        "mrr@1": [0, 0],
        "mrr@10": [1 / 2, 1 / 2],
        "ndcg@2": [(1 / log[1]) / (2 / log[0] + 1 / log[1]), 1 / log[1]],
        "ndcg@10": [(1 / log[1] + 2 / log[3]) / best, 1 / log[1]],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found.values[name], [*values, 0, 0], rtol=1e-15)
        assert found.means[name] == pytest.approx(sum(values) / 4, rel=1e-15)
    for name in ("recall", "map", "mrr", "ndcg"):
        np.testing.assert_array_equal(found.values[name], found.values[f"{name}@10"])


def test_scores_tie_in_f32_and_the_larger_id_comes_first():
    assert metrics.ranking({"9": 1.0, "10": 1.0 + 1e-9, "b": 1.0}) == ["b", "9", "10"]


def test_runs_are_compared_query_by_query():
    qrels = {f"q{i}": {"a": 1} for i in range(40)}
    first = {f"q{i}": {"a": 1.0, "b": 0.0} for i in range(40)}
    second = {f"q{i}": {"a": 1.0, "b": 2.0 * (i % 4 == 0)} for i in range(40)}
    a, b = (metrics.evaluate(qrels, run, ["mrr"]) for run in (first, second))
    low, value, high = metrics.compare(a, b, "mrr", key=jax.random.key(0))
    assert 0 < low < value < high
    assert float(value) == pytest.approx(0.125, rel=1e-6)  # one in four at rank 2
    with pytest.raises(errors.UserError, match="map was not measured"):
        metrics.compare(a, b, "map", key=jax.random.key(0))
    fewer = metrics.evaluate({"q0": {"a": 1}}, first, ["mrr"])
    with pytest.raises(errors.UserError, match="other queries"):
        metrics.compare(a, fewer, "mrr", key=jax.random.key(0))


@pytest.mark.parametrize(
    ("run", "names", "message"),
    [
        (RUN, ["P@5"], "unknown metric 'P@5'"),
        (RUN, ["ndcg@0"], "unknown metric"),
        ({"q7": {"a": 1.0}}, ["map"], "none of the 4 judged queries"),
        ({"q1": {"a": float("nan")}}, ["map"], "'q1': the score of 'a' is NaN"),
    ],
)
def test_runs_that_cannot_be_measured_are_said(run, names, message):
    with pytest.raises(errors.UserError, match=message):
        metrics.evaluate(QRELS, run, names)


@pytest.mark.oracle
@quick
@given(seeds)
def test_live_trec_eval_agrees(seed):
    import pytrec_eval

    rng = np.random.default_rng(seed)
    names = [str(i) for i in range(30)]
    qrels = {
        f"q{i}": {str(d): int(rng.integers(-1, 4)) for d in rng.choice(30, 12, False)}
        for i in range(5)
    }
    run = {
        query: {
            d: float(rng.integers(0, 4)) + 1e-9 * rng.random()
            for d in rng.choice(names, 20, False).tolist()
        }
        for query in qrels
    }
    ours = metrics.evaluate(qrels, run, ["recall@5", "map@5", "map", "mrr", "ndcg@5",
                                         "ndcg@100", "ndcg"])  # fmt: skip
    measures = {"recall.5", "map_cut.5", "map", "recip_rank", "ndcg_cut.5,100", "ndcg"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for name, other in zip(
        ours.values,
        ("recall_5", "map_cut_5", "map", "recip_rank", "ndcg_cut_5", "ndcg_cut_100",
         "ndcg"), strict=True,
    ):  # fmt: skip
        wanted = [theirs[query][other] for query in ours.queries]
        np.testing.assert_allclose(ours.values[name], wanted, rtol=1e-12, err_msg=name)


# ---- files ----


def write(folder, **named):
    for name, text in named.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")


def beir(folder, corpus=None, queries=None, qrels=None):
    write(
        folder,
        corpus_jsonl=corpus
        or '{"_id": "d1", "title": "T", "text": "x"}\n\n{"_id": 2, "text": "Zürich"}\n',
        queries_jsonl=queries
        or '{"_id": "q1", "text": "?"}\n{"_id": "q2", "text": "!"}\n',
        qrels__test_tsv=qrels or "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\t2\t0\n",
    )


def test_a_beir_folder_is_read(tmp_path):
    beir(tmp_path)
    found = formats.read_beir(tmp_path)
    assert found.corpus.passages() == ["T x", "Zürich"]
    assert found.corpus.ids == ["d1", "2"]
    assert found.queries == {"q1": "?"}
    assert found.qrels == {"q1": {"d1": 1, "2": 0}}
    (tmp_path / "corpus.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    )
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "qrels").rename(tmp_path / "kept")
    (tmp_path / "qrels.dev.tsv").write_text("q2 0 d1 1\n")  # TREC's own columns
    assert formats.read_beir(tmp_path, split="dev").qrels == {"q2": {"d1": 1}}


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("corpus", '{"_id": "d1", "text": "x"}\n{\n', r"corpus.jsonl:2 is not JSON"),
        ("corpus", "[1]\n", r"corpus.jsonl:1 is not a JSON object"),
        ("corpus", '{"text": "x"}', r'corpus.jsonl:1 has no "_id"'),
        ("corpus", '{"_id": "d1"}', r'corpus.jsonl:1 has no string "text"'),
        ("corpus", '{"_id": "d1", "text": "x"}\n' * 2, "id 'd1' comes twice"),
        ("corpus", "\n", "holds no line"),
        ("corpus", '{"_id": "d9", "text": "x"}', "judges document '2', which is not"),
        ("queries", '{"_id": "q9", "text": "x"}', "judges query 'q1', which has no"),
        ("qrels", "query-id\tcorpus-id\n", "test.tsv:1: columns query-id, corpus-id;"),
        ("qrels", "q1\td1\tgood\n", "test.tsv:1: judgment 'good' is not a whole"),
        ("qrels", "q1\td1\t1\nq1\td1\n", "test.tsv:2: 2 columns"),
        ("qrels", "q1\td1\t1\nq1\td1\t0\n", "test.tsv:2: 'd1' was judged 1 before"),
        ("qrels", "query-id\tcorpus-id\tscore\n", "holds no judgment of split 'test'"),
    ],
)
def test_malformed_files_are_named_by_line(part, text, message, tmp_path):
    beir(tmp_path, **{part: text})
    with pytest.raises(errors.UserError, match=message):
        formats.read_beir(tmp_path)


def test_bytes_that_are_not_text_or_not_there_are_said(tmp_path):
    beir(tmp_path)
    with pytest.raises(
        errors.UserError, match=r"has no qrels/dev.tsv or qrels.dev.tsv"
    ):
        formats.read_beir(tmp_path, split="dev")
    (tmp_path / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "?"}\n\xff\n')
    with pytest.raises(errors.UserError, match=r"queries.jsonl:2 is not UTF-8"):
        formats.read_beir(tmp_path)
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(errors.UserError, match="cannot be read"):
        formats.read_corpus(tmp_path / "c.gz")


def test_the_real_sets_are_read(test_data):
    scifact = formats.read_beir(test_data / "scifact")
    assert (len(scifact.corpus.ids), len(scifact.queries)) == (5183, 300)
    assert sum(map(len, scifact.qrels.values())) == 339
    train = formats.read_qrels(test_data / "scifact" / "qrels.train.tsv")
    assert (len(train), sum(map(len, train.values()))) == (809, 919)
    german = formats.read_beir(test_data / "xquad", name="de")
    assert len(german.queries) == 1190
    finnish = formats.read_beir(test_data / "tydiqa_goldp", name="fi", split="dev")
    assert all(query.startswith("fi-dev") for query in finnish.qrels)


def test_a_run_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "run.txt"
    run = metrics.as_run(
        ["q1", "q2"],
        np.array([[0.1, 0.1], [-3.0, -1e-20]], np.float32),
        np.array([["a", "b"], ["c", "d"]], object),
    )
    formats.write_run(path, run, tag="t")
    assert path.read_text().splitlines()[:2] == ["q1 Q0 b 1 0.1 t", "q1 Q0 a 2 0.1 t"]
    again = formats.read_run(path)
    for query, scores in run.items():
        assert {d: np.float32(s) for d, s in again[query].items()} == scores
    formats.write_run(tmp_path / "again.txt", again, tag="t")
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()
    for text, message in (
        ("q Q0 d 1 0.5\n", "run.txt:1: 5 columns"),
        ("q Q0 d 1 x t\n", "run.txt:1: 'x' is not a number"),
        ("q Q0 d 1 1 t\n" * 2, "run.txt:2: 'd' comes twice"),
    ):
        path.write_text(text)
        with pytest.raises(errors.UserError, match=message):
            formats.read_run(path)
    with pytest.raises(errors.UserError, match="'a b' cannot be a column"):
        formats.write_run(path, {"q": {"a b": 1.0}})


def test_results_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "results.tsv"
    found = metrics.evaluate(QRELS, RUN, ALL)
    formats.write_results(path, found)
    again = formats.read_results(path)
    assert again.queries == found.queries
    for name in ALL:
        np.testing.assert_array_equal(again.values[name], found.values[name])
    path.write_text("query-id\tmap\nq1\t1\nq2\n")
    with pytest.raises(errors.UserError, match=r"results.tsv:3: 1 columns, not 2"):
        formats.read_results(path)


# ---- BM25 ----


@pytest.mark.oracle
def test_bm25_is_its_formula_and_needs_no_known_term():
    texts = ["the cat sat on the mat", "a dog and a cat", "", "cat cat dog", "東京 cat"]
    model = bm25.Bm25(texts, ["a", "b", "c", "d", "e"])
    scores, ids = model.search(["Dogs? a DOG!", "", "xyzzy"], 3)
    sizes, counts = np.array([3, 2, 0, 3, 2]), np.array([0, 1, 0, 1, 0])
    idf = np.log(1 + (5 - 2 + 0.5) / 2.5)
    wanted = idf * counts / (counts + 0.9 * (0.6 + 0.4 * sizes / 2))
    np.testing.assert_allclose(scores[0], np.sort(wanted)[::-1][:3], rtol=1e-6)
    assert ids.tolist() == [["b", "d", "a"], ["a", "b", "c"], ["a", "b", "c"]]
    assert not scores[1:].any()
    assert model.search(["cat"], 9)[0].shape == (1, 5)
    with pytest.raises(errors.UserError, match="none of 2 documents has a term"):
        bm25.Bm25(["", "!"])
