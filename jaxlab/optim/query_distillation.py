"""Reranker feedback: distil a cross-encoder's scores into one query vector.

    p_T = softmax(t / temperature)     the reranker, over the usable candidates
    p_S = softmax(c D q)               the retriever, D: [K, dim]
    forward   KL(p_T || p_S),  gradient in q:  c D' (p_S - p_T)
    reverse   KL(p_S || p_T),  gradient in q:  c D' (p_S * (r - p_S' r)),
              r = log p_S - log p_T

The forward loss is convex in q and for K <= dim can fall to 0, where the retriever
only repeats its teacher: the number of updates is the regulariser. One step of plain
SGD is Rocchio's formula with the weights p_T - p_S.

A candidate is usable when `where` allows it and its score and vector are finite; any
other, a NaN score among them, is left out as if it had not been retrieved. Without a
usable candidate the loss and the gradient are 0.

ReFIT: Reddy et al. 2023 (arXiv:2305.11744). RankNet feedback: FIRST, Reddy et al. 2024
(arXiv:2406.15657).

Deviations from the first author's released loop: the gradient is written out instead
of traced; equal scores give c = 0 and leave the query (there: a division by zero, and
the query is dropped); padding has probability 0 exactly, in the teacher too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import divergences, errors

LOSSES = ("kl", "ranknet")


class Feedback(NamedTuple):
    """What stays fixed while one query is updated; made by `prepare`.

    Attributes:
        candidates: [K, dim], zero where not usable.
        teacher_logits: [K], -inf where not usable; all 0 when none is.
        usable: bool[K].
        student_scale: scalar c.
    """

    candidates: jax.Array
    teacher_logits: jax.Array
    usable: jax.Array
    student_scale: jax.Array


class RerankerFeedbackState(NamedTuple):
    """The loss at the query of the last update; 0 before the first."""

    loss: jax.Array


def reranker_kl_loss(
    query: jax.Array,
    candidates: jax.Array,
    teacher_scores: jax.Array,
    *,
    student_scale: jax.typing.ArrayLike = 1.0,
    teacher_temperature: jax.typing.ArrayLike = 1.0,
    where: jax.Array | None = None,
    direction: str = "forward",
) -> jax.Array:
    """Divergence, in nats, of a query's scores from its reranker's.

    Args:
        query: [dim]; f32 arithmetic, or f64 for a f64 query.
        candidates: [K, dim], of any float type: bf16 is multiplied in f32.
        teacher_scores: [K], raw logits.
        student_scale: c, the inverse temperature of the retriever; held fixed while
            the query moves (see `match_score_range`).
        teacher_temperature: above 0; large ones make the teacher indifferent.
        where: bool[K], the candidates that count; None for all.
        direction: "forward" is KL(teacher || student), "reverse" the other way round,
            "symmetric" their sum.

    Returns:
        A scalar, never negative.

    >>> D = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(reranker_kl_loss(jnp.zeros(2), D, jnp.log(jnp.array([0.75, 0.25]))))
    0.13081...
    """
    feedback = prepare(
        query,
        candidates,
        teacher_scores,
        student_scale=student_scale,
        teacher_temperature=teacher_temperature,
        where=where,
    )
    return feedback_loss(query, feedback, direction=direction)


def ranknet_loss(
    query: jax.Array,
    candidates: jax.Array,
    teacher_scores: jax.Array,
    *,
    student_scale: jax.typing.ArrayLike = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Mean over pairs with t_i > t_j of softplus(c (s_j - s_i)) / (rank_i + rank_j).

    For teachers whose order means more than their scores, such as listwise language
    models. Ranks count from 1 in the teacher's order. K^2 pairs: meant for K <= 100.

    Args:
        query, candidates, teacher_scores, student_scale, where: as for
            `reranker_kl_loss`.

    >>> D = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(ranknet_loss(jnp.zeros(2), D, jnp.array([5.0, 1.0])))  # log 2 / (1 + 2)
    0.23104...
    """
    feedback = prepare(
        query, candidates, teacher_scores, student_scale=student_scale, where=where
    )
    return feedback_loss(query, feedback, loss="ranknet")


