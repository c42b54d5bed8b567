"""Every loss on one page. A loss takes a model's `apply`, never a model class.

Each factory returns an `Objective`: (params, batch, key, frozen) -> `Loss`, in sums.

Batches of language modelling: `tokens` i32[B, L], and optionally `segment_ids`,
`positions` i32[B, L] and `loss_mask` f32[B, L] (1 where the token counts as a label).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core import factored, step, types


def next_token(
    apply: Callable, *, z_loss: float = 0.0, loss_denominator: str = "labels"
) -> types.Objective:
    """Cross-entropy of every token given those before it, in nats.

        total = sum_t m_t (-log p(x_t | x_<t) + z_loss * logsumexp(logits_t)^2)

    Args:
        apply: `Decoder(config).apply`.
        z_loss: weight of the squared log-partition (OLMo 2: 1e-5; OLMo 1: none;
            Chowdhery et al. 2022, arXiv:2204.02311, section 5).
        loss_denominator: "labels" divides by the tokens that count; "olmo" by all
            B L tokens, as OLMo's trainer reports it: (L - 1) / L of the true mean.

    Returns:
        An objective with the metric `cross_entropy` (without the z-loss) and, with a
        z-loss, `z_loss`.
    """
    if loss_denominator not in ("labels", "olmo"):
        raise ValueError(f"loss_denominator {loss_denominator!r}; use labels or olmo")

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        logps, partition = apply(
            {"params": params},
            batch["tokens"],
            targets(batch["tokens"]),
            batch.get("segment_ids"),
            batch.get("positions"),
            method="token_logps",
        )
        mask = label_mask(batch)
        loss = _next_token_loss(logps, partition, mask, z_loss)
        if loss_denominator == "olmo":
            loss = loss._replace(weight=jnp.asarray(mask.size, jnp.float32))
        return loss

    return objective


def _next_token_loss(logps, partition, mask, z_loss):
    total = -jnp.sum(logps * mask)
    metrics = {"cross_entropy": total}
    if z_loss:
        metrics["z_loss"] = z_loss * jnp.sum(partition**2 * mask)
        total += metrics["z_loss"]
    return types.Loss(total, jnp.sum(mask), metrics)


class Predictor(NamedTuple):
    """How a model answers a batch, and what the answer costs.

    What a trust region needs of a task: the same for language models and classifiers.

    Attributes:
        answer: (params, batch, noise=None) -> logits of every row, factored; `noise`
            f32[B, L, D] is added to the input embeddings, which are constants then.
        kernel: params -> f32[D, V], the answer's.
        loss: (answer, batch) -> Loss.
        rows: batch -> f32[...]: what every row of the answer weighs in the loss.
    """

    answer: Callable[..., factored.Factored]
    kernel: Callable[[types.Params], jax.Array]
    loss: Callable[[factored.Factored, types.Batch], types.Loss]
    rows: Callable[[types.Batch], jax.Array]


def language_model(apply: Callable, *, z_loss: float = 0.0) -> Predictor:
    """Next tokens by `Decoder(config).apply`; the loss is that of `next_token`."""

    def answer(params, batch, noise=None):
        return apply(
            {"params": params},
            batch["tokens"],
            batch.get("segment_ids"),
            batch.get("positions"),
            noise,
            method="factored",
        )

    def loss(answer, batch):
        logps, partition = factored.target_logps(answer, targets(batch["tokens"]))
        return _next_token_loss(logps, partition, label_mask(batch), z_loss)

    def kernel(params):
        return apply({"params": params}, method="head")

    return Predictor(answer, kernel, loss, label_mask)


def classifier(apply: Callable) -> Predictor:
    """Classes by `Classifier(config, classes).apply`.

    Batches: `tokens` i32[B, L], `mask` bool[B, L] of real tokens, `labels` i32[B]. The
    metric `accuracy` goes with the loss.
    """

    def answer(params, batch, noise=None):
        return apply(
            {"params": params}, batch["tokens"], batch["mask"], noise, method="factored"
        )

    def loss(answer, batch):
        logits = answer.dense()
        logps = jax.nn.log_softmax(logits)
        hit = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        right = jnp.argmax(logits, axis=-1) == batch["labels"]
        weight = jnp.asarray(len(logits), jnp.float32)
        metrics = {"accuracy": jnp.sum(right.astype(jnp.float32))}
        return types.Loss(-jnp.sum(logps * hit), weight, metrics)

    def kernel(params):
        return apply({"params": params}, method="head")

    return Predictor(answer, kernel, loss, lambda b: jnp.ones(len(b["labels"])))


def spectrally_normalized(predictor: Predictor) -> Predictor:
    """The predictor with its kernel divided by the kernel's largest singular value.

    R4F is R3F of this. The norm is found by 20 power iterations and constant for the
    gradient's direction vectors, as in Miyato et al. 2018 (arXiv:1802.05957).
    """

    def kernel(params):
        return divided_by_norm(predictor.kernel(params))

    def answer(params, batch, noise=None):
        return predictor.answer(params, batch, noise).replace(kernel=kernel(params))

    return predictor._replace(answer=answer, kernel=kernel)


def answered(predictor: Predictor, *, keep: bool = False) -> types.Objective:
    """The loss of the answers; `keep` returns hidden states as `Loss.outputs`."""

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        answer = predictor.answer(params, batch)
        outputs = answer.hidden if keep else None
        return predictor.loss(answer, batch)._replace(outputs=outputs)

    return objective


def near_anchor(predictor: Predictor, weight: float = 0.1) -> types.Objective:
    """The loss, and a penalty for answers unlike those of `frozen`, the anchor.

        L(theta) + weight * mean KL(p(x; anchor) || p(x; theta))

    With the parameters of the step before it is TRPO's penalty (Schulman et al. 2015,
    arXiv:1502.05477), with their moving average MESA's (Du et al. 2022,
    arXiv:2205.14083), both as TRAM compares with them (arXiv:2310.03646, appendix B).
    One forward pass more than the loss.
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key
        answer = predictor.answer(params, batch)
        before = jax.lax.stop_gradient(predictor.answer(frozen, batch))
        rows = factored.kl_rows(before, answer)
        return _penalised(predictor, answer, batch, rows, weight)

    return objective


