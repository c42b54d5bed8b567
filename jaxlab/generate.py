"""Generation with a key-value cache, and log-probabilities of given continuations.

    p(x_t | x_<t) = softmax(logits_t / temperature), cut to top_k and top_p

Prompts of several lengths are padded on the left, so that all rows end together: they
are read in one pass (prefill), then one token per row is added at a time, in one
compiled loop that ends when every row has ended. Lengths are rounded up to powers of
two, so one program serves many prompts: one compilation per (rows, padded length,
max_new_tokens).

Nucleus sampling: Holtzman et al. 2020 (arXiv:1904.09751).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import models
from jaxlab.core import errors, types

_SHORTEST = 16  # padded length of the shortest rows: fewer programs than 1, 2, 4, 8


class Scores(NamedTuple):
    """What `score` returns.

    Attributes:
        logps: f32[N], sum over a continuation's tokens of log p, in nats.
        tokens: i32[N], how many tokens the continuation has.
    """

    logps: np.ndarray
    tokens: np.ndarray


def generate(
    model: models.Decoder,
    params: types.Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """Continues prompts.

    Args:
        model: a decoder.
        params: its parameters.
        prompts: token ids, one sequence per row, of any lengths above 0; each begins
            with whatever the model's training texts begin with (bos, or the end-of-text
            token of the document before).
        max_new_tokens: a row that has not ended by then is cut.
        key: a row's tokens depend on the key, the prompt and the row's number, not on
            the other rows.
        temperature, top_k, top_p: see `sample`.
        eos_id: ends a row; of several, each does.
        pad_id: fills rows; never seen by the model.

    Returns:
        The new tokens of each row, without the prompt; the last is an `eos_id` if the
        row ended by itself.

    Raises:
        UserError: an empty prompt, one that with its continuation is longer than the
            model's length, a setting out of range, or a model whose logits are NaN.
    """
    _check(temperature, top_k, top_p, model.config.vocab)
    if max_new_tokens < 1:
        raise errors.UserError(f"max_new_tokens {max_new_tokens}; use 1 or more")
    if not prompts:
        return []
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise errors.UserError(
                f"prompt {number} is empty; begin it with bos or eos"
            )
        _check_length(
            f"prompt {number} of {len(prompt)} tokens and max_new_tokens "
            f"{max_new_tokens}",
            len(prompt) + max_new_tokens,
            model,
            f"use at most {model.config.length - len(prompt)} (--max-new-tokens)"
            if len(prompt) < model.config.length
            else "shorten the prompt",
        )
    longest = max(len(prompt) for prompt in prompts)
    length = _padded_length(longest, model.config.length)
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    valid = np.arange(length) >= length - np.array([[len(p)] for p in prompts])
    new, counts, is_number = _decode(
        model,
        params,
        tokens,
        valid,
        key,
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(top_k),
        None if top_p is None else jnp.float32(top_p),
        jnp.atleast_1d(jnp.asarray(eos_id, jnp.int32)),
        max_new_tokens=max_new_tokens,
    )
    new, counts, is_number = jax.device_get((new, counts, is_number))
    if not is_number:
        raise errors.UserError(
            f"the model's logits are not finite in {model.config.dtype}: its weights "
            "hold NaN or infinities, or are too large for it; look at the run or the "
            "merge that they come from"
        )
    return [row[:count].tolist() for row, count in zip(new, counts, strict=True)]


def sample(
    logits: jax.Array,
    key: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array | None = None,
    top_p: float | jax.Array | None = None,
) -> jax.Array:
    """Draws one token per row.

    With p = softmax(logits / temperature) and tokens in falling order of p:

        top_k keeps the first k;
        top_p keeps the shortest beginning whose sum is at least top_p, of p
              renormalised over what top_k kept: token i stays iff
              sum_{j < i} p_j < top_p, so the first always stays;

    and the draw is from p renormalised over what is kept. Temperature 0 is the limit:
    the largest logit, the first of equal ones.

    Args:
        logits: f32[B, V].
        key: row i uses fold_in(key, i), whatever B is.
        temperature: 0 or more.
        top_k: 1 or more; None keeps all.
        top_p: above 0, at most 1; None keeps all.

    Returns:
        i32[B].

    >>> sample(jnp.array([[0.0, 3.0, 1.0]]), jax.random.key(0), temperature=0.0)
    Array([1], dtype=int32)
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    # Shifted before it is scaled, so that a tiny temperature gives -inf and not NaN.
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = scaled / jnp.where(temperature > 0, temperature, 1.0)
    if top_k is None and top_p is None:
        drawn = _draw(scaled, key)
    else:
        order = jnp.argsort(-scaled, axis=-1, stable=True)
        falling = jnp.take_along_axis(scaled, order, axis=-1)
        if top_k is not None:
            rank = jnp.arange(logits.shape[-1])[None]
            falling = jnp.where(rank < top_k, falling, -jnp.inf)
        if top_p is not None:
            share = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(share, axis=-1) - share
            falling = jnp.where(before < top_p, falling, -jnp.inf)
        rank = _draw(falling, key)
        drawn = jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]
    greedy = jnp.argmax(logits, axis=-1)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