def match_score_range(
    query: jax.Array,
    candidates: jax.Array,
    teacher_scores: jax.Array,
    *,
    where: jax.Array | None = None,
    factor: jax.typing.ArrayLike = 0.5,
    eps: float = 1e-6,
) -> jax.Array:
    """The scale c = factor (max t - min t) / (max s - min s), with s = D q.

    Args:
        query, candidates, teacher_scores, where: as for `reranker_kl_loss`; the
            query is the one of the first retrieval.
        factor: 1 gives the retriever the reranker's range; the released code has 1/2.
        eps: a range of s up to eps max|s| counts as none: c is then 0, so that the
            query stays (one candidate, duplicates, a query of zeros). So it is when
            the reranker scores all alike.

    Returns:
        A scalar.

    >>> D = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(match_score_range(jnp.array([3.0, 1.0]), D, jnp.array([-2.0, 6.0])))
    2.0
    """
    feedback = prepare(query, candidates, teacher_scores, where=where)
    scores = _scores(query, feedback)
    teacher_range = _range(feedback.teacher_logits, feedback.usable)
    student_range = _range(scores, feedback.usable)
    some = student_range > eps * jnp.max(jnp.abs(scores))
    return jnp.where(
        some, factor * teacher_range / jnp.where(some, student_range, 1.0), 0.0
    )


def reranker_feedback(
    *,
    teacher_temperature: jax.typing.ArrayLike = 1.0,
    direction: str = "forward",
    loss: str = "kl",
) -> optax.GradientTransformationExtraArgs:
    """Emits the gradient of the distillation loss, in closed form, for one query.

    First in a chain, `optax.chain(reranker_feedback(), optax.adam(5e-3))`: incoming
    updates are ignored. The parameters are the query, [dim]; `update` takes

        update(updates, state, query, candidates=..., teacher_scores=...,
               student_scale=1.0, where=None)

    with the arguments of `reranker_kl_loss`; vmap it over queries, as a mean over a
    batch would scale and couple them. The state holds the loss before the update.

    Args:
        teacher_temperature, direction: as for `reranker_kl_loss`.
        loss: "kl", or "ranknet" (no temperature, no direction).

    >>> tx, query = reranker_feedback(), jnp.zeros(2)
    >>> given = {"candidates": jnp.eye(2), "teacher_scores": jnp.log(jnp.array([3, 1]))}
    >>> tx.update(query, tx.init(query), query, **given)[0]
    Array([-0.25,  0.25], dtype=float32)
    """
    check_options(direction, loss, teacher_temperature)

    def init(params):
        return RerankerFeedbackState(jnp.zeros((), _wide(jnp.asarray(params))))

    def update(
        updates: Any,
        state: RerankerFeedbackState,
        params: jax.Array | None = None,
        *,
        candidates: jax.Array,
        teacher_scores: jax.Array,
        student_scale: jax.typing.ArrayLike = 1.0,
        where: jax.Array | None = None,
        **extra_args,
    ):
        del updates, state, extra_args
        if params is None:
            raise ValueError("reranker_feedback needs the query as params in tx.update")
        query = jnp.asarray(params)
        feedback = prepare(
            query,
            candidates,
            teacher_scores,
            student_scale=student_scale,
            teacher_temperature=teacher_temperature,
            where=where,
        )
        value, gradient = loss_and_gradient(
            query, feedback, direction=direction, loss=loss
        )
        return gradient.astype(query.dtype), RerankerFeedbackState(value)

    return optax.GradientTransformationExtraArgs(init, update)


def prepare(
    query: jax.Array,
    candidates: jax.Array,
    teacher_scores: jax.Array,
    *,
    student_scale: jax.typing.ArrayLike = 1.0,
    teacher_temperature: jax.typing.ArrayLike = 1.0,
    where: jax.Array | None = None,
) -> Feedback:
    """Leaves unusable candidates out; arguments as for `reranker_kl_loss`.

    Raises:
        UserError: shapes that are not [dim], [K, dim], [K] with K > 0.
    """
    query, candidates, teacher_scores = (
        jnp.asarray(x) for x in (query, candidates, teacher_scores)
    )
    shapes = query.shape, candidates.shape, teacher_scores.shape
    fits = query.ndim == 1 and teacher_scores.ndim == 1 and teacher_scores.size
    if not fits or candidates.shape != teacher_scores.shape + query.shape:
        raise errors.UserError(
            "query, candidates, teacher_scores have shapes {}, {}, {}; use [dim], "
            "[K, dim], [K] with K > 0, and vmap over queries".format(*shapes)
        )
    wide = _wide(query)
    usable = jnp.isfinite(teacher_scores) & jnp.all(jnp.isfinite(candidates), axis=-1)
    if where is not None:
        usable &= jnp.asarray(where, bool)
    logits = teacher_scores.astype(wide) / teacher_temperature
    return Feedback(
        candidates=jnp.where(usable[:, None], candidates, 0),
        teacher_logits=_mask_logits(logits, usable),
        usable=usable,
        student_scale=jnp.asarray(student_scale, wide),
    )


