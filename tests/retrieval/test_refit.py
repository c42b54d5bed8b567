"""Queries refit to a reranker's scores: guards, stops, sharding, released values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.optim import query_distillation as qd
from tests.support import feedback_problems

EYE = jnp.eye(2)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=8, deadline=None)
SMALL_SGD = optax.sgd(0.01)
EXACT_ADAM = optax.adam(0.005, eps=0.0)  # its first step is the rate exactly


# Guards.


SILENT = [
    ([1.0, 2.0], [[1.0, 1.0], [1.0, 1.0]], [5.0, 1.0]),  # duplicates
    ([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], [5.0, 1.0]),  # a query of zeros
    ([1.0, 2.0], [[0.0, 0.0], [0.0, 0.0]], [5.0, 1.0]),  # documents of zeros
    ([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], [5.0, 5.0]),  # an indifferent teacher
    ([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], [np.nan, 5.0]),  # one usable
    ([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], [np.nan, np.inf]),  # none
]


def test_feedback_that_says_nothing_leaves_the_query():
    q, D, t = (jnp.array(x, jnp.float32) for x in zip(*SILENT, strict=True))
    decaying = optax.adamw(0.1, weight_decay=0.5)  # would move it without a gradient
    for count, optimizer in ((2, None), (2, decaying), (1, None)):
        given = q, D[:, :count], t[:, :count]
        assert jax.vmap(qd.match_score_range)(*given).tolist() == [0.0] * 6
        result = retrieval.refit_queries(*given, num_updates=3, optimizer=optimizer)
        np.testing.assert_array_equal(result.queries, q)
        assert jnp.isfinite(result.losses).all()
        assert result.num_updates.tolist() == [0] * 6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_counts_as_masked(bad):
    q, D, t = feedback_problems.draw()
    where = np.ones((3, 5), bool)
    where[:, 1] = False
    wanted = retrieval.refit_queries(q, D, t, where=where, num_updates=5)
    scores, vectors = t.copy(), D.copy()
    scores[:, 1] = vectors[:, 1, 2] = bad
    for found in (
        retrieval.refit_queries(q, D, scores, num_updates=5),
        retrieval.refit_queries(q, vectors, t, num_updates=5),
        retrieval.refit_queries(q, vectors, scores, where=where, num_updates=5),
    ):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@quick
@given(seeds)
def test_the_order_of_candidates_and_the_masked_ones_change_nothing(seed):
    q, D, t = feedback_problems.draw(seed)
    run = functools.partial(retrieval.refit_queries, num_updates=5, learning_rate=0.01)
    order = np.random.default_rng(seed).permutation(5)
    wanted, found = run(q, D, t), run(q, D[:, order], t[:, order])
    np.testing.assert_allclose(found.queries, wanted.queries, atol=2e-5)
    junk = np.random.default_rng(seed + 1)
    padded = (
        np.concatenate([D, junk.normal(size=(3, 2, 4)).astype("f")], axis=1),
        np.concatenate([t, 50 * junk.normal(size=(3, 2)).astype("f")], axis=1),
    )
    where = np.arange(7)[None].repeat(3, 0) < 5
    masked = run(q, *padded, where=where)
    np.testing.assert_allclose(masked.queries, wanted.queries, atol=2e-5)


@quick
@given(seeds)
def test_small_steps_of_sgd_never_raise_the_forward_loss(seed):
    with jax.enable_x64(True):
        q, D, t = feedback_problems.draw(seed, dtype=np.float64)
        # Smooth with constant c^2 |D|^2 / 2, of which the rate is below the inverse.
        result = retrieval.refit_queries(
            q, D, t, optimizer=SMALL_SGD, num_updates=12, student_scale=1.0
        )
        assert np.all(np.diff(result.losses, axis=1) <= 1e-15)
        assert np.all(result.losses >= 0)


# The loop.


def test_bf16_candidates_are_multiplied_in_f32():
    q, D, t = feedback_problems.draw()
    half = jnp.asarray(D, jnp.bfloat16)
    found = retrieval.refit_queries(q, half, t, num_updates=5)
    wide = retrieval.refit_queries(q, half.astype(jnp.float32), t, num_updates=5)
    np.testing.assert_array_equal(found.queries, wide.queries)
    assert found.queries.dtype == jnp.float32
    narrow = retrieval.refit_queries(jnp.asarray(q, "bfloat16"), half, t, num_updates=5)
    assert narrow.queries.dtype == jnp.float32


def test_one_adam_step_moves_each_coordinate_by_the_rate():
    # s = (1, 0.9): c = 0.5 * 4 / 0.1 = 20; the teacher prefers the second.
    result = retrieval.refit_queries(
        np.array([[1.0, 0.9]], np.float32), EYE[None], np.array([[0.0, 4.0]], "f"),
        num_updates=1,
    )  # fmt: skip
    np.testing.assert_allclose(result.queries, [[0.995, 0.905]], atol=1e-6)
    # p_T = softmax(0, 4), log p_S = (log s(2), log s(-2)), s the sigmoid.
    high, low = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))
    s = 1 / (1 + np.exp(-2.0))
    expected = low * np.log(low / s) + high * np.log(high / (1 - s))
    np.testing.assert_allclose(result.losses, [[expected]], rtol=1e-5)


def test_no_updates_return_a_copy_and_inputs_stay():
    q, D, t = feedback_problems.draw()
    kept = [x.copy() for x in (q, D, t)]
    for updates in (0, 3):
        for relative in (False, True):
            device = jnp.array(q)
            result = retrieval.refit_queries(
                device, D, t, num_updates=updates, relative=relative
            )
            assert result.losses.shape == (3, updates)
            result.queries.delete()  # as donation would
            np.testing.assert_array_equal(device, kept[0])
    unmoved = retrieval.refit_queries(q, D, t, num_updates=0, relative=True).queries
    q[:] = 0
    np.testing.assert_array_equal(unmoved, kept[0])
    np.testing.assert_array_equal(D, kept[1])
    np.testing.assert_array_equal(t, kept[2])


def test_a_drift_bound_is_kept_and_only_far_queries_stop():
    q, D, t = feedback_problems.draw(4)
    free = retrieval.refit_queries(q, D, t, learning_rate=0.02, num_updates=30)
    units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (free.queries, q))
    drift = 1 - np.sum(np.prod(np.stack([*units]), axis=0), axis=1)
    bound = float(np.sort(drift)[1]) * 1.01  # two stay below, one would pass it
    held = retrieval.refit_queries(
        q, D, t, learning_rate=0.02, num_updates=30, max_drift=bound
    )
    far = drift > bound
    assert far.sum() == 1
    np.testing.assert_array_equal(held.queries[~far], free.queries[~far])
    stopped = int(held.num_updates[far][0])
    assert 0 < stopped < 30
    short = retrieval.refit_queries(q, D, t, learning_rate=0.02, num_updates=stopped)
    np.testing.assert_allclose(held.queries[far], short.queries[far], atol=1e-6)
    assert len({*held.losses[far][0, stopped:].tolist()}) == 1  # repeated


def test_a_query_stops_when_its_loss_stays():
    q, D, t = feedback_problems.draw(5)
    free = retrieval.refit_queries(q, D, t, optimizer=SMALL_SGD, num_updates=40)
    changes = np.abs(np.diff(free.losses, axis=1))
    tol = float(np.median(changes))
    held = retrieval.refit_queries(
        q, D, t, optimizer=SMALL_SGD, num_updates=40, tol=tol
    )
    expected = [int(np.argmax(row < tol)) + 1 if (row < tol).any() else 40
                for row in changes]  # fmt: skip
    assert held.num_updates.tolist() == expected
    assert len({*expected}) > 1


@quick
@given(seeds, st.sampled_from([1e-3, 30.0]))
def test_a_relative_rate_does_not_see_the_scale_of_embeddings(seed, scale):
    with jax.enable_x64(True):
        q, D, t = feedback_problems.draw(seed, dtype=np.float64)
        run = functools.partial(retrieval.refit_queries, num_updates=5, relative=True)
        wanted = run(q, D, t)
        both = run(scale * q, scale * D, t)
        np.testing.assert_allclose(both.queries, scale * wanted.queries, rtol=1e-9)
        documents = run(q, scale * D, t)
        np.testing.assert_allclose(documents.queries, wanted.queries, rtol=1e-9)
        unit = np.sqrt(np.mean(q**2, axis=1, keepdims=True))
        one = run(q, D, t, num_updates=1, optimizer=EXACT_ADAM).queries
        np.testing.assert_allclose(np.abs(one - q) / unit, 0.005, rtol=1e-9)


def test_any_optimizer_gets_its_extra_arguments_and_a_fresh_state():
    q, D, t = feedback_problems.draw(6)
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=9)
    run = functools.partial(
        retrieval.refit_queries,
        optimizer=optax.chain(optax.sgd(5.0), search),  # asks for value, grad, value_fn
        num_updates=4,
        student_scale=1.0,
    )
    result = run(q, D, t)
    assert np.all(np.diff(result.losses, axis=1) < 0)
    alone = run(q[:1], D[:1], t[:1])
    np.testing.assert_allclose(alone.queries[0], result.queries[0], rtol=1e-4)


def test_other_numbers_compile_nothing():
    q, D, t = feedback_problems.draw()
    retrieval.refit_queries(q, D, t, num_updates=2, tol=0.1)
    compiled = retrieval.refit._refit._cache_size()
    for rate in (0.1, 0.2):
        retrieval.refit_queries(
            q + 1, D, t, num_updates=2, learning_rate=rate, tol=rate,
            teacher_temperature=rate,
        )  # fmt: skip
    assert retrieval.refit._refit._cache_size() == compiled


def test_sharded_queries_need_no_other_device_and_stay_where_they_are():
    q, D, t = feedback_problems.draw(batch=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("data"))
    put = [jax.device_put(x, place) for x in (q, D, t)]
    options = {"num_updates": 3, "tol": 1e-9, "max_drift": 0.5, "relative": True}
    found = retrieval.refit_queries(*put, **options)
    wanted = retrieval.refit_queries(q, D, t, **options)
    for a, b in zip(found, wanted, strict=True):
        assert a.sharding.is_equivalent_to(place, a.ndim)
        np.testing.assert_allclose(a, b, rtol=1e-5)
    text = jax.jit(lambda *a: retrieval.refit_queries(*a, **options)).lower(*put)
    compiled = text.compile().as_text()
    assert "while" in compiled
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in compiled


# Errors, and the values of the released code.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "backward"}, "direction 'backward'; use one of forward"),
        ({"loss": "mse"}, "loss 'mse'; use one of kl"),
        ({"teacher_temperature": 0.0}, "temperature 0.0; use a number above 0"),
        ({"num_updates": -1}, "num_updates -1"),
        ({"student_scale": "range"}, "use 'match_range' or numbers"),
        ({"learning_rate": optax.constant_schedule(1.0)}, "pass optimizer="),
        ({"where": np.ones(5, bool)}, r"where has shape \(5,\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(errors.UserError, match=message):
        retrieval.refit_queries(*feedback_problems.draw(), **options)


@pytest.mark.parametrize("wrong", ["flat", "batch", "dim", "none"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    q, D, t = feedback_problems.draw()
    q, D, t = {
        "flat": (q[0], D[0], t[0]),
        "batch": (q[:2], D, t),
        "dim": (q[:, :3], D, t),
        "none": (q, D[:, :0], t[:, :0]),
    }[wrong]
    with pytest.raises(errors.UserError, match=r"use \[B, dim\], \[B, K, dim\]"):
        retrieval.refit_queries(q, D, t)


RUNS = {
    "range_adam": {"num_updates": 100},
    "plain_sgd": {"num_updates": 20, "optimizer": optax.sgd(0.5), "student_scale": 1.0},
    "plain_adam": {"num_updates": 100, "student_scale": 1.0},
    "temp_adam": {
        "num_updates": 40, "learning_rate": 0.02, "student_scale": 0.5,
        "teacher_temperature": 4.0,
    },
    "reverse_sgd": {
        "num_updates": 20, "optimizer": optax.sgd(0.05), "student_scale": 1.0,
        "direction": "reverse",
    },
    "masked_adam": {"num_updates": 100, "student_scale": 1.0},
}  # fmt: skip


def test_the_values_of_the_released_code_are_reproduced(test_data):
    folder = test_data.parent / "vectors" / "tram_refit"
    if not folder.is_dir():
        pytest.skip("no reference values of ReFIT")
    problem = np.load(folder / "refit_problem.npz")
    candidates = problem["docs"][problem["first_ids"]]
    seen = []
    for name, options in RUNS.items():
        file = folder / f"refit_{name}.npz"
        if not file.is_file():
            continue
        seen.append(name)
        wanted = np.load(file)
        where = problem["mask"] if name == "masked_adam" else None
        given = problem["queries"], candidates, problem["teacher"]
        run = functools.partial(retrieval.refit_queries, where=where, **options)
        with jax.enable_x64(True):
            result = run(*given)
            close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
            close(result.queries, wanted["queries"][:, -1], err_msg=name)
            close(result.losses, wanted["losses"], err_msg=name)
            scores = np.asarray(result.queries) @ problem["docs"].T
            ids = np.argsort(-scores, axis=1)[:, : wanted["second_ids"].shape[1]]
            np.testing.assert_array_equal(ids, wanted["second_ids"])
            if name == "range_adam":
                scales = jax.vmap(qd.match_score_range)(*map(jnp.asarray, given))
                close(scales, problem["range_scale"])
        if name == "range_adam":
            single = run(*(x.astype(np.float32) for x in given))
            np.testing.assert_allclose(
                single.queries, wanted["queries"][:, -1], atol=2e-5
            )
    assert {"range_adam", "plain_sgd", "masked_adam"} <= {*seen}
