"""Searches for weights: slopes, limits, optimality, fronts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import ablation, models
from jaxlab.ablation import ensemble, limits
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.evals import perplexity

# Experts are the corners of a simplex; the loss at w is |w - target|^2, so that the
# best weights are the point of the allowed simplex that is nearest to the target.
NAMES = "abcdef"


@functools.cache
def corners():
    return ablation.ModelPool.create(
        {n: {"w": jnp.eye(6)[i]} for i, n in enumerate(NAMES)}
    )


def distance(params, batch):
    return jnp.sum(jnp.square(params["w"][None] - batch["x"]), axis=1), batch["n"]


def at(**weights):
    point = np.array([[weights.get(name, 0.0) for name in NAMES]], np.float32)
    return [{"x": point, "n": np.ones(1, np.float32)}]


def score(**targets):
    return ablation.merged_score(corners(), targets, distance)


def random_logps(seed, experts=5, tokens=300, sharp=2.0):
    draw = np.random.default_rng(seed)
    log = sharp * draw.normal(size=(experts, tokens)) - 3
    document = np.arange(tokens, dtype=np.int32) // 10
    return ablation.TokenLogps(
        log.astype(np.float32), draw.uniform(0.5, 1, tokens).astype("f"), document
    )


def loss_of(logps, weights):
    return ensemble.document_losses(logps, np.atleast_2d(weights)).loss


# Slopes


@pytest.mark.slow
def test_the_slope_of_a_weight_is_the_gradient_times_the_expert():
    model = models.Decoder(
        models.TransformerConfig(vocab=16, embed=16, layers=1, heads=2, mlp=16)
    )
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 16)

    def params(seed):
        found = model.init(jax.random.key(seed), tokens)["params"]
        return jax.tree.map(lambda leaf: 2 * leaf, mesh_lib.unbox(found))

    losses = functools.partial(perplexity.row_losses, model.apply)
    pool = ablation.ModelPool.create({name: params(i) for i, name in enumerate("abc")})
    weights, batch = np.array([0.5, 0.3, 0.2]), {"tokens": tokens}
    loss, slopes = ablation.loss_and_slopes(pool, weights, losses, batch)

    def mean(params):
        nats, count = losses(params, batch)
        return nats.sum() / count.sum()

    merged = pool.average(dict(zip("abc", weights, strict=True)))
    assert loss == pytest.approx(float(mean(merged)), rel=1e-5)
    gradient = jax.jit(jax.grad(mean))(merged)
    inner = [
        sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, pool.expert(name))))
        for name in "abc"
    ]
    np.testing.assert_allclose(slopes, inner, rtol=1e-4, atol=1e-5)
    step = 1e-2
    for k in range(3):
        ends = [
            ablation.loss_and_slopes(pool, weights + sign * step * e, losses, batch)[0]
            for sign, e in ((1, np.eye(3)[k]), (-1, np.eye(3)[k]))
        ]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slopes[k], abs=5e-3)


def test_a_gradient_search_finds_unequal_weights():
    found = ablation.gradient_search(
        corners(), {"t": at(a=0.7, b=0.3)}, distance, steps=150
    )
    assert set(found.mixture) == {"a", "b"}
    assert found.mixture["a"] == pytest.approx(0.7, abs=0.01)
    assert found.predicted_loss < 1e-3
    assert found.evaluations == 3 * 150 + 1
    assert len(found.trace) == 150
    assert found.trace[-1] < found.trace[0]


def test_a_gradient_search_weighs_targets_and_counts_batches():
    targets = {"one": at(a=1) * 3, "two": at(b=1)}
    weights = {"one": 0.25, "two": 0.75}
    seen = []
    found = ablation.gradient_search(
        corners(), targets, distance, target_weights=weights, steps=120,
        progress=lambda *args: seen.append(args),
    )  # fmt: skip
    # w = (1/4, 3/4) minimises |w - a|^2 / 4 + 3 |w - b|^2 / 4.
    assert found.mixture == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.01)
    assert found.evaluations == 3 * 120 * (1 / 3 + 1) / 2 + 1
    assert found.predicted_loss == pytest.approx(
        0.25 * found.by_target["one"] + 0.75 * found.by_target["two"]
    )
    assert seen[-1] == (120, 120)


def test_entropy_keeps_members_in():
    plain, spread = (
        ablation.gradient_search(corners(), {"t": at(a=1)}, distance, entropy=e)
        for e in (0.0, 5.0)
    )
    assert plain.mixture["a"] > 0.95
    assert min(spread.mixture.values()) > 0.1
    assert len(spread.mixture) == 6


# Subsets


def test_greedy_equals_enumeration_where_every_right_member_helps():
    target = score(t=at(a=0.25, c=0.25, d=0.25, f=0.25))
    best = ablation.enumerate_best(corners(), target)
    found = ablation.greedy_search(corners(), target)
    assert found.mixture == best.mixture == dict.fromkeys("acdf", 0.25)
    assert best.evaluations == 63
    assert found.evaluations == 6 + 5 + 4 + 3 + 2  # the last round helps no more
    np.testing.assert_allclose(found.trace, [0.75, 0.25, 1 / 12, 0], atol=1e-6)


def test_greedy_can_miss_a_pair_that_enumeration_finds():
    points = {"near": [1.0, 0.0], "up": [0.0, 9.0], "down": [0.0, -9.0]}
    pool = ablation.ModelPool.create(
        {n: {"w": jnp.array(p)} for n, p in points.items()}
    )
    batch = [{"x": np.zeros((1, 2), np.float32), "n": np.ones(1, np.float32)}]
    target = ablation.merged_score(pool, {"t": batch}, distance)
    best = ablation.enumerate_best(pool, target)
    assert best.mixture == {"up": 0.5, "down": 0.5}
    assert ablation.greedy_search(pool, target).mixture == {"near": 1.0}


def test_subset_searches_keep_every_limit():
    costs = dict(zip(NAMES, (5, 1, 1, 3, 2, 1), strict=True))
    within = ablation.Limits(must=("c",), forbid=("b",), max_size=3, costs=costs, cap=6)
    target = score(t=at(a=0.5, b=0.3, d=0.2))
    mixtures = within.subsets(corners())
    for mixture in mixtures:
        assert "c" in mixture
        assert "b" not in mixture
        assert len(mixture) <= 3
        assert sum(costs[name] for name in mixture) <= 6
    best = ablation.enumerate_best(corners(), target, within=within)
    assert best.mixture == {"a": 0.5, "c": 0.5}  # costs 6
    assert best.evaluations == len(mixtures)
    assert ablation.greedy_search(corners(), target, within=within).mixture in mixtures
    by_cache = ablation.ensemble_score(corners(), {"t": random_logps(0, 6)})
    assert (
        ablation.enumerate_best(corners(), by_cache, within=within).mixture in mixtures
    )


def test_targets_that_do_not_count_do_not_decide():
    def broken(params, batch):
        nats, count = distance(params, batch)
        return jnp.where(batch["x"][0, 5] == 1, jnp.inf, nats), count

    targets = {"one": at(a=1), "two": at(f=1)}
    both = ablation.merged_score(corners(), targets, broken)
    found = ablation.enumerate_best(corners(), both, target_weights={"one": 1})
    assert found.mixture == {"a": 1}
    assert found.by_target["two"] == math.inf
    with pytest.raises(errors.UserError, match="no mixture has a finite loss"):
        ablation.enumerate_best(corners(), both)


# Convex


@pytest.mark.parametrize("seed", range(3))
def test_the_convex_search_is_monotone_and_certified(seed):
    logps = random_logps(seed)
    found = ablation.convex_search("abcde", {"t": logps}, tolerance=1e-6)
    assert found.gap < 2e-6
    assert (np.diff(found.trace) <= 2e-6).all()
    weights = np.array([found.mixture.get(name, 0.0) for name in "abcde"])
    # Karush-Kuhn-Tucker: d loss / d w_k is -1 where w_k > 0, and at least -1 elsewhere.
    p = np.exp(np.float64(logps.logps))
    share = logps.weights / logps.weights.sum()
    slopes = (p * (share / (weights @ p))[None]).sum(axis=1)
    np.testing.assert_allclose(slopes[weights > 1e-3], 1, atol=2e-3)
    assert (slopes <= 1 + 3e-6).all()
    others = np.random.default_rng(seed).dirichlet(np.ones(5), 500)
    assert found.predicted_loss <= loss_of(logps, others).min() + 1e-6
    assert found.evaluations == 5


def test_the_convex_optimum_has_its_written_out_value():
    # Half of the tokens are known to a, a third to b, the rest to c: w = those shares.
    logs = np.full((3, 6), -50.0, np.float32)
    for k, tokens in enumerate(([0, 1, 2], [3, 4], [5])):
        logs[k, tokens] = -1
    known = ablation.TokenLogps(logs, np.ones(6, "f"), np.zeros(6, np.int32))
    found = ablation.convex_search("abc", {"t": known})
    assert found.mixture == pytest.approx(
        {"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}, abs=1e-3
    )
    entropy = math.log(2) / 2 + math.log(3) / 3 + math.log(6) / 6
    assert found.predicted_loss == pytest.approx(1 + entropy, abs=2e-6)


def test_the_convex_search_keeps_every_limit_and_its_gap_holds():
    logps = {"t": random_logps(4), "u": random_logps(5)}
    costs = dict(zip("abcde", (9, 1, 5, 4, 2), strict=True))
    weights = {"t": 2, "u": 1}
    within = ablation.Limits(
        must=("a",), forbid=("d",), costs=costs, cap=3.0, least=0.1
    )
    found = ablation.convex_search(
        "abcde", logps, within=within, target_weights=weights
    )
    assert found.mixture["a"] >= 0.1 - 1e-9
    assert "d" not in found.mixture
    assert sum(found.mixture.values()) == pytest.approx(1)
    assert sum(w * costs[n] for n, w in found.mixture.items()) <= 3 + 1e-9
    assert found.gap < 3e-6
    assert (np.diff(found.trace) <= 2e-6).all()
    draw = np.random.default_rng(0).dirichlet(np.full(4, 0.5), 20_000)
    rows = np.insert(0.9 * draw, 3, 0, axis=1) + 0.1 * np.eye(5)[0]
    allowed = rows[rows @ np.array([9, 1, 5, 4, 2]) <= 3]
    losses = (2 * loss_of(logps["t"], allowed) + loss_of(logps["u"], allowed)) / 3
    assert len(allowed) > 100
    assert found.predicted_loss <= losses.min() + 1e-6
    assert found.predicted_loss >= losses.min() - 0.05


def test_a_bound_on_the_members_is_kept_and_the_gap_says_what_it_may_cost():
    logps = random_logps(6)
    within = ablation.Limits(max_size=2)
    found = ablation.convex_search("abcde", {"t": logps}, within=within)
    free = ablation.convex_search("abcde", {"t": logps})
    assert len(found.mixture) <= 2
    # The bound is on every mixture, so it is what the free optimum is better by.
    lost = found.predicted_loss - free.predicted_loss
    assert found.gap == pytest.approx(lost, abs=3e-6)


# Limits


def some_region(seed, experts=5):
    draw = np.random.default_rng(seed)
    costs = draw.uniform(1, 9, experts)
    cap = draw.uniform(costs.min() * 1.05, costs.max())
    allowed = np.ones(experts, bool)
    return limits.Region(np.zeros(experts), 1.0, costs, cap, allowed), draw


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_projections_are_the_nearest_allowed_weights(seed):
    region, draw = some_region(seed)
    share = draw.dirichlet(np.ones(5))
    others = draw.dirichlet(np.ones(5), 400)
    others = others[others @ region.costs <= region.cap]
    nearest, likeliest = region.nearest(share), region.likeliest(share)
    for found in (nearest, likeliest):
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
        assert found @ region.costs <= region.cap + 1e-9
    if share @ region.costs <= region.cap:
        np.testing.assert_allclose([nearest, likeliest], [share, share])

    def divergence(v):
        return np.sum(v * np.log(np.maximum(v, 1e-300) / share), axis=-1)

    def likelihood(v):
        return np.sum(share * np.log(np.maximum(v, 1e-300)), axis=-1)

    assert (divergence(nearest) <= divergence(others) + 1e-9).all()
    assert (likelihood(likeliest) >= likelihood(others) - 1e-9).all()
    slopes = draw.normal(size=5)
    assert (others @ slopes <= region.largest(slopes) + 1e-9).all()


def test_gradient_searches_keep_every_limit():
    costs = dict(zip(NAMES, (9, 1, 5, 4, 2, 1), strict=True))
    within = ablation.Limits(
        must=("f",), forbid=("b",), max_size=3, costs=costs, cap=4.0, least=0.1
    )
    found = ablation.gradient_search(
        corners(), {"t": at(a=0.6, b=0.2, c=0.1, d=0.1)}, distance, within=within
    )
    assert found.mixture["f"] >= 0.1 - 1e-9
    assert "b" not in found.mixture
    assert len(found.mixture) <= 3
    assert sum(found.mixture.values()) == pytest.approx(1)
    assert sum(w * costs[n] for n, w in found.mixture.items()) <= 4 + 1e-9
    assert found.mixture["a"] > 0.25  # as much of the dear one as the cap allows


@pytest.mark.parametrize(
    ("within", "message"),
    [
        (ablation.Limits(must=("x",)), "no expert x"),
        (ablation.Limits(must=("a",), forbid=("a",)), "a: both required and forbidden"),
        (ablation.Limits(forbid=tuple(NAMES)), "every expert is forbidden"),
        (ablation.Limits(max_size=1, must=("a", "b")), "max_size 1 is too small"),
        (ablation.Limits(cap=1.0), "costs and cap are given together"),
        (
            ablation.Limits(costs={"a": 1}, cap=1.0),
            "no cost is given for b, c, d, e, f",
        ),
        (
            ablation.Limits(costs=dict.fromkeys(NAMES, 2.0), cap=1.0),
            "no mixture costs at most|no member can be chosen|no weights keep the cap",
        ),
    ],
)
def test_limits_that_cannot_be_kept_end_in_one_line(within, message):
    targets = {"t": at(a=1)}
    searches = (
        lambda: ablation.enumerate_best(corners(), score(**targets), within=within),
        lambda: ablation.greedy_search(corners(), score(**targets), within=within),
        lambda: ablation.gradient_search(corners(), targets, distance, within=within),
        lambda: ablation.convex_search(NAMES, {"t": random_logps(0, 6)}, within=within),
    )
    for search in searches:
        with pytest.raises(errors.UserError, match=message) as error:
            search()
        assert "\n" not in str(error.value)


def test_bad_searches_are_refused():
    with pytest.raises(errors.UserError, match="leave no weight free"):
        ablation.Limits(must=("a", "b"), least=0.5).region(NAMES)
    with pytest.raises(errors.UserError, match="no target u; there are t"):
        ablation.enumerate_best(corners(), score(t=at(a=1)), target_weights={"u": 1})
    with pytest.raises(errors.UserError, match="not negative and not all 0"):
        ablation.enumerate_best(corners(), score(t=at(a=1)), target_weights={"t": 0})
    with pytest.raises(errors.UserError, match="t: not of 5 experts"):
        ablation.convex_search("abcde", {"t": random_logps(0, 6)})
    nothing = random_logps(0, 2)
    nothing.logps[:, 7] = -np.inf
    with pytest.raises(errors.UserError, match="1 tokens get no finite probability"):
        ablation.convex_search("ab", {"t": nothing})
    for call in (
        lambda: ablation.convex_search("ab", {}),
        lambda: ablation.enumerate_best(corners(), score()),
        lambda: ablation.gradient_search(corners(), {}, distance),
    ):
        with pytest.raises(errors.UserError, match="no evaluation targets"):
            call()
    with pytest.raises(errors.UserError, match="needs a step, and batches"):
        ablation.gradient_search(corners(), {"t": []}, distance)


# Fronts


def test_the_pareto_front_of_written_out_losses():
    losses = [
        [1.0, 5.0],
        [2.0, 4.0],
        [2.0, 4.5],  # beaten by the second
        [3.0, 3.0],
        [3.0, 3.0],  # equal to the fourth: on the front together
        [9.0, 3.0],  # beaten by the fourth
        [np.nan, 0.0],
    ]
    front = ablation.pareto_front(losses)
    assert front.tolist() == [True, True, False, True, True, False, False]
    with pytest.raises(errors.UserError, match="needed, not"):
        ablation.pareto_front([1.0, 2.0])


def test_a_sweep_walks_along_the_front():
    logps = {"t": random_logps(8), "u": random_logps(9)}
    weighed = []

    def find(weights):
        weighed.append(weights)
        return ablation.convex_search("abcde", logps, target_weights=weights)

    found = ablation.sweep(find, ["t", "u"], divisions=4)
    assert [w["t"] for w in weighed] == [0, 0.25, 0.5, 0.75, 1]
    losses = np.array([[each.by_target[t] for t in logps] for each in found])
    assert len(found) == 5
    assert ablation.pareto_front(losses).all()
    assert (np.diff(losses[:, 0]) > 0).all()
    assert (np.diff(losses[:, 1]) < 0).all()
