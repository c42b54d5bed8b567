"""Losses of pairs against their formulas, and against TRL's values and gradients."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import objectives
from jaxlab.core import errors, step
from jaxlab.objectives import pair_losses
from jaxlab.systems.tulu import step_shape

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
        ({"loss": "hinge", "label_smoothing": 0.1}, "the loss hinge has no label_sm"),
        ({"loss": "apo_zero", "divergence": "js"}, "the loss apo_zero has no diverg"),
        ({"loss": "aot", "target_margin": 1.0}, "the loss aot has no target_margin"),
        ({"temperature": 1.0}, "the loss sigmoid has no temperature; leave"),
        ({"divergence": "kl"}, "divergence 'kl'; use one of reverse_kl, forward_kl"),
        ({"loss": "exo_pair"}, "label_smoothing 0.0: exo_pair takes its logarithm"),
        ({"loss": "sigmoid + sigmoid"}, "has sigmoid twice; add them up"),
        ({"loss": "-1*sigmoid"}, "use one of sigmoid.* or a sum of them"),
        ({"tail_weight": 2.0}, "preference.tail_weight 2.0; use 0 to 1"),
    ],
)
def test_a_preference_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.preference(_speak, **options)


@pytest.fixture(scope="module")
def trl(test_data):
    path = test_data.parent / "vectors" / "olmo_tulu" / "losses.json"
    if not path.is_file():
        pytest.skip("no reference values beside the test data")
    return json.loads(path.read_text("utf-8"))


def _paired(x):
    return jnp.asarray(np.stack([x[:6], x[6:]], axis=1), jnp.float32)


def _repeat(variables, tokens, targets, method):
    """A model whose log-probabilities are its parameters."""
    return jnp.pad(variables["params"], ((0, 0), (0, 1))), None


def _of_trl(trl):
    """(log-probabilities f32[12, 11], batch) of the published inputs."""
    given = {k: np.array(x) for k, x in trl["inputs"].items() if k != "order"}
    mask = given["completion_mask"]
    reference = given["reference_token_logps"]
    batch = {
        "tokens": jnp.zeros((6, 2, 12), int),
        "loss_mask": _paired(mask),
        "reference_logps": _paired(reference.sum(1)),
    }
    return _paired(given["policy_token_logps"]).reshape(12, 11), batch


def _mean(objective, batch):
    def mean(logps):
        loss = objective(logps, batch, key=jax.random.key(0), frozen=None)
        return loss.total / loss.weight

    return mean


_NAMES = {
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}
_TRL = {"f_divergence": "divergence", "f_alpha_divergence_coef": "divergence_alpha"}


def _weigh_tails(inputs, tail):
    """Reference log-probabilities f32[6, 2] with weights beyond the shorter answer."""
    mask = np.array(inputs["completion_mask"])[:, 1:]
    sizes = np.minimum(mask[:6].sum(1), mask[6:].sum(1))[np.r_[:6, :6]]
    weights = np.where(np.cumsum(mask, axis=1) > sizes[:, None], tail, 1.0)
    return _paired((np.array(inputs["reference_token_logps"]) * weights).sum(1))


def test_preferences_are_those_of_trl(trl):
    logps, batch = _of_trl(trl)
    mask = np.asarray(batch["loss_mask"]).reshape(12, 12)[:, 1:]
    compared = []
    for row in trl["trl_dpo"]:
        options = {_TRL.get(k, k): v for k, v in row.items()}
        name = options.pop("loss_type")
        wanted, gradients = options.pop("loss"), options.pop("grad_sum_per_seq")
        if "divergence" in options:
            options["divergence"] = _NAMES.get(*2 * (options["divergence"],))
        given = dict(batch)
        if "ld_alpha" in options:
            options["tail_weight"] = tail = options.pop("ld_alpha")
            given["reference_logps"] = _weigh_tails(trl["inputs"], tail)
        objective = objectives.preference(_repeat, name, **options)
        loss, gradient = jax.value_and_grad(_mean(objective, given))(logps)
        assert float(loss) == pytest.approx(wanted, rel=1e-5), name
        # The first label has the gradient of the whole answer.
        found = gradient[jnp.arange(12), jnp.argmax(mask, axis=1)]
        wanted = np.array(gradients).reshape(2, 6).T.ravel()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7, err_msg=name)
        compared.append(name)
    assert len(compared) == 22


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_without_a_reference_are_those_of_trl(trl, smoothing):
    logps, batch = _of_trl(trl)
    del batch["reference_logps"]
    entropy = next(x["loss"] for x in trl["trl_dpo"] if x["loss_type"] == "sft")
    compared = 0
    for row in trl["trl_cpo"]:
        name = row["loss_type"]
        name = name if name == "simpo" else f"cpo_{name}".removesuffix("_sigmoid")
        if row["label_smoothing"] != smoothing:
            continue
        options = {
            "beta": row["beta"],
            "target_margin": row["simpo_gamma"] / row["beta"],
        }
        options |= {"label_smoothing": smoothing} if smoothing else {}
        for nll in (0.0, 1.0):
            objective = objectives.preference(_repeat, name, nll_weight=nll, **options)
            found = _mean(objective, batch)(logps)
            assert float(found) == pytest.approx(row["mean"] + nll * entropy, rel=1e-5)
        compared += 1
    assert compared == (1 if smoothing else 4)
    row = trl["trl_orpo"][0]
    found = _mean(objectives.preference(_repeat, "orpo", beta=row["beta"]), batch)(
        logps
    )
    ratio = np.mean(row["beta_times_logsigmoid_log_odds"])
    assert float(found) == pytest.approx(entropy - ratio, rel=1e-5)


# ------------------------------------------------------------------ sums, batches


def _random_pairs(count, seed=0):
    draw = np.random.default_rng(seed)
    mask = np.zeros((count, 2, 9), np.float32)
    for row in range(count):
        for side in range(2):
            start = draw.integers(1, 5)
            mask[row, side, start : start + draw.integers(1, 5)] = 1
    tokens = jnp.asarray(draw.integers(0, 8, (count, 2, 9)))
    reference = jnp.asarray(draw.normal(-6, 2, (count, 2)), jnp.float32)
    return {
        "tokens": tokens, "loss_mask": jnp.asarray(mask), "reference_logps": reference,
    }  # fmt: skip


def test_a_sum_of_losses_is_their_weighted_sum():
    params, batch = jax.random.normal(jax.random.key(3), (8, 8)), _random_pairs(6)
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0, "cpo": 0.5}
    loss = "0.8*sigmoid + 0.2*bco_pair+sft + 0.5*cpo"

    def of(name):
        objective = objectives.preference(_speak, name)
        return jax.value_and_grad(_mean(objective, batch))(params)

    def scaled(name, weight):
        return jax.tree.map(lambda x: weight * x, of(name))

    terms = [scaled(*term) for term in weights.items()]
    wanted = jax.tree.map(lambda *x: sum(x), *terms)
    chex.assert_trees_all_close(of(loss), wanted, rtol=1e-4)
    assert objectives.asks_reference(loss)
    assert not objectives.asks_reference("cpo + simpo")


def test_plans_know_which_losses_have_a_reference():
    names = {x for x, one in pair_losses.LOSSES.items() if not one.has_reference}
    assert names == step_shape.WITHOUT_REFERENCE


WHOLE = ["aot", "aot_unpaired", "sft", "cpo", "orpo", "sigmoid+sft"]


@pytest.mark.parametrize("loss", WHOLE)
def test_a_loss_of_whole_batches_is_cut_into_chunks_and_not_into_microbatches(loss):
    params, batch = jax.random.normal(jax.random.key(3), (8, 8)), _random_pairs(6)
    batch["loss_mask"] = batch["loss_mask"].at[4].set(0.0)  # fills up a last batch
    few = jax.tree.map(lambda x: x[jnp.array([0, 1, 2, 3, 5])], batch)
    whole, cut = (
        objectives.preference(_speak, loss, chunks=chunks, pairs=6) for chunks in (1, 3)
    )
    one, two = (jax.value_and_grad(_mean(x, batch))(params) for x in (whole, cut))
    three = jax.value_and_grad(_mean(objectives.preference(_speak, loss), few))(params)
    for other in (two, three):
        chex.assert_trees_all_close(one, other, atol=1e-5)
    assert objectives.needs_whole_batch(loss)
    with pytest.raises(errors.UserError, match=r"needs all 6 .* use micro_batches 1"):
        step.mean_and_grad(whole, 2)(params, batch, jax.random.key(0), None)


def test_certain_answers_have_finite_gradients():
    loss = "orpo + discopop + exo_pair + sigmoid_norm"
    objective = objectives.preference(_speak, loss, label_smoothing=1e-3)
    params = 1e4 * jax.random.normal(jax.random.key(3), (8, 8))
    gradient = jax.grad(_mean(objective, _random_pairs(6)))(params)
    assert jnp.isfinite(gradient).all()


# ------------------------------------------------------------------ single answers


def _columns(*columns):
    """A batch of answers of one token each, whose log-probabilities are parameters."""
    rows = np.stack(columns, axis=1)
    return jnp.asarray(rows, jnp.float32)


def _kto_of_trl(trl, row):
    given = trl["inputs"]
    policy = _columns(given["policy_chosen"], row["kl_policy"])
    batch = {
        "tokens": jnp.arange(24).reshape(6, 2, 2),
        "loss_mask": jnp.ones((6, 2, 2)),
        "reference_logps": _columns(given["reference_chosen"], row["kl_reference"]),
        "is_desirable": jnp.array(row["labels"], bool),
    }
    return policy, batch


def _look_up(variables, tokens, targets, method):
    """A model whose parameters are the log-probability of each row."""
    del targets, method
    logps = variables["params"].reshape(-1)[tokens[:, 0] // 2]
    return jnp.stack([logps, jnp.zeros_like(logps)], axis=1), None


@pytest.mark.parametrize("chunks", [1, 3])
def test_unpaired_losses_are_those_of_trl(trl, chunks):
    for row in trl["trl_kto"]:
        policy, batch = _kto_of_trl(trl, row)
        names = ("beta", "desirable_weight", "undesirable_weight")
        options = {name: row[name] for name in names}
        objective = objectives.kto(
            _look_up, row["loss_type"], chunks=chunks, rows=6, **options
        )
        loss, gradient = jax.value_and_grad(_mean(objective, batch))(policy)
        assert float(loss) == pytest.approx(row["loss"], rel=1e-5)
        assert (gradient[:, 0] != 0).all()
        assert (gradient[:, 1] == 0).all()  # the KL is a constant


def test_kto_asks_a_frozen_policy_and_leaves_empty_rows_out(trl):
    row = trl["trl_kto"][0]
    policy, batch = _kto_of_trl(trl, row)
    reference = batch.pop("reference_logps")
    batch["loss_mask"] = batch["loss_mask"].at[5].set(0.0)
    objective = objectives.kto(_look_up)
    found = objective(policy, batch, key=jax.random.key(0), frozen=reference)
    few = {name: x[:5] for name, x in batch.items()} | {
        "reference_logps": reference[:5]
    }
    expected = objective(policy, few, key=jax.random.key(0), frozen=None)
    assert float(found.weight) == 5
    chex.assert_trees_all_close(found.total, expected.total, rtol=1e-6)
    whole = objectives.kto(_look_up, rows=6)
    with pytest.raises(errors.UserError, match=r"kto needs all 6 examples"):
        whole(policy, few, key=jax.random.key(0), frozen=None)
    with pytest.raises(ValueError, match="loss 'bco'; use kto or apo_zero_unpaired"):
        objectives.kto(_look_up, "bco")


# ------------------------------------------------------------------ rewards


def test_losses_of_rewards_are_those_of_trl(trl):
    case = {name: np.float32(value) for name, value in trl["reward_model"].items()}
    scores = _columns(case["chosen"], case["rejected"])
    batch = {
        "tokens": jnp.arange(24).reshape(6, 2, 2), "lengths": jnp.full((6, 2), 2),
    }  # fmt: skip

    def apply(variables, tokens, lengths):
        del lengths
        return variables["params"].reshape(-1)[tokens[:, 0] // 2]

    def mean(batch, **options):
        return float(_mean(objectives.reward(apply, **options), batch)(scores))

    margins = {**batch, "margin": jnp.asarray(case["margin"])}
    assert mean(batch) == pytest.approx(case["loss"], rel=1e-6)
    assert mean(margins) == pytest.approx(case["loss_with_margin"], rel=1e-6)
    assert mean(batch, center=0.01) == pytest.approx(
        case["loss_centered_0p01"], rel=1e-6
    )
    const = {**batch, "margin": jnp.full(6, 0.5)}
    assert mean(batch, margin=0.5) == pytest.approx(mean(const), rel=1e-6)
    empty = {**batch, "lengths": batch["lengths"].at[0, 1].set(0)}
    loss = objectives.reward(apply)(scores, empty, key=None, frozen=None)
    assert float(loss.weight) == 5