def r3f(
    predictor: Predictor,
    weight: float = 0.1,
    *,
    sigma: float = 0.1,
    noise: str = "normal",
) -> types.Objective:
    """The loss, and a penalty for answers that noise on the input changes.

        L(theta) + weight * mean KL(p(x) || p(x + z)) + KL(p(x + z) || p(x))

    Aghajanyan et al. 2020 (arXiv:2008.03156), equation 4: noise on the embeddings,
    which are constants in the noisy pass; gradients flow through both passes. With
    `spectrally_normalized` it is R4F. Twice the forward and backward passes.

    Args:
        predictor: the task.
        weight: of the penalty (R3F's code 1, TRAM's tables 0.1).
        sigma: of the noise: standard deviation, or half the width if uniform.
        noise: "normal" or "uniform".
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del frozen
        answer = predictor.answer(params, batch)
        z = input_noise(key, batch, answer, sigma, noise)
        noisy = predictor.answer(params, batch, z)
        rows = factored.kl_rows(noisy, answer, direction="symmetric")
        return _penalised(predictor, answer, batch, rows, weight)

    return objective


def with_noise(
    predictor: Predictor, *, sigma: float = 0.1, noise: str = "normal"
) -> types.Objective:
    """The loss at noisy input embeddings, for TRAM's Fisher information."""

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del frozen
        shape = jax.eval_shape(predictor.answer, params, batch)
        z = input_noise(key, batch, shape, sigma, noise)
        return predictor.loss(predictor.answer(params, batch, z), batch)

    return objective


def input_noise(
    key: jax.Array,
    batch: types.Batch,
    answer: factored.Factored,
    sigma: float,
    noise: str = "normal",
) -> jax.Array:
    """Noise for the embeddings of a batch, f32[B, L, D]; drawn alike for one key."""
    if noise not in ("normal", "uniform"):
        raise ValueError(f"noise {noise!r}; use normal or uniform")
    shape = (*batch["tokens"].shape, answer.hidden.shape[-1])
    if noise == "uniform":
        return jax.random.uniform(key, shape, minval=-sigma, maxval=sigma)
    return sigma * jax.random.normal(key, shape)


def _penalised(predictor, answer, batch, rows, weight):
    loss = predictor.loss(answer, batch)
    # Sums over the rows that the loss counts: divided by its weight they are means.
    penalty = jnp.sum(rows * predictor.rows(batch))
    metrics = {**loss.metrics, "penalty": penalty}
    return loss._replace(total=loss.total + weight * penalty, metrics=metrics)