def feedback_loss(
    query: jax.Array,
    feedback: Feedback,
    *,
    direction: str = "forward",
    loss: str = "kl",
) -> jax.Array:
    """The loss of a query, [dim], under prepared feedback: a scalar."""
    logits = feedback.student_scale * _scores(query, feedback)
    return _loss(logits, feedback, direction, loss)


def loss_and_gradient(
    query: jax.Array,
    feedback: Feedback,
    *,
    direction: str = "forward",
    loss: str = "kl",
) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient in the query, [dim], by the closed form."""
    scale = feedback.student_scale
    logits = scale * _scores(query, feedback)
    if loss == "ranknet":
        slopes = _ranknet_slopes(logits, feedback)
    else:
        slopes = _kl_slopes(logits, feedback, direction)
    gradient = scale * _dot(slopes, feedback.candidates.astype(slopes.dtype))
    return _loss(logits, feedback, direction, loss), gradient


def check_options(direction: str, loss: str, teacher_temperature: Any) -> None:
    """Raises a UserError for a value that no loss here has."""
    if direction not in divergences.DIRECTIONS:
        names = ", ".join(divergences.DIRECTIONS)
        raise errors.UserError(f"direction {direction!r}; use one of {names}")
    if loss not in LOSSES:
        raise errors.UserError(f"loss {loss!r}; use one of {', '.join(LOSSES)}")
    number = isinstance(teacher_temperature, int | float)
    if number and not 0 < teacher_temperature < float("inf"):
        raise errors.UserError(
            f"teacher_temperature {teacher_temperature}; use a number above 0"
        )


def _loss(logits, feedback, direction, loss):
    if loss == "ranknet":
        weights = _pair_weights(feedback)
        return jnp.sum(weights * jax.nn.softplus(logits[None, :] - logits[:, None]))
    return divergences.kl_rows(
        feedback.teacher_logits,
        _mask_logits(logits, feedback.usable),
        direction=direction,
    )


def _kl_slopes(logits, feedback, direction):
    """dKL / dlogits, [K]; 0 where not usable."""
    usable = feedback.usable
    student = jax.nn.log_softmax(_mask_logits(logits, usable))
    teacher = jax.nn.log_softmax(feedback.teacher_logits)
    shares = jnp.exp(student)
    forward = shares - jnp.exp(teacher)
    if direction == "forward":
        slopes = forward
    else:
        # Both are -inf, and shares 0, where not usable.
        ratios = jnp.where(usable, student, 0.0) - jnp.where(usable, teacher, 0.0)
        slopes = shares * (ratios - jnp.sum(shares * ratios))
        if direction == "symmetric":
            slopes += forward
    return jnp.where(usable, slopes, 0.0)


def _ranknet_slopes(logits, feedback):
    gaps = logits[None, :] - logits[:, None]
    pulls = _pair_weights(feedback) * jax.nn.sigmoid(gaps)
    return jnp.sum(pulls, axis=0) - jnp.sum(pulls, axis=1)


def _pair_weights(feedback):
    """1 / (rank_i + rank_j) over the number of pairs with t_i > t_j; 0 elsewhere."""
    teacher, usable = feedback.teacher_logits, feedback.usable
    order = jnp.argsort(jnp.argsort(-teacher))
    ranks = 1 + order.astype(teacher.dtype)  # unusable ones come last
    pairs = (teacher[:, None] > teacher[None, :]) & usable[:, None] & usable[None, :]
    weights = jnp.where(pairs, 1 / (ranks[:, None] + ranks[None, :]), 0.0)
    return weights / jnp.maximum(jnp.sum(pairs), 1)


def _scores(query, feedback):
    wide = feedback.teacher_logits.dtype
    return _dot(feedback.candidates.astype(wide), query.astype(wide))


def _dot(a, b):
    # The default would round f32 to bf16 on a TPU.
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _mask_logits(logits, usable):
    """-inf where not usable; all 0 when nothing is, for a softmax without NaN."""
    return jnp.where(usable, logits, jnp.where(jnp.any(usable), -jnp.inf, 0.0))


def _range(values, usable):
    high = jnp.max(values, where=usable, initial=-jnp.inf)
    low = jnp.min(values, where=usable, initial=jnp.inf)
    return jnp.where(jnp.any(usable), high - low, 0.0)


def _wide(query):
    return jnp.result_type(query.dtype, jnp.float32)
