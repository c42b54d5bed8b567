"""Feedback to a query without distillation: what ReFIT is compared with.

    weighted   alpha q + sum_i w_i d_i, the form of all that follow
    average    the mean of the query and of the first k candidates
    Rocchio    alpha q + beta mean(first) - gamma mean(last)
    TouR       one SGD step per round on -log of the mass of positives (hard), or on
               KL(teacher || student) (soft); retrieve and rerank between rounds

ReFIT with one step of SGD at rate e is the weighted form with alpha = 1 and
w = e c (p_T - p_S): Rocchio whose weights the reranker gives.

Vector feedback: Li et al. 2021 (arXiv:2108.11044), with the numbers of its published
runs. TouR: Sung et al. 2023 (arXiv:2205.12680) and its released loop.

Deviation: TouR searches phrases and adds the loss of starts and of ends; with one
vector per document there is one term.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlab.core import errors
from jaxlab.optim import query_distillation
from jaxlab.retrieval import refit


@jax.jit
def weighted_queries(
    queries: jax.Array,
    candidates: jax.Array,
    weights: jax.Array,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
) -> refit.RefitResult:
    """alpha q + sum_i w_i d_i for every query.

    Args:
        queries: [B, dim].
        candidates: [B, K, dim]; one of weight 0 may hold anything.
        weights: [B, K]; a row of zeros leaves its query, whatever alpha is.
        alpha: weight of the query, a number or [B].

    Returns:
        As `refit_queries`, with losses [B, 0] and one update per query, or none.

    >>> q, D = jnp.array([[1.0, 0.0]]), jnp.eye(2)[None]
    >>> weighted_queries(q, D, jnp.array([[0.0, 0.5]])).queries
    Array([[1. , 0.5]], dtype=float32)
    """
    wide = jnp.result_type(queries.dtype, jnp.float32)
    weights, count = weights.astype(wide), len(queries)
    used = jnp.where((weights != 0)[..., None], candidates, 0).astype(wide)
    precision = jax.lax.Precision.HIGHEST
    added = jnp.einsum("bk,bkd->bd", weights, used, precision=precision)
    start = queries.astype(wide)
    scale = jnp.broadcast_to(jnp.asarray(alpha, wide), (count,))[:, None]
    some = jnp.any(weights != 0, axis=1)
    moved = jnp.where(some[:, None], scale * start + added, start)
    return refit.RefitResult(moved, jnp.zeros((count, 0), wide), some.astype(jnp.int32))


@jax.jit
def average_queries(
    queries: jax.Array,
    candidates: jax.Array,
    *,
    depth: int = 3,
    scores: jax.Array | None = None,
    where: jax.Array | None = None,
) -> refit.RefitResult:
    """The mean of the query and of its first `depth` candidates.

    Args:
        queries, candidates: as for `weighted_queries`.
        depth: 1 or more; of fewer candidates, all.
        scores: [B, K], to order them by, best first; not finite is left out. None:
            they come in the order of the retrieval.
        where: bool[B, K], the candidates that count. Without any the query stays.

    >>> q, D = jnp.array([[1.0, 0.0]]), jnp.eye(2)[None]
    >>> average_queries(q, D, depth=1, where=jnp.array([[False, True]])).queries
    Array([[0.5, 0.5]], dtype=float32)
    """
    first, _ = _ends(candidates, scores, where, depth, 0)
    share = 1 / (1 + jnp.sum(first, axis=1))
    return weighted_queries(queries, candidates, first * share[:, None], alpha=share)


@jax.jit
def rocchio_queries(
    queries: jax.Array,
    candidates: jax.Array,
    *,
    alpha: float = 0.4,
    beta: float = 0.6,
    gamma: float = 0.0,
    positives: int = 5,
    negatives: int = 0,
    scores: jax.Array | None = None,
    where: jax.Array | None = None,
) -> refit.RefitResult:
    """alpha q + beta mean(first `positives`) - gamma mean(last `negatives`).

    Args:
        queries, candidates, scores, where: as for `average_queries`.
        alpha, beta, gamma: the weights.
        positives, negatives: numbers of candidates; of fewer, all, and one may be
            both.

    >>> q, D = jnp.array([[1.0, 0.0]]), jnp.array([[[0.0, 1.0], [1.0, 1.0]]])
    >>> rocchio_queries(q, D, alpha=0.5, beta=1.0, gamma=0.25, negatives=1).queries
    Array([[0.75, 0.75]], dtype=float32)
    """
    first, last = _ends(candidates, scores, where, positives, negatives)
    weights = beta * _shares(first) - gamma * _shares(last)
    return weighted_queries(queries, candidates, weights, alpha=alpha)


def tour_queries(
    queries: jax.Array,
    candidates: jax.Array,
    teacher_scores: jax.Array,
    *,
    form: str = "hard",
    turn: int = 0,
    turns: int = 3,
    previous: jax.Array | None = None,
    learning_rate: float = 1.2,
    momentum: float = 0.99,
    weight_decay: float = 0.1,
    max_norm: float = 1.0,
    temperature: float = 0.5,
    top_p: float = 0.5,
    where: jax.Array | None = None,
) -> refit.RefitResult:
    """One of TouR's turns; the caller retrieves and reranks again before the next.

    Positive are the fewest candidates that hold `top_p` of softmax(t / temperature). A
    query whose best candidate, by its own score, is positive has arrived and stays.

    Args:
        queries: [B, dim].
        candidates: [B, K, dim] of this turn's retrieval (released: K = 10).
        teacher_scores: [B, K].
        form: "hard" is -log of the positives' mass, "soft" KL(teacher || student).
        turn, turns: this one, from 0, of how many; the rate falls linearly to 0.
        previous: [B, dim], the queries before the last turn, from which momentum is
            read; needed after turn 0.
        learning_rate, momentum, weight_decay: of SGD; the released command leaves the
            decay at its library's default.
        max_norm: bound on each gradient's norm, before the decay.
        temperature, top_p: of the teacher.
        where: bool[B, K], the candidates that count. Without any the query stays.

    Returns:
        As `refit_queries`, losses [B, 1].

    Raises:
        UserError: an unknown form, a turn outside the turns or without `previous`.

    >>> q, D, t = jnp.array([[1.0, 0.0]]), jnp.eye(2)[None], jnp.array([[0.0, 9.0]])
    >>> tour_queries(q, D, t, learning_rate=1.0, weight_decay=0.0).queries.round(2)
    Array([[0.29, 0.71]], dtype=float32)
    """
    if form not in ("hard", "soft"):
        raise errors.UserError(f"form {form!r}; use 'hard' or 'soft'")
    if not 0 <= turn < turns:
        raise errors.UserError(f"turn {turn} of {turns}; count from 0")
    if turn and previous is None:
        raise errors.UserError(f"turn {turn}: give the queries before as `previous`")
    rates = [learning_rate * (1 - i / turns) for i in (turn, turn - 1)]
    return _tour_turn(
        queries,
        candidates,
        teacher_scores,
        where,
        previous if turn else None,
        (*rates, momentum, weight_decay, max_norm, temperature, top_p),
        form=form,
    )


@functools.partial(jax.jit, static_argnames="form")
def _tour_turn(queries, candidates, teacher_scores, where, previous, numbers, *, form):
    rate, last_rate, momentum, weight_decay, max_norm, temperature, top_p = numbers
    wide = jnp.result_type(queries.dtype, jnp.float32)
    start, velocity = queries.astype(wide), jnp.zeros((), wide)
    if previous is not None:
        # What torch's momentum buffer held: the last step over its rate.
        velocity = (previous.astype(wide) - start) / last_rate
    one = functools.partial(
        _tour_gradient, form=form, temperature=temperature, top_p=top_p
    )
    losses, gradients, going = jax.vmap(one)(start, candidates, teacher_scores, where)
    norms = jnp.linalg.norm(gradients, axis=1, keepdims=True)
    gradients *= jnp.minimum(1.0, max_norm / (norms + 1e-6))
    gradients += weight_decay * start
    moved = start - rate * (momentum * velocity + gradients)
    return refit.RefitResult(
        jnp.where(going[:, None], moved, start),
        losses[:, None],
        going.astype(jnp.int32),
    )


def _tour_gradient(query, candidates, teacher_scores, where, form, temperature, top_p):
    """Loss, gradient, and whether the query has not arrived yet."""
    given = query_distillation.prepare(
        query, candidates, teacher_scores, teacher_temperature=temperature, where=where
    )
    shares = jnp.where(given.usable, jax.nn.softmax(given.teacher_logits), 0.0)
    order = jnp.argsort(-shares)
    before = jnp.cumsum(shares[order]) - shares[order]
    positive = jnp.zeros_like(given.usable).at[order].set(before < top_p)
    positive &= given.usable
    scores = jnp.dot(
        given.candidates.astype(query.dtype),
        query,
        precision=jax.lax.Precision.HIGHEST,
    )
    best = jnp.argmax(jnp.where(given.usable, scores, -jnp.inf))
    going = jnp.any(given.usable) & ~positive[best]
    if form == "hard":
        # KL from the student's own shares of the positives is -log of their mass.
        own = jnp.where(positive, jax.lax.stop_gradient(scores), -jnp.inf)
        own = jnp.where(jnp.any(positive), own, 0.0)
        given = given._replace(teacher_logits=own)
    return *query_distillation.loss_and_gradient(query, given), going


def _ends(candidates, scores, where, first, last):
    """Masks, [B, K], of the first and the last usable candidates."""
    count = candidates.shape[1]
    usable = jnp.all(jnp.isfinite(candidates), axis=-1)
    if scores is None:
        scores = -jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32), usable.shape)
    usable &= jnp.isfinite(scores)
    if where is not None:
        usable &= jnp.asarray(where, bool)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), axis=1)
    ranks = jnp.argsort(order, axis=1)
    total = jnp.sum(usable, axis=1, keepdims=True)
    return usable & (ranks < first), usable & (ranks >= total - last)


def _shares(mask):
    return mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