def pointwise(apply: Callable) -> types.Objective:
    """Binary cross-entropy of every candidate on its own: is its grade above 0?

        total = -sum_ik log sigmoid(s_ik) if g_ik > 0 else log sigmoid(-s_ik)

    Batches and arguments are those of `listwise`.
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        scores, where = _candidate_scores(apply, params, batch), batch["where"]
        margin = jnp.where(batch["grades"] > 0, scores, -scores)
        total = -jnp.sum(jnp.where(where, jax.nn.log_sigmoid(margin), 0.0))
        weight, right = jnp.sum(where * 1.0), jnp.sum((where & (margin > 0)) * 1.0)
        return types.Loss(total, weight, {"accuracy": right})

    return objective


def listwise(apply: Callable) -> types.Objective:
    """Cross-entropy of a query's candidates, towards its graded ones.

        total = -sum_ik  g_ik / sum_j g_ij  log softmax(s_i)_k

    ListNet (Cao et al. 2007) with grades for their exponentials; with one relevant
    candidate the loss of Gao et al. 2021 (arXiv:2101.08751). Lists without any count
    nothing. Batches: `tokens`, `mask`, `token_types` [B, K, L] of pairs; `grades`
    f32[B, K], at least 0; `where` bool[B, K]: is there one; `prior`, if any: of scores.

    Args:
        apply: `BertScorer(config).apply`.
    """

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        where = batch["where"]
        scores = jnp.where(where, _candidate_scores(apply, params, batch), -1e30)
        grades = jnp.where(where, batch["grades"], 0.0)
        mass = jnp.sum(grades, axis=-1, keepdims=True)
        logps = jnp.where(where, jax.nn.log_softmax(scores), 0.0)
        total = -jnp.sum(grades / jnp.maximum(mass, 1e-9) * logps)
        first = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])
        is_best = (grades == grades.max(axis=-1, keepdims=True)) & (mass > 0)
        right = {"accuracy": jnp.sum(first * is_best)}
        return types.Loss(total, jnp.sum((mass > 0) * 1.0), right)

    return objective


def _candidate_scores(apply, params, batch) -> jax.Array:
    B, K, L = batch["tokens"].shape
    rows = [batch[x].reshape(B * K, L) for x in ("tokens", "mask", "token_types")]
    scores = apply({"params": params}, *rows).astype(jnp.float32).reshape(B, K)
    return scores + batch.get("prior", 0.0)


def contrastive(
    apply: Callable, *, queries: int, temperature: float = 0.05, chunks: int = 1
) -> types.Objective:
    """Each query's own document among all documents of the whole, global batch.

        total = -sum_i log softmax_j(q_i . d_j / temperature)_own(i)

    Karpukhin et al. 2020 (arXiv:2004.04906). Batches: `tokens`, `mask`, `token_types`
    [B, L] of queries; `document_tokens` and so on [B, 1 + H, M], each one's own, then
    hard negatives; `is_negative` bool[B, B (1 + H)], False where a document must not
    count against a query, as it is relevant to it too.

    Args:
        apply: `BertEncoder(config).apply`.
        queries: B. Any other size is refused: microbatches lack negatives.
        temperature: 0.05 (SimCSE's) suits vectors of length 1.
        chunks: parts that are encoded one after the other, and again for the exact
            gradient, to save memory: GradCache (Gao et al. 2021, arXiv:2101.06983).
    """

    def vectors(params, batch, prefix):
        rows = [batch[prefix + x] for x in ("tokens", "mask", "token_types")]
        rows = [x.reshape(-1, x.shape[-1]) for x in rows]
        encode = lambda part: apply({"params": params}, *part)  # noqa: E731
        encode = encode if chunks == 1 else jax.checkpoint(encode)
        return step.by_parts(encode, rows, chunks).astype(jnp.float32)

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        B, each = len(batch["tokens"]), batch["document_tokens"].shape[1]
        if queries != B:
            raise types.UserError(
                f"the contrastive loss needs all {queries} queries at once and got {B}:"
                " use micro_batches 1; chunks save memory instead"
            )
        asked, found = (vectors(params, batch, x) for x in ("", "document_"))
        logits = jnp.matmul(asked, found.T, precision="highest") / temperature
        own = jnp.arange(B * each)[None] == each * jnp.arange(B)[:, None]
        logits = jnp.where(own | batch["is_negative"], logits, -1e30)
        total = -jnp.sum(jnp.where(own, jax.nn.log_softmax(logits), 0.0))
        right = jnp.sum((jnp.argmax(logits, axis=-1) == each * jnp.arange(B)) * 1.0)
        return types.Loss(total, jnp.asarray(B, jnp.float32), {"accuracy": right})

    return objective


def divided_by_norm(matrix: jax.Array) -> jax.Array:
    """A matrix [D, V] of spectral norm 1; see `spectrally_normalized`.

    >>> divided_by_norm(jnp.diag(jnp.array([4.0, 1.0]))).round(3).tolist()
    [[1.0, 0.0], [0.0, 0.25]]
    """
    fixed = jax.lax.stop_gradient(matrix.astype(jnp.float32))
    right = jax.random.normal(jax.random.key(0), (matrix.shape[1],))
    for _ in range(20):
        left = fixed @ right
        left = left / (jnp.linalg.norm(left) + 1e-12)
        right = left @ fixed
        right = right / (jnp.linalg.norm(right) + 1e-12)
    return matrix / (left @ matrix @ right + 1e-12)


def targets(tokens: jax.Array) -> jax.Array:
    """i32[B, L] -> the next token of every position; the last has none (0).

    >>> targets(jnp.array([[5, 6, 7]])).tolist()
    [[6, 7, 0]]
    """
    return jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))


def label_mask(batch: types.Batch) -> jax.Array:
    """f32[B, L]: 1 where the next token is a label.

    The last position has no next token; a token is not predicted from another
    document's, nor from or as padding (segment 0); `loss_mask` marks the labels.

    >>> label_mask({"tokens": jnp.zeros((1, 4)),
    ...             "segment_ids": jnp.array([[1, 1, 2, 2]])}).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    B, L = batch["tokens"].shape
    mask = jnp.ones((B, L - 1), jnp.float32)
    if "segment_ids" in batch:
        ids = batch["segment_ids"]
        mask *= (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != 0)
    if "loss_mask" in batch:
        mask *= batch["loss_mask"][:, 1:]
    return jnp.pad(mask, ((0, 0), (0, 1)))
