"""Reranker feedback as a loss and as a transform: closed forms and guards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import retrieval
from jaxlab.core import errors
from jaxlab.optim import query_distillation as qd
from tests.support import feedback_problems

EYE = jnp.eye(2)


def _run_transform(tx, query, steps, **scores):
    state, losses = tx.init(query), []
    for _ in range(steps):
        updates, state = tx.update(query, state, query, **scores)
        query = optax.apply_updates(query, updates)
        losses.append(float(optax.tree.get(state, "loss")))
    return query, losses


@functools.partial(jax.jit, static_argnames="kind")
def _closed_and_traced(kind, q, D, t, where):
    prepared = qd.prepare(
        q, D, t, student_scale=0.7, teacher_temperature=1.5, where=where
    )
    options = {"loss": "ranknet"} if kind == "ranknet" else {"direction": kind}
    loss = functools.partial(qd.feedback_loss, feedback=prepared, **options)
    traced = jax.value_and_grad(loss)(q)
    return qd.loss_and_gradient(q, prepared, **options), traced


# The loss, its scale and its gradient.


def test_the_loss_is_the_divergence_written_out():
    # q = (1, 0), c = log 3: the student has 3/4, 1/4; the teacher 1/2, 1/2.
    args = jnp.array([1.0, 0.0]), EYE, jnp.zeros(2)
    found = qd.reranker_kl_loss(*args, student_scale=np.log(3))
    np.testing.assert_allclose(found, 0.5 * np.log(4 / 3), rtol=1e-6)
    back = qd.reranker_kl_loss(*args, student_scale=np.log(3), direction="reverse")
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(back, expected, rtol=1e-6)
    both = qd.reranker_kl_loss(*args, student_scale=np.log(3), direction="symmetric")
    np.testing.assert_allclose(both, found + back, rtol=1e-6)


def test_temperature_divides_the_teachers_scores():
    args = jnp.array([1.0, 0.0]), EYE
    hot = qd.reranker_kl_loss(*args, jnp.array([1.0, 5.0]), teacher_temperature=4.0)
    assert hot == qd.reranker_kl_loss(*args, jnp.array([0.25, 1.25]))


@pytest.mark.parametrize("kind", [*qd.divergences.DIRECTIONS, "ranknet"])
def test_the_closed_form_is_the_gradient_in_float64(kind):
    with jax.enable_x64(True):
        q, D, t = (x[0] for x in feedback_problems.draw(dtype=np.float64))
        for where in (np.ones(5, bool), np.array([True, False, True, True, False])):
            found, expected = _closed_and_traced(kind, q, D, t, where)
            assert found[1].dtype == jnp.float64
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
        for loss, gradient in _closed_and_traced(kind, q, D, t, np.zeros(5, bool)):
            assert loss == 0  # nothing is left to learn from
            assert gradient.tolist() == [0.0] * 4


def test_the_forward_loss_in_float64_is_numpys():
    with jax.enable_x64(True):
        q, D, t = (x[0] for x in feedback_problems.draw(1, dtype=np.float64))
        keep, c = np.array([0, 2, 3]), 0.8
        p, s = np.exp(t[keep]), np.exp(c * D[keep] @ q)
        p, s = p / p.sum(), s / s.sum()
        where = np.isin(np.arange(5), keep)
        found = qd.reranker_kl_loss(q, D, t, student_scale=c, where=where)
        np.testing.assert_allclose(found, np.sum(p * np.log(p / s)), rtol=1e-12)
        tx = qd.reranker_feedback()
        scores = {"candidates": D, "teacher_scores": t, "where": where}
        gradient, _ = tx.update(q, tx.init(q), q, student_scale=c, **scores)
        np.testing.assert_allclose(gradient, c * D[keep].T @ (s - p), rtol=1e-12)


def test_ranknet_is_its_formula_over_pairs():
    q, D, t = (x[0] for x in feedback_problems.draw(2, dtype=np.float64))
    t[1], use = t[0], [0, 1, 2, 4]  # a tie makes no pair
    s, order = 0.5 * D @ q, sorted(use, key=lambda i: -t[i])
    rank = {i: place + 1 for place, i in enumerate(order)}
    terms = [
        np.log1p(np.exp(s[j] - s[i])) / (rank[i] + rank[j])
        for i in use
        for j in use
        if t[i] > t[j]
    ]
    where = np.isin(np.arange(5), use)
    with jax.enable_x64(True):
        found = qd.ranknet_loss(q, D, t, student_scale=0.5, where=where)
        np.testing.assert_allclose(found, np.mean(terms), rtol=1e-12)


def test_the_scale_gives_half_the_rerankers_range():
    q, D = jnp.array([3.0, 1.0]), EYE  # s = 3, 1
    t = jnp.array([-2.0, 6.0])
    assert qd.match_score_range(q, D, t) == 2.0
    assert qd.match_score_range(q, D, t, factor=1.0) == 4.0
    D, t = jnp.array([[1.0, 0], [0, 1], [9, 9]]), jnp.array([-2.0, 6.0, 100.0])
    where = jnp.array([True, True, False])
    assert qd.match_score_range(q, D, t, where=where) == 2.0


# The transform.


def test_the_transform_in_a_chain_is_refit_queries():
    q, D, t = feedback_problems.draw()
    tx = optax.chain(qd.reranker_feedback(), optax.adam(5e-3))
    found = retrieval.refit_queries(q, D, t, num_updates=6, student_scale=0.5)
    for row in range(3):
        query, losses = _run_transform(
            tx,
            jnp.asarray(q[row]),
            6,
            candidates=D[row],
            teacher_scores=t[row],
            student_scale=0.5,
        )
        np.testing.assert_allclose(query, found.queries[row], atol=1e-6)
        np.testing.assert_allclose(losses, found.losses[row], rtol=1e-5)


def test_the_transform_can_be_scanned_and_keeps_the_querys_type():
    q, D, t = (jnp.asarray(x[0], jnp.bfloat16) for x in feedback_problems.draw())
    tx = qd.reranker_feedback()

    def step(state, _):
        updates, state = tx.update(None, state, q, candidates=D, teacher_scores=t)
        return state, updates

    state, updates = jax.lax.scan(step, tx.init(q), length=2)
    assert updates.dtype == jnp.bfloat16
    assert state.loss.dtype == jnp.float32
    with pytest.raises(ValueError, match="needs the query"):
        tx.update(None, state, candidates=D, teacher_scores=t)


def test_a_batch_of_candidates_for_one_query_is_refused():
    q, D, t = feedback_problems.draw()
    with pytest.raises(errors.UserError, match="vmap over queries"):
        qd.reranker_kl_loss(q[0], D, t)