def score(
    model: models.Decoder,
    params: types.Params,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    pad_id: int = 0,
) -> Scores:
    """Log-probability of each continuation after its context.

        logps_n = sum_{t in continuation n} log p(x_t | context n, x_<t)

    Args:
        model: a decoder.
        params: its parameters.
        contexts: token ids; at least one each, since something must be seen before the
            first token of a continuation is predicted.
        continuations: token ids; as many as contexts.
        batch_size: rows computed at once. Rows of similar length share a batch; the
            order of the result is that of the arguments.
        pad_id: fills rows on the right, where no label looks.

    Raises:
        UserError: an empty context or continuation, or a row longer than the model's
            length: nothing is cut off silently.
    """
    if len(contexts) != len(continuations):
        raise errors.UserError(
            f"{len(contexts)} contexts for {len(continuations)} continuations; give "
            "one each"
        )
    rows = list(zip(contexts, continuations, strict=True))
    for number, (context, continuation) in enumerate(rows):
        if not context:
            raise errors.UserError(
                f"context {number} is empty; begin it with bos or eos"
            )
        if not continuation:
            raise errors.UserError(f"continuation {number} is empty; leave it out")
        size = len(context) + len(continuation)
        _check_length(f"row {number} of {size} tokens", size, model)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]) - len(rows[n][1]))
    logps = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        tokens, mask = _right_padded(
            [rows[n] for n in chosen], batch_size, model.config.length, pad_id
        )
        sums = _continuation_logps(model, params, tokens, mask)
        logps[chosen] = np.asarray(sums)[: len(chosen)]
    return Scores(logps, np.array([len(c) for c in continuations], np.int32))


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def _decode(
    model, params, tokens, valid, key, temperature, top_k, top_p, eos_id, *,
    max_new_tokens,
):  # fmt: skip
    """(i32[B, max_new_tokens], i32[B] of them the row's, bool[] all logits finite)."""
    B, L = tokens.shape
    extend = functools.partial(model.apply, {"params": params}, method="extend")

    def draw(logits, step):
        return sample(logits, jax.random.fold_in(key, step), temperature, top_k, top_p)

    def ends(token):
        return jnp.any(token[:, None] == eos_id[None], axis=-1)

    def is_finite(logits):  # of rows that have ended too: they read what they wrote
        # 0 x is NaN where x is not finite; XLA:CPU's maximum loses a NaN now and then.
        return jnp.sum(jnp.where(logits == -jnp.inf, 0, logits) * 0) == 0

    cache = models.empty_cache(model.config, B, L + max_new_tokens)
    logits, cache = extend(tokens, cache, valid)
    token, is_number = draw(logits, 0), is_finite(logits)
    new = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token)

    def goes_on(carry):
        step, done, *_ = carry
        return (step < max_new_tokens) & ~jnp.all(done)

    def one(carry):
        step, done, counts, token, new, cache, is_number = carry
        logits, cache = extend(token[:, None], cache, jnp.ones((B, 1), bool))
        token = draw(logits, step)
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        counts = counts + ~done
        done, is_number = done | ends(token), is_number & is_finite(logits)
        return step + 1, done, counts, token, new, cache, is_number

    counts = jnp.ones(B, jnp.int32)
    first = (1, ends(token), counts, token, new, cache, is_number)
    _, _, counts, _, new, _, is_number = jax.lax.while_loop(goes_on, one, first)
    return new, counts, is_number


@functools.partial(jax.jit, static_argnames="model")
def _continuation_logps(model, params, tokens, mask) -> jax.Array:
    """f32[B]: the masked sum; mask: f32[B, L], 1 where the token is scored."""
    logps, _ = model.apply(
        {"params": params},
        tokens,
        jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        method="token_logps",
    )
    return jnp.sum(logps[:, :-1] * mask[:, 1:], axis=1)


def _right_padded(rows, batch_size, most, pad_id) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(context) + len(continuation) for context, continuation in rows)
    shape = (batch_size, _padded_length(longest, most))
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, np.float32)
    for i, (context, continuation) in enumerate(rows):
        stop = len(context) + len(continuation)
        tokens[i, :stop] = [*context, *continuation]
        mask[i, len(context) : stop] = 1
    return tokens, mask


def _draw(scaled, key):
    """Gumbel-max with a key per row: a row does not depend on how many there are."""
    B, V = scaled.shape
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(B))
    noise = jax.vmap(lambda k: jax.random.gumbel(k, (V,), jnp.float32))(keys)
    return jnp.argmax(scaled + noise, axis=-1)


def _padded_length(length: int, most: int) -> int:
    """The next power of two, but not more than the model's length."""
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), most)


def _check(temperature, top_k, top_p, vocab) -> None:
    if not 0 <= temperature < float("inf"):
        raise errors.UserError(f"temperature {temperature}; use 0 (greedy) or more")
    if top_k is not None and not 1 <= top_k <= vocab:
        raise errors.UserError(f"top_k {top_k}; use 1 to {vocab}")
    if top_p is not None and not 0 < top_p <= 1:
        raise errors.UserError(f"top_p {top_p}; use a number above 0, at most 1")


def _check_length(
    what: str, size: int, model: models.Decoder, fix: str = "shorten them"
) -> None:
    if size > model.config.length:
        raise errors.UserError(
            f"{what} exceed the model's length of {model.config.length}; {fix}"
        )
