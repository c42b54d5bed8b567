"""The losses against the same sums in numpy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import models, objectives
from tests.support import peers

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


# ------------------------------------------------------------------ preferences

PAIRS = {
    "tokens": jnp.array([[[1, 2, 3, 4], [1, 5, 6, 0]], [[7, 1, 2, 0], [7, 3, 4, 5]]]),
    "loss_mask": jnp.array(
        [[[0.0, 0, 1, 1], [0, 1, 1, 0]], [[0, 1, 1, 0], [0, 1, 1, 1]]]
    ),
    "reference_logps": jnp.array([[-3.0, -2.5], [-4.0, -6.0]]),
}


def _speak(variables, tokens, targets, segment_ids=None, positions=None, method=None):
    """A model whose logits after a token are a row of its parameters."""
    logps = jax.nn.log_softmax(variables["params"][tokens])
    return jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0], None


def _answers(params, batch):
    """Sums of log-probabilities and label counts, one token at a time, f64[B, 2]."""
    logits = np.asarray(params, np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens, mask = np.asarray(batch["tokens"]), np.asarray(batch["loss_mask"])
    sums, sizes = np.zeros(tokens.shape[:2]), np.zeros(tokens.shape[:2])
    for pair, side in np.ndindex(*sums.shape):
        for place in range(1, tokens.shape[-1]):
            if mask[pair, side, place]:
                before, here = tokens[pair, side, place - 1 : place + 1]
                sums[pair, side] += logps[before, here]
                sizes[pair, side] += 1
    return sums, sizes


def _by_hand(name, params, beta, smoothing, target):
    sums, sizes = _answers(params, PAIRS)
    reference = 0.0 if name == "simpo" else np.asarray(PAIRS["reference_logps"])
    ratios = sums - reference
    if name in ("sigmoid_norm", "ipo", "simpo"):
        ratios = ratios / sizes
    h = ratios[:, 0] - ratios[:, 1] - target
    right, wrong = np.log1p(np.exp(-beta * h)), np.log1p(np.exp(beta * h))
    smoothed = (1 - smoothing) * right + smoothing * wrong
    robust = ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    each = {
        "hinge": np.maximum(0, 1 - beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
        "ipo_sum": (h - 1 / (2 * beta)) ** 2,
        "robust": robust,
    }
    return each.get(name, smoothed).sum(), beta * ratios


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sigmoid", {"beta": 0.1}),
        ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}),
        ("sigmoid_norm", {"beta": 5.0}),
        ("robust", {"label_smoothing": 0.2}),
        ("hinge", {"beta": 0.3}),
        ("ipo", {"beta": 0.1}),
        ("ipo_sum", {"beta": 0.1}),
        ("simpo", {"beta": 2.0, "target_margin": 0.25}),
    ],
)
def test_preference_losses_are_those_of_their_formulas(name, options):
    params = jax.random.normal(jax.random.key(0), (8, 8))
    objective = objectives.preference(_speak, name, **options)
    loss = objective(params, PAIRS, key=jax.random.key(0), frozen=None)
    given = {"beta": 0.1, "label_smoothing": 0.0, "target_margin": 0.0, **options}
    total, rewards = _by_hand(name, params, *given.values())
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == 2
    assert float(loss.metrics["chosen_reward"]) == pytest.approx(
        rewards[:, 0].sum(), rel=1e-5, abs=1e-6
    )


def test_a_frozen_policy_is_the_reference_where_none_was_computed():
    params, frozen = jax.random.normal(jax.random.key(1), (2, 8, 8))
    objective = objectives.preference(_speak)
    asked = {name: PAIRS[name] for name in ("tokens", "loss_mask")}
    known = {**asked, "reference_logps": jnp.array(_answers(frozen, PAIRS)[0])}

    def total(params, batch):
        return objective(params, batch, key=jax.random.key(0), frozen=frozen).total

    a, b = (jax.value_and_grad(total)(params, batch) for batch in (asked, known))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    np.testing.assert_allclose(a[1], b[1], atol=1e-6)
    same = objective(frozen, asked, key=jax.random.key(0), frozen=frozen)
    assert float(same.total) == pytest.approx(2 * np.log(2), rel=1e-6)


def test_a_reference_of_one_number_per_pair_is_refused():
    batch = {**PAIRS, "reference_logps": jnp.zeros(2)}  # would broadcast over pairs
    with pytest.raises(AssertionError, match="equal_shape"):
        objectives.preference(_speak)(
            jnp.zeros((8, 8)), batch, key=jax.random.key(0), frozen=None
        )


def test_a_pair_without_labels_does_not_count():
    params = jax.random.normal(jax.random.key(2), (8, 8))
    mask = PAIRS["loss_mask"].at[1, 0].set(0.0)
    objective = objectives.preference(_speak)
    key = jax.random.key(0)
    both = objective(params, {**PAIRS, "loss_mask": mask}, key=key, frozen=None)
    first = {name: x[:1] for name, x in PAIRS.items()}
    alone = objective(params, first, key=key, frozen=None)
    assert float(both.weight) == 1
    assert float(both.total) == pytest.approx(float(alone.total), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ppo"}, "loss 'ppo'; use one of sigmoid"),
        ({"label_smoothing": 0.5}, "label_smoothing 0.5; use 0 to below 0.5"),
        ({"beta": -1.0}, "preference.beta -1.0; use a number above 0"),
        ({"beta": 0.0, "loss": "ipo"}, "preference.beta 0.0; use a number above 0"),
        ({"beta": float("nan")}, "preference.beta nan; use a number above 0"),
        ({"target_margin": -0.1}, "preference.target_margin -0.1; use 0 or more"),
    ],
)
def test_a_preference_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.preference(_speak, **options)


def test_preferences_are_those_of_trl(test_data):
    path = test_data.parent / "vectors" / "olmo_tulu" / "losses.json"
    if not path.is_file():
        pytest.skip("no reference values beside the test data")
    values = json.loads(path.read_text("utf-8"))
    del values["inputs"]["order"]
    given = {name: np.array(x) for name, x in values["inputs"].items()}

    def paired(x):
        return jnp.asarray(np.stack([x[:6], x[6:]], axis=1), jnp.float32)

    batch = {
        "tokens": jnp.zeros((6, 2, 12), int),
        "loss_mask": paired(given["completion_mask"]),
        "reference_logps": paired(given["reference_token_logps"].sum(1)),
    }
    logps = paired(given["policy_token_logps"]).reshape(12, 11)

    def apply(variables, tokens, targets, method):
        return jnp.pad(variables["params"], ((0, 0), (0, 1))), None

    ours = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust")
    plain = {"loss_type", "beta", "label_smoothing", "loss", "grad_sum_per_seq"}
    compared = 0
    for row in values["trl_dpo"]:
        name = row["loss_type"]
        # The others are other losses, other divergences, or weigh lengths apart.
        if name not in ours or not set(row) <= plain:
            continue
        smoothing = row.get("label_smoothing", 0.0)
        objective = objectives.preference(
            apply, name, beta=row["beta"], label_smoothing=smoothing
        )

        def mean(logps, objective=objective):
            loss = objective(logps, batch, key=jax.random.key(0), frozen=None)
            return loss.total / loss.weight

        loss, gradient = jax.value_and_grad(mean)(logps)
        assert float(loss) == pytest.approx(row["loss"], rel=1e-5)
        first = np.argmax(given["completion_mask"][:, 1:], axis=1)  # of the labels
        sides = paired(first[:, None])[..., 0].reshape(12).astype(int)
        found = np.asarray(gradient)[np.arange(12), sides].reshape(6, 2)
        wanted = np.array(row["grad_sum_per_seq"]).reshape(2, 6).T
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
        compared += 1
    assert compared == 7


@pytest.mark.oracle
def test_preferences_of_a_real_model_are_those_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = peers.VALUES / "models" / "llama2_gqa"
    config, params = models.hf.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    random = np.random.default_rng(0)
    tokens = random.integers(3, config.vocab, (3, 2, 16))
    mask = np.zeros(tokens.shape, np.float32)
    for pair, side in np.ndindex(3, 2):
        mask[pair, side, 5 : 8 + 2 * pair + side] = 1
    reference = -10 * random.random((3, 2)).astype(np.float32)
    batch = {"tokens": tokens, "loss_mask": mask, "reference_logps": reference}
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    objective = objectives.preference(models.Decoder(config).apply, beta=0.3)

    def mean(params):
        loss = objective(params, batch, key=jax.random.key(0), frozen=None)
        return loss.total / loss.weight

    loss, gradient = jax.jit(jax.value_and_grad(mean))(params)
    logits = theirs(torch.tensor(tokens.reshape(6, 16))).logits[:, :-1]
    labels = torch.tensor(tokens.reshape(6, 16)[:, 1:, None])
    logps = logits.log_softmax(-1).gather(-1, labels)[..., 0]
    sums = (logps * torch.tensor(mask.reshape(6, 16)[:, 1:])).sum(1).reshape(3, 2)
    ratios = sums - torch.tensor(reference)
    expected = -torch.nn.functional.logsigmoid(0.3 * (ratios[:, 0] - ratios[:, 1]))
    expected.mean().backward()
    assert float(loss) == pytest.approx(expected.mean().item(), rel=1e-5)
    head = theirs.lm_head.weight.grad.numpy().T
    np.testing.assert_allclose(gradient["lm_head"]["kernel"], head, atol=1e-5)
