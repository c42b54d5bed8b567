"""The losses against the same sums in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import objectives

TOKENS = jnp.array([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
SEGMENTS = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]])
MASK = jnp.array([[0.0, 1, 1, 0, 1], [1, 1, 0, 1, 1]])


def _apply(variables, tokens, targets, segment_ids, positions, method):
    """A model whose logits are its parameters."""
    assert method == "token_logps"
    del tokens, segment_ids, positions
    logits = variables["params"]
    logps = jax.nn.log_softmax(logits)
    hit = jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
    return hit, jax.nn.logsumexp(logits, axis=-1)


def _logits(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 5, 8)) * 3


def _reference(batch, z_loss=0.0):
    """Sums over labels, one at a time, in f64: (cross-entropy, z-loss, labels)."""
    logits = np.asarray(_logits(), np.float64)
    total, squares, count = 0.0, 0.0, 0
    for row in range(2):
        for place in range(4):
            if "segment_ids" in batch:
                here, there = batch["segment_ids"][row, place : place + 2].tolist()
                if here != there or there == 0:
                    continue
            if "loss_mask" in batch and batch["loss_mask"][row, place + 1] == 0:
                continue
            partition = np.log(np.exp(logits[row, place]).sum())
            total -= logits[row, place, batch["tokens"][row, place + 1]] - partition
            squares += z_loss * partition**2
            count += 1
    return total, squares, count


def _call(batch, **options):
    objective = objectives.next_token(_apply, **options)
    return objective(_logits(), batch, key=jax.random.key(0), frozen=None)


BATCHES = {
    "all": {"tokens": TOKENS},
    "masked": {"tokens": TOKENS, "loss_mask": MASK},
    "packed": {"tokens": TOKENS, "segment_ids": SEGMENTS},
    "both": {"tokens": TOKENS, "segment_ids": SEGMENTS, "loss_mask": MASK},
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_next_token_is_the_sum_over_the_labels(name, z_loss):
    loss = _call(BATCHES[name], z_loss=z_loss)
    cross_entropy, z, count = _reference(BATCHES[name], z_loss)
    assert float(loss.weight) == count
    np.testing.assert_allclose(loss.total, cross_entropy + z, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["cross_entropy"], cross_entropy, rtol=1e-5)
    if z_loss:
        np.testing.assert_allclose(loss.metrics["z_loss"], z, rtol=1e-5)
    else:
        assert set(loss.metrics) == {"cross_entropy"}


def test_labels_are_counted_as_written_out():
    # The first row has two documents (2 + 3 tokens), the second one of 3 and padding.
    assert [_reference(batch)[2] for batch in BATCHES.values()] == [8, 6, 5, 3]
    assert objectives.label_mask(BATCHES["both"]).tolist() == [
        [1.0, 0.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0],
    ]


def test_the_olmo_denominator_is_every_position():
    loss, same = _call(BATCHES["all"], loss_denominator="olmo"), _call(BATCHES["all"])
    assert float(loss.weight) == 2 * 5
    ratio = (loss.total / loss.weight) / (same.total / same.weight)
    np.testing.assert_allclose(ratio, (5 - 1) / 5, rtol=1e-6)


def test_an_unknown_denominator_is_refused():
    with pytest.raises(
        ValueError, match="loss_denominator 'tokens'; use labels or olmo"
    ):
        objectives.next_token(_apply, loss_denominator="tokens")


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(2)), st.integers(0, 7))
def test_rows_only_add_up(order, shift):
    batch = {name: value[jnp.array(order)] for name, value in BATCHES["both"].items()}
    logits = (_logits() + shift)[jnp.array(order)]  # logits are free up to a constant
    objective = objectives.next_token(_apply)
    loss = objective(logits, batch, key=jax.random.key(0), frozen=None)
    np.testing.assert_allclose(loss.total, _call(BATCHES["both"]).total, rtol=1e-4)


def test_what_is_no_label_has_no_gradient():
    def total(logits):
        objective = objectives.next_token(_apply, z_loss=1e-2)
        return objective(logits, BATCHES["both"], key=None, frozen=None).total

    gradient = np.abs(jax.grad(total)(_logits())).sum(axis=-1)
    np.testing.assert_array_equal(
        gradient > 0, np.asarray(objectives.label_mask(BATCHES["both"])) > 0
    )
