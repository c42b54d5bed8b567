"""Feedback without a reranker's gradient: averages, Rocchio's rule and TOUR."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import retrieval
from jaxlab.core import errors
from tests.support import feedback_problems

EYE = jnp.eye(2)


def test_one_step_of_sgd_is_rocchio_with_the_rerankers_weights():
    q, D, t = feedback_problems.draw(7)
    rate, c = 0.3, np.float32(0.7)
    step = retrieval.refit_queries(
        q, D, t, optimizer=optax.sgd(rate), num_updates=1, student_scale=c
    )
    p_t, p_s = jax.nn.softmax(t), jax.nn.softmax(c * np.einsum("bkd,bd->bk", D, q))
    rocchio = retrieval.weighted_queries(q, D, rate * c * (p_t - p_s))
    np.testing.assert_allclose(step.queries, rocchio.queries, atol=1e-6)


def test_average_and_rocchio_are_written_out():
    q = jnp.array([[4.0, 0.0]])
    D = jnp.array([[[0.0, 2.0], [2.0, 2.0], [8.0, 0.0], [jnp.nan, 0.0]]])
    found = retrieval.average_queries(q, D, depth=2)
    np.testing.assert_allclose(found.queries, [[2.0, 4 / 3]], rtol=1e-6)
    assert found.losses.shape == (1, 0)
    by_score = jnp.array([[1.0, 2.0, 3.0, 9.0]])  # the last is not finite: left out
    found = retrieval.average_queries(q, D, depth=1, scores=by_score)
    assert found.queries.tolist() == [[6.0, 0.0]]
    found = retrieval.rocchio_queries(
        q, D, alpha=0.5, beta=1.0, gamma=0.25, positives=2, negatives=1
    )
    assert found.queries.tolist() == [[2.0 + 1.0 - 2.0, 2.0]]
    few = retrieval.rocchio_queries(q, D)  # 0.4 q + 0.6 mean of all three
    np.testing.assert_allclose(few.queries, [[1.6 + 2.0, 0.8]], rtol=1e-6)


def test_without_candidates_the_baselines_leave_the_query():
    q, D, t = feedback_problems.draw()
    nothing = np.zeros((3, 5), bool)
    for result in (
        retrieval.average_queries(q, D, where=nothing),
        retrieval.rocchio_queries(q, D, gamma=0.1, negatives=2, where=nothing),
        retrieval.tour_queries(q, D, t, where=nothing),
        retrieval.tour_queries(q, D, t, form="soft", where=nothing),
    ):
        np.testing.assert_array_equal(result.queries, q)
        assert result.num_updates.tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_three_turns_of_tour_are_torchs_sgd_with_momentum(form):
    q, D, t = (x[:1].astype(np.float64) for x in feedback_problems.draw(8, count=4))
    t[0] = [0.0, 0.9, 1.0, -1.0]  # softmax(t / 0.5): 0.07, 0.41, 0.50, 0.01
    q[0] = 2 * D[0, 3] - D[0, 1] - D[0, 2]  # the last one is best: not arrived
    expected, buffer = q[0].copy(), 0.0
    share = np.exp(t[0] / 0.5) / np.exp(t[0] / 0.5).sum()
    positive = np.array([False, share[2] < 0.5, True, False])
    for turn in range(3):
        s = np.exp(D[0] @ expected)
        target = share if form == "soft" else s * positive / (s * positive).sum()
        gradient = D[0].T @ (s / s.sum() - target)
        gradient *= min(1, 1 / (np.linalg.norm(gradient) + 1e-6))
        buffer = 0.99 * buffer + gradient + 0.1 * expected
        expected = expected - 0.02 * (1 - turn / 3) * buffer
    with jax.enable_x64(True):
        before, now = None, q
        for turn in range(3):
            result = retrieval.tour_queries(
                now, D, t, form=form, turn=turn, previous=before, learning_rate=0.02
            )
            before, now = now, result.queries
            assert result.num_updates.tolist() == [1]
            assert result.losses.shape == (1, 1)
        np.testing.assert_allclose(now[0], expected, rtol=1e-12)


def test_tour_stops_at_a_positive_and_its_hard_loss_is_of_the_positives_mass():
    D, t = EYE[None], jnp.array([[0.0, 9.0]])
    arrived = retrieval.tour_queries(jnp.array([[0.0, 1.0]]), D, t)
    assert arrived.queries.tolist() == [[0.0, 1.0]]
    assert arrived.num_updates.tolist() == [0]
    away = retrieval.tour_queries(jnp.array([[1.0, 0.0]]), D, t)
    np.testing.assert_allclose(away.losses, [[np.log(1 + np.e)]], rtol=1e-6)


def test_tour_refuses_forms_and_turns_that_it_does_not_have():
    with pytest.raises(errors.UserError, match="use 'hard' or 'soft'"):
        retrieval.tour_queries(*feedback_problems.draw(), form="mild")
    with pytest.raises(errors.UserError, match="turn 3 of 3"):
        retrieval.tour_queries(*feedback_problems.draw(), turn=3)
    with pytest.raises(errors.UserError, match="as `previous`"):
        retrieval.tour_queries(*feedback_problems.draw(), turn=1)
