"""ReFIT: query vectors that learn from a reranker while it answers.

    q_0 retrieves K candidates D; a cross-encoder scores them: t
    q_{i+1} = q_i - optimizer(gradient of KL(softmax(t) || softmax(c D q_i)))
    q_n retrieves again

Reddy et al. 2023 (arXiv:2305.11744); the settings are those of the first author's
released loop: Adam, rate 0.005, 100 updates, c half the range-matching scale, fixed.
The gradient and its conventions: `jaxlab.optim.query_distillation`.

How far may a query go? Adam moves each coordinate by up to learning_rate per update
whatever the loss: 0.005 x 100 = 0.5. A vector of length r in dim dimensions has
coordinates of root mean square r / sqrt(dim): 1 / sqrt(384) = 0.051 for a unit vector,
so that 0.5 is ten times the coordinate itself and one update a tenth of it; at length
sqrt(384) = 20 coordinates are 1, 0.5 is half of one and one update 1/200. With
`relative=True` the rate is in units of that root mean square of each query: 0.005 is
1/200 at every length, for a unit vector of 384 the absolute rate 0.005 x 0.051 =
0.00026. The absolute 0.005 was chosen for Contriever, 768 dimensions, whose length is
not published; where it is r, the same behaviour is relative, 0.005 sqrt(768) / r.

Deviations: queries are updated together, each with an optimizer state of its own (the
released loop takes one query after the other); a query can stop early.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import errors
from jaxlab.optim import query_distillation


class RefitResult(NamedTuple):
    """New queries, of every feedback method.

    Attributes:
        queries: [B, dim], f32 or wider, new arrays.
        losses: [B, n], the loss before each update; that of a query that has stopped
            is repeated. Methods without a loss have n = 0.
        num_updates: int32[B], the updates that were made.
    """

    queries: jax.Array
    losses: jax.Array
    num_updates: jax.Array


def refit_queries(
    queries: jax.typing.ArrayLike,
    candidates: jax.typing.ArrayLike,
    teacher_scores: jax.typing.ArrayLike,
    *,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 0.005,
    num_updates: int = 100,
    student_scale: str | jax.typing.ArrayLike = "match_range",
    teacher_temperature: float = 1.0,
    direction: str = "forward",
    loss: str = "kl",
    relative: bool = False,
    where: jax.typing.ArrayLike | None = None,
    tol: float | None = None,
    max_drift: float | None = None,
) -> RefitResult:
    """Distils each query's reranker scores into the query, all queries at once.

    Compiled once for given shapes, num_updates, options and optimizer; the numbers may
    change freely. Queries (with their candidates and scores) may be sharded over
    devices by their first axis: no device then needs another's, and so is the result.

    Args:
        queries: [B, dim]; arithmetic is f32, or f64 for f64 queries. Not overwritten.
        candidates: [B, K, dim], K > 0, of any float type, in any order.
        teacher_scores: [B, K], raw logits of the reranker.
        optimizer: any optax transform, with fresh state for each query, value and
            value_fn included; make it once, as another object compiles again. None is
            optax.adam(learning_rate).
        learning_rate: of that Adam only; in units of the coordinates.
        num_updates: 0 returns the queries.
        student_scale: c, one number or [B]; "match_range" is
            `query_distillation.match_score_range` of the given queries.
        teacher_temperature, direction: as for `query_distillation.reranker_kl_loss`.
        loss: "kl", or "ranknet": FIRST's second stage, from the scores of a listwise
            model, with a fifth of the rate and of the updates.
        relative: measure queries in units of the root mean square of their
            coordinates: rate 0.005 then is 1/200 of it (see above), and scaling queries
            or candidates scales the result or leaves it.
        where: bool[B, K], the candidates that count. A score or vector that is not
            finite counts as left out. Without any the query stays.
        tol: a query stops when an update changed its loss by less.
        max_drift: bound on 1 - cos(q, q_0), 0 to 2. The update that would pass it is
            not made, and the query stops. A query of zeros has no angle to drift by.

    Raises:
        UserError: shapes or options that do not fit.

    >>> D, t = jnp.eye(2)[None], jnp.array([[0.0, 4.0]])
    >>> refit_queries(jnp.array([[1.0, 0.9]]), D, t, num_updates=10).queries.round(2)
    Array([[0.95, 0.95]], dtype=float32)
    """
    queries, candidates, teacher_scores = (
        _own(x) for x in (queries, candidates, teacher_scores)
    )
    _check_shapes(queries, candidates, teacher_scores, where)
    query_distillation.check_options(direction, loss, teacher_temperature)
    if num_updates < 0:
        raise errors.UserError(f"num_updates {num_updates}; use 0 or more")
    if callable(learning_rate):
        raise errors.UserError(
            "learning_rate is a schedule; pass optimizer=optax.adam(schedule)"
        )
    if isinstance(student_scale, str):
        if student_scale != "match_range":
            raise errors.UserError(
                f"student_scale {student_scale!r}; use 'match_range' or numbers"
            )
        student_scale = None
    else:
        student_scale = jnp.broadcast_to(jnp.asarray(student_scale), len(queries))
    return _refit(
        queries,
        candidates,
        teacher_scores,
        None if where is None else _own(where),
        student_scale,
        {
            "learning_rate": learning_rate,
            "teacher_temperature": teacher_temperature,
            "tol": tol,
            "max_drift": max_drift,
        },
        optimizer=optimizer,
        num_updates=num_updates,
        direction=direction,
        loss=loss,
        relative=relative,
        one_by_one=_on_one_cpu(queries),
    )


def _own(array):
    # asarray may borrow numpy's memory, which the caller is free to overwrite while
    # the device still works.
    return array if isinstance(array, jax.Array) else jnp.array(array)


def _on_one_cpu(queries):
    """Whether to take one query after the other, so that its candidates stay in cache.

    Half the time of all at once at K = 100, dim = 384. Several devices would have to
    fetch each query from its owner; accelerators want them all.
    """
    if isinstance(queries, jax.core.Tracer):
        return False
    devices = queries.devices()
    return len(devices) == 1 and all(d.platform == "cpu" for d in devices)


@functools.partial(
    jax.jit,
    static_argnames=(
        "optimizer",
        "num_updates",
        "direction",
        "loss",
        "relative",
        "one_by_one",
    ),
)
def _refit(
    queries,
    candidates,
    teacher_scores,
    where,
    student_scale,
    numbers,
    *,
    optimizer,
    one_by_one,
    **options,
):
    if optimizer is None:
        optimizer = optax.adam(numbers["learning_rate"])
    one = functools.partial(
        _refit_one,
        tx=optax.with_extra_args_support(optimizer),
        numbers=numbers,
        **options,
    )
    given = queries, candidates, teacher_scores, where, student_scale
    if one_by_one:
        return jax.lax.map(lambda row: one(*row), given)
    return jax.vmap(one)(*given)


def _refit_one(
    query,
    candidates,
    teacher_scores,
    where,
    student_scale,
    *,
    tx,
    numbers,
    num_updates,
    direction,
    loss,
    relative,
):
    # A copy: jit would hand the caller's own buffer back when nothing is updated.
    start = jnp.array(query, jnp.result_type(query.dtype, jnp.float32), copy=True)
    if student_scale is None:
        student_scale = query_distillation.match_score_range(
            start, candidates, teacher_scores, where=where
        )
    # q = unit z, and z is what is updated: c D q = (c unit) D z.
    unit = _root_mean_square(start) if relative else 1.0
    given = query_distillation.prepare(
        start,
        candidates,
        teacher_scores,
        student_scale=student_scale * unit,
        teacher_temperature=numbers["teacher_temperature"],
        where=where,
    )
    kind = {"direction": direction, "loss": loss}
    value_fn = functools.partial(
        query_distillation.feedback_loss, feedback=given, **kind
    )

    def step(carry, _):
        query, state, last, going, count = carry
        value, gradient = query_distillation.loss_and_gradient(query, given, **kind)
        updates, state = tx.update(
            gradient, state, query, value=value, grad=gradient, value_fn=value_fn
        )
        moved = optax.apply_updates(query, updates)
        if numbers["tol"] is not None:
            going &= jnp.abs(last - value) >= numbers["tol"]
        if numbers["max_drift"] is not None:
            going &= _drift(moved, start) <= numbers["max_drift"]
        query = jnp.where(going, moved, query)
        return (query, state, value, going, count + going), value

    begin = start / unit
    going = jnp.any(given.usable) & (given.student_scale != 0)
    last = jnp.asarray(jnp.inf, start.dtype)
    carry = (begin, tx.init(begin), last, going, jnp.zeros((), jnp.int32))
    (query, *_, count), losses = jax.lax.scan(step, carry, length=num_updates)
    return RefitResult(jnp.where(count > 0, query * unit, start), losses, count)


def _root_mean_square(query):
    mean = jnp.mean(jnp.square(query))
    return jnp.where(mean > 0, jnp.sqrt(mean), 1.0)


def _drift(query, start):
    """1 - cos as half the squared distance of unit vectors, which does not cancel."""
    lengths = jnp.linalg.norm(query), jnp.linalg.norm(start)
    a, b = (
        x / jnp.where(length > 0, length, 1.0)
        for x, length in zip((query, start), lengths, strict=True)
    )
    angled = (lengths[0] > 0) & (lengths[1] > 0)
    return jnp.where(angled, 0.5 * jnp.sum(jnp.square(a - b)), 0.0)


def _check_shapes(queries, candidates, teacher_scores, where):
    wanted = (*teacher_scores.shape, *queries.shape[1:])
    fits = queries.ndim == 2 and teacher_scores.ndim == 2 and teacher_scores.shape[1]
    if not fits or candidates.shape != wanted or len(queries) != len(teacher_scores):
        raise errors.UserError(
            f"queries, candidates, teacher_scores have shapes {queries.shape}, "
            f"{candidates.shape}, {teacher_scores.shape}; use [B, dim], [B, K, dim], "
            "[B, K] with K > 0"
        )
    if where is not None and jnp.shape(where) != teacher_scores.shape:
        raise errors.UserError(
            f"where has shape {jnp.shape(where)}; use {teacher_scores.shape}"
        )
