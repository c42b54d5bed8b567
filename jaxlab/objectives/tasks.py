"""`Task`: the answer of a model to a batch, and its loss, for trust regions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core import factored_logits, types
from jaxlab.objectives import language


class Task(NamedTuple):
    """How a model answers a batch, and what the answer costs.

    What a trust region needs of a task: the same for language models and classifiers.

    Attributes:
        answer: (params, batch, noise=None) -> logits of every row, factored; `noise`
            f32[B, L, D] is added to the input embeddings, which are constants then.
        kernel: params -> f32[D, V], the answer's.
        loss: (answer, batch) -> Loss.
        rows: batch -> f32[...]: what every row of the answer weighs in the loss.
    """

    answer: Callable[..., factored_logits.Factored]
    kernel: Callable[[types.Params], jax.Array]
    loss: Callable[[factored_logits.Factored, types.Batch], types.Loss]
    rows: Callable[[types.Batch], jax.Array]


def language_model(apply: Callable, *, z_loss: float = 0.0) -> Task:
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
        logps, partition = factored_logits.target_logps(
            answer, language.targets(batch["tokens"])
        )
        return language.next_token_loss(
            logps, partition, language.label_mask(batch), z_loss
        )

    def kernel(params):
        return apply({"params": params}, method="head")

    return Task(answer, kernel, loss, language.label_mask)


def classifier(apply: Callable) -> Task:
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

    return Task(answer, kernel, loss, lambda b: jnp.ones(len(b["labels"])))


def normalize_spectrally(task: Task) -> Task:
    """The task with its kernel divided by the kernel's largest singular value.

    R4F is R3F of this. The norm is taken by 20 power iterations and constant for the
    gradient's direction vectors, as in Miyato et al. 2018 (arXiv:1802.05957).
    """

    def kernel(params):
        return divide_by_norm(task.kernel(params))

    def answer(params, batch, noise=None):
        return task.answer(params, batch, noise).replace(kernel=kernel(params))

    return task._replace(answer=answer, kernel=kernel)


def divide_by_norm(matrix: jax.Array) -> jax.Array:
    """A matrix [D, V] of spectral norm 1; see `normalize_spectrally`.

    >>> divide_by_norm(jnp.diag(jnp.array([4.0, 1.0]))).round(3).tolist()
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


def task_loss(task: Task, *, keep: bool = False) -> types.Objective:
    """The loss of the answers; `keep` returns hidden states as `Loss.outputs`."""

    def objective(params, batch, *, key, frozen) -> types.Loss:
        del key, frozen
        answer = task.answer(params, batch)
        outputs = answer.hidden if keep else None
        return task.loss(answer, batch)._replace(outputs=outputs)

    return objective
