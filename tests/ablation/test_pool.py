"""Pools, mixtures and proxies, on models whose losses are known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ablation, merge
from jaxlab.core import errors
from jaxlab.stats import bootstrap, correlation

# Experts are points; the loss of params on a document at x is |params - x|^2 nats a
# token, so the loss of an average on any target is a distance that one can write down.
POINTS = {"math": [1.0, 0.0], "code": [0.0, 1.0], "web": [-1.0, -1.0]}


def params(point):
    return {"w": jnp.asarray(point), "steps": jnp.array(7)}


def pool(**kwargs):
    experts = {name: params(point) for name, point in POINTS.items()}
    return ablation.ModelPool.create(experts, **kwargs)


def losses_by_document(params, batch):
    nats = jnp.sum(jnp.square(params["w"][None] - batch["x"]), axis=-1)
    return nats * batch["tokens"], batch["tokens"]


def losses(params, batch):
    total, weight = losses_by_document(params, batch)
    return total.sum(), weight.sum()


def batches(*documents):
    """One batch of two rows for every two of (x, tokens)."""
    points = np.array([x for x, _ in documents], np.float32)
    tokens = np.array([n for _, n in documents], np.float32)
    return [
        {"x": points[i : i + 2], "tokens": tokens[i : i + 2]}
        for i in range(0, len(documents), 2)
    ]


DOCUMENTS = batches(([1, 1], 3), ([0, 0], 1), ([1, 0], 4), ([0, 0], 0))


def expected(point):
    def distance(x):
        return np.sum(np.square(np.asarray(point) - x))

    return (3 * distance([1, 1]) + distance([0, 0]) + 4 * distance([1, 0])) / 8


def test_mixtures_are_every_subset_small_ones_first():
    mixtures = pool().mixtures()
    assert [tuple(mixture) for mixture in mixtures] == [
        ("math",),
        ("code",),
        ("web",),
        ("math", "code"),
        ("math", "web"),
        ("code", "web"),
        ("math", "code", "web"),
    ]
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in mixtures)
    assert mixtures[3] == {"math": 0.5, "code": 0.5}


def test_mixtures_can_be_bounded_required_and_forbidden():
    some = pool().mixtures(2, must=["web"], forbid=["math"])
    assert [tuple(mixture) for mixture in some] == [("web",), ("code", "web")]
    assert len(pool().mixtures(max_size=1)) == 3


def test_micro_weights_are_in_proportion_to_units():
    sized = pool(units={"math": 1, "code": 3, "web": 4})
    mixtures = sized.mixtures(must=["math"], forbid=["web"], weighting="micro")
    assert mixtures == [{"math": 1.0}, {"math": 0.25, "code": 0.75}]
    rows = sized.weights(mixtures)
    chex.assert_trees_all_equal(rows, np.float32([[1, 0, 0], [0.25, 0.75, 0]]))
    assert sized.cost(mixtures) == ablation.Cost(pool_units=8, separate_units=5)


def test_the_cost_of_all_subsets_is_n_times_two_to_the_n_minus_one():
    cost = pool().cost(pool().mixtures())
    assert cost == ablation.Cost(pool_units=3, separate_units=3 * 2**2)


def test_merged_is_the_average_of_the_members():
    merged = pool().average({"web": 1, "code": 3})
    chex.assert_trees_all_close(merged["w"], jnp.array([-0.25, 0.5]))
    assert merged["steps"] == 7
    chex.assert_trees_all_equal(pool().expert("web"), params(POINTS["web"]))


@pytest.mark.parametrize("mode", ["map", "vmap"])
def test_proxy_losses_have_their_closed_form(mode):
    mixtures = [*pool().mixtures(), {"math": 0.2, "web": 0.6}]
    result = ablation.proxy_losses(pool(), mixtures, losses, DOCUMENTS, mode=mode)
    points = [
        sum(w * np.asarray(POINTS[n]) for n, w in mixture.items())
        / sum(mixture.values())
        for mixture in mixtures
    ]
    np.testing.assert_allclose(result, [expected(p) for p in points], rtol=1e-6)
    assert result.dtype == np.float32
    summed = ablation.proxy_losses(pool(), mixtures, losses_by_document, DOCUMENTS)
    np.testing.assert_allclose(summed, result, rtol=1e-6)


def test_documents_are_kept_apart_and_padding_left_out():
    mixtures = pool().mixtures()
    result = ablation.proxy_losses(
        pool(), mixtures, losses_by_document, DOCUMENTS, by_document=True
    )
    chex.assert_shape(result, (7, 3))
    np.testing.assert_allclose(result[0], [1, 1, 0])
    interval = bootstrap.paired_difference(
        result[0], result[2], key=jax.random.key(0), resamples=50
    )
    assert interval.high < 0  # math is the better one on every document
    with pytest.raises(errors.UserError, match="one total and weight per row"):
        ablation.proxy_losses(pool(), mixtures, losses, DOCUMENTS, by_document=True)


def test_batches_stream_through_one_compiled_program_and_report_progress():
    traces, seen = [], []

    def counted(params, batch):
        traces.append(1)
        return losses(params, batch)

    mixtures = pool().mixtures()
    for mixtures_of_one_count in (mixtures[:3], mixtures[3:6]):
        ablation.proxy_losses(
            pool(),
            mixtures_of_one_count,
            counted,
            iter(DOCUMENTS),
            progress=lambda done, count: seen.append((done, count)),
        )
    assert len(traces) == 1
    assert seen == [(1, None), (2, None)] * 2


def test_ranking_puts_the_best_mixture_first_for_each_target():
    near_code = batches(([0, 1], 1), ([0, 1], 1))
    between = batches(([0.5, 0.5], 1), ([0.5, 0.5], 1))
    calls = []
    ranking = ablation.rank_mixtures(
        pool(),
        pool().mixtures(),
        {"code": near_code, "both": between},
        losses,
        progress=lambda *args: calls.append(args),
    )
    assert list(ranking) == ["code", "both"]
    assert ranking["code"][0].mixture == {"code": 1.0}
    assert ranking["both"][0].mixture == {"math": 0.5, "code": 0.5}
    assert ranking["both"][-1].mixture == {"web": 1.0}
    for row in ranking["code"]:
        assert row.predicted_perplexity == pytest.approx(np.exp(row.predicted_loss))
    assert calls == [("code", 1, 1), ("both", 1, 1)]


def test_ranking_survives_losses_that_are_not_finite():
    def broken(params, batch):
        total, weight = losses(params, batch)
        return jnp.where(params["w"][0] == 1, jnp.nan, total * 1e4), weight

    target = batches(([9, 9], 1), ([9, 9], 1))
    rows = ablation.rank_mixtures(pool(), pool().mixtures(), {"x": target}, broken)["x"]
    assert rows[-1].mixture == {"math": 1.0}
    assert np.isnan(rows[-1].predicted_perplexity)
    assert rows[0].predicted_perplexity == np.inf


def test_merging_predicts_least_squares_training_better_than_the_trivial_baseline():
    """Exact fits of domains that share one covariance: there averages are exact too."""
    keys = jax.random.split(jax.random.key(0), 5)
    inputs = jax.random.normal(keys[0], (64, 3))
    truths = {
        n: jax.random.normal(k, (3,)) for n, k in zip("abcd", keys[1:], strict=True)
    }

    def train(names):
        x = jnp.concatenate([inputs] * len(names))
        y = jnp.concatenate([inputs @ truths[name] for name in names])
        return {"w": jnp.linalg.lstsq(x, y)[0]}

    def loss(params, batch):
        error = jnp.square(batch["x"] @ params["w"] - batch["y"])
        return error.sum(), jnp.array(error.size, jnp.float32)

    experts = ablation.ModelPool.create({name: train([name]) for name in "abcd"})
    mixtures = experts.mixtures()
    target = [{"x": inputs, "y": inputs @ (truths["a"] + truths["b"]) / 2}]
    proxy = ablation.proxy_losses(experts, mixtures, loss, target)
    trained = []
    for mixture in mixtures:
        total, weight = loss(train(list(mixture)), target[0])
        trained.append(float(total / weight))
    alone = [{name: 1.0} for name in experts.names]
    own = ablation.proxy_losses(experts, alone, loss, target)
    trivial = experts.weights(mixtures) @ own  # the mean of the members' own losses
    assert correlation.pearson(proxy, np.array(trained)) > 0.999
    assert correlation.pearson(trivial, np.array(trained)) < 0.9
    assert mixtures[int(np.argmin(proxy))] == {"a": 0.5, "b": 0.5}


def test_weights_of_a_mixture_are_differentiable_through_the_pool():
    stacked = pool().stacked

    def loss(w):
        total, weight = losses(merge.average_stacked(stacked, w), DOCUMENTS[0])
        return total / weight

    grads = jax.grad(loss)(jnp.array([1.0, 1.0, 1.0]))
    assert grads[2] > 0  # less web
    assert grads[0] < 0


def test_bad_pools_are_refused():
    good = {"a": params([0.0, 1.0]), "b": params([1.0, 0.0])}
    with pytest.raises(errors.UserError, match="at least one expert"):
        ablation.ModelPool.create({})
    with pytest.raises(errors.UserError, match="units are given for a but"):
        ablation.ModelPool.create(good, units={"a": 1})
    with pytest.raises(errors.UserError, match="expert b has 0 units"):
        ablation.ModelPool.create(good, units={"a": 1, "b": 0})
    with pytest.raises(ValueError, match=r"w: float32\[2\] in tree 0 vs float32\[1\]"):
        ablation.ModelPool.create(good | {"c": params([0.0])})
    with pytest.raises(ValueError, match="an expert and the seed differ"):
        ablation.ModelPool.create(good, seed={"w": jnp.ones(2)})


def test_bad_mixtures_are_refused():
    for call in (
        lambda: pool().mixtures(must=["poetry"]),
        lambda: pool().weights([{"poetry": 1}]),
        lambda: pool().expert("poetry"),
    ):
        with pytest.raises(errors.UserError, match="no expert poetry; the pool has"):
            call()
    with pytest.raises(errors.UserError, match="both required and forbidden"):
        pool().mixtures(must=["web"], forbid=["web"])
    with pytest.raises(errors.UserError, match="0 mixtures fit"):
        pool().mixtures(1, must=["web", "code"])
    with pytest.raises(errors.UserError, match="use 'macro', 'micro' or 'tokens'"):
        pool().mixtures(weighting="mean")
    many = {str(i): {"w": np.zeros(1, np.float32)} for i in range(18)}
    with pytest.raises(errors.UserError, match="262143 mixtures fit"):
        ablation.ModelPool.create(many).mixtures()
    for weights in ({}, {"web": 0}, {"web": -1, "code": 2}, {"web": np.nan}):
        with pytest.raises(errors.UserError, match="not negative and not all 0"):
            pool().weights([weights])
    with pytest.raises(errors.UserError, match="no mixtures"):
        pool().weights([])


def test_bad_evaluations_are_refused():
    one = [{"web": 1}]
    with pytest.raises(errors.UserError, match="no batches"):
        ablation.proxy_losses(pool(), one, losses, [])
    with pytest.raises(errors.UserError, match="no token that counts"):
        ablation.proxy_losses(pool(), one, losses, batches(([0, 0], 0), ([0, 0], 0)))
    with pytest.raises(errors.UserError, match="use 'map' or 'vmap'"):
        ablation.proxy_losses(pool(), one, losses, DOCUMENTS, mode="pmap")
    with pytest.raises(errors.UserError, match="no evaluation targets"):
        ablation.rank_mixtures(pool(), one, {}, losses)
