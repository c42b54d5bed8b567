"""Retrieval losses: pointwise and listwise (rerankers), contrastive (encoders)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges, step, types


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
    f32[B, K], at least 0; `where` bool[B, K]: whether there is one; `prior`,
    if any, is added to the scores.

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
    import chex  # here: a tenth of a second at start-up

    chex.assert_equal_shape([scores, batch["grades"], batch["where"]])
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

    ranges.check(
        "contrastive.",
        {"temperature": temperature, "chunks": chunks},
        {"temperature": ranges.ABOVE_0, "chunks": ranges.AT_LEAST_1},
    )

    def vectors(params, batch, prefix):
        rows = [batch[prefix + x] for x in ("tokens", "mask", "token_types")]
        rows = [x.reshape(-1, x.shape[-1]) for x in rows]
        encode = lambda part: apply({"params": params}, *part)  # noqa: E731
        encode = encode if chunks == 1 else jax.checkpoint(encode)
        return step.map_parts(encode, rows, chunks).astype(jnp.float32)

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        B, each = len(batch["tokens"]), batch["document_tokens"].shape[1]
        if queries != B:
            raise errors.UserError(
                f"the contrastive loss needs all {queries} queries at once and got {B}:"
                " use micro_batches 1; chunks save memory instead"
            )
        query_vectors = vectors(params, batch, "")
        document_vectors = vectors(params, batch, "document_")
        logits = jnp.matmul(query_vectors, document_vectors.T, precision="highest")
        logits = logits / temperature
        import chex  # here: a tenth of a second at start-up

        chex.assert_equal_shape([logits, batch["is_negative"]])
        own = jnp.arange(B * each)[None] == each * jnp.arange(B)[:, None]
        logits = jnp.where(own | batch["is_negative"], logits, -1e30)
        total = -jnp.sum(jnp.where(own, jax.nn.log_softmax(logits), 0.0))
        right = jnp.sum((jnp.argmax(logits, axis=-1) == each * jnp.arange(B)) * 1.0)
        return types.Loss(total, jnp.asarray(B, jnp.float32), {"accuracy": right})

    return objective
