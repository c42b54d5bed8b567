"""Accuracy of a classifier on labelled texts.

accuracy = examples whose likeliest label is theirs / examples
loss     = sum of -log p(label) / examples              nats per example
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import types


def evaluate(
    apply: Callable, params: types.Params, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """accuracy, loss (nats per example) and examples.

    Args:
        apply: `Classifier(config, classes).apply`.
        params: the classifier's.
        batches: of `labelled.eval_batches`.
    """
    score = _scorer(apply)
    nats = right = examples = 0.0
    for batch in batches:
        inputs = {name: batch[name] for name in ("tokens", "mask", "labels")}
        row_nats, row_right = score(params, inputs)
        nats += np.asarray(row_nats, np.float64)[batch["real"]].sum()
        right += np.asarray(row_right)[batch["real"]].sum()
        examples += batch["real"].sum()
    return {
        "accuracy": float(right / examples),
        "loss": float(nats / examples),
        "examples": float(examples),
    }


@functools.cache
def _scorer(apply):
    """The jitted (params, batch) -> (nats f32[B], bool[B]: whether it is right)."""

    @jax.jit
    def score(params, batch):
        logits = apply({"params": params}, batch["tokens"], batch["mask"])
        hit = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        nats = -jnp.sum(jax.nn.log_softmax(logits) * hit, axis=-1)
        right = jnp.argmax(logits, axis=-1) == batch["labels"]
        return jax.tree.map(mesh_lib.replicate, (nats, right))

    return score
