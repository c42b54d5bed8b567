"""The whole idea on a toy: experts on Markov chains, mixtures of them really trained.

A seed model, six experts and all 35 pairs and triples, each member's unit of tokens the
same: a pair is trained on twice the tokens of an expert. Run it with `-s` to read the
tables: `pytest -s tests/ablation/test_toy.py`.

"In domain" are targets that are domains of the pool, as in the paper; "out" are chains
that no expert has seen (three blends of two domains, three unrelated). The stricter
reading, by whether the target's domain is a *member* of the mixture, is printed beside
it. There, in domain, the toy is near its noise: pairs and triples trained again in
another order (another seed in `trained_on`) correlate with themselves by .85 only, at
fixed size by .5. And out of domain at fixed size the trivial baseline beats merging.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab import ablation, models, objectives
from jaxlab.evals import perplexity

DOMAINS = "abcdef"
V, L = 24, 24
BATCH, UNIT_STEPS, SEED_UNITS, RATE = 8, 80, 5, 2e-3
MODEL = models.Decoder(
    models.TransformerConfig(vocab=V, embed=32, layers=2, heads=2, mlp=64, length=L)
)
OPTIMIZER = optax.adamw(RATE, weight_decay=0.01)
MIXTURES = [c for size in (1, 2, 3) for c in itertools.combinations(DOMAINS, size)]


def chains():
    """Transition probabilities: the seed's chain, those of the domains, unseen ones."""
    draw = np.random.default_rng(0)
    common = draw.normal(size=(V, V))
    own = draw.normal(size=(len(DOMAINS), V, V))
    new = np.random.default_rng(5).normal(size=(3, V, V))
    unseen = {f"blend{i}": (own[2 * i] + own[2 * i + 1]) / 2 for i in range(3)}
    unseen |= {f"new{i}": each for i, each in enumerate(new)}

    def chain(own):
        scores = np.exp(1.2 * (common + own))
        return scores / scores.sum(-1, keepdims=True)

    domains = dict(zip(DOMAINS, map(chain, own), strict=True))
    return chain(0), domains, {name: chain(each) for name, each in unseen.items()}


def sample(chain, count, seed):
    """i32[count, L] sequences of a chain."""
    draw = np.random.default_rng(seed)
    cumulative, tokens = chain.cumsum(-1), np.zeros((count, L), np.int32)
    tokens[:, 0] = draw.integers(0, V, count)
    for t in range(1, L):
        ahead = draw.random(count)[:, None] > cumulative[tokens[:, t - 1]]
        tokens[:, t] = np.minimum(ahead.sum(-1), V - 1)
    return tokens


@jax.jit
def one_unit(params, slots, data):
    """Adam over data i32[UNIT_STEPS, BATCH, L]."""

    def loss(params, tokens):
        nats, count = row_losses(params, {"tokens": tokens})
        return nats.sum() / count.sum()

    def step(state, tokens):
        params, slots = state
        change, slots = OPTIMIZER.update(jax.grad(loss)(params, tokens), slots, params)
        return (optax.apply_updates(params, change), slots), None

    return jax.lax.scan(step, (params, slots), data)[0]


def trained_on(params, rows):
    """The model after one pass over the rows, shuffled, with a fresh optimizer."""
    rows = rows[np.random.default_rng(7).permutation(len(rows))]
    slots = OPTIMIZER.init(params)
    for unit in rows.reshape(-1, UNIT_STEPS, BATCH, L):
        params, slots = one_unit(params, slots, unit)
    return params


@functools.cache
def world():
    """(pool, trained models by members, batches of domains and of unseen chains)."""
    common, domains, unseen = chains()
    begun, count = time.monotonic(), BATCH * UNIT_STEPS
    empty = jnp.zeros((1, L), jnp.int32)
    start = nn.unbox(MODEL.init(jax.random.key(0), empty)["params"])
    seed = trained_on(start, sample(common, SEED_UNITS * count, 99))
    units = {n: sample(chain, count, i) for i, (n, chain) in enumerate(domains.items())}
    trained = {
        names: trained_on(seed, np.concatenate([units[name] for name in names]))
        for names in MIXTURES
    }
    print(f"\ntrained 1 + {len(trained)} models in {time.monotonic() - begun:.1f} s")
    pool = ablation.ModelPool.create({n: trained[n,] for n in DOMAINS}, seed=seed)
    held_out = {
        name: [{"tokens": sample(chain, 128, 50 + i)}]
        for i, (name, chain) in enumerate((domains | unseen).items())
    }
    return (
        pool,
        trained,
        *({n: held_out[n] for n in kind} for kind in (domains, unseen)),
    )


def row_losses(params, batch):
    return perplexity.row_losses(MODEL.apply, params, batch)


def token_logps(params, batch):
    tokens = batch["tokens"]
    logps, _ = MODEL.apply(
        {"params": params}, tokens, objectives.targets(tokens), method="token_logps"
    )
    return logps, objectives.label_mask(batch)


def half_and_half(domains):
    """One batch, half of it from domain a and half from b."""
    halves = [domains[name][0]["tokens"][:64] for name in "ab"]
    return {"a+b": [{"tokens": np.concatenate(halves)}]}


def timed(name, search, *args, **kwargs):
    """What a search finds; prints its row, with seconds that include compiling."""
    begun = time.monotonic()
    found = search(*args, **kwargs)
    seconds = time.monotonic() - begun
    parts = ", ".join(f"{n} {w:.2f}" for n, w in found.mixture.items())
    print(
        f"  {name:<22} {found.predicted_loss:.4f}  {found.evaluations:6.0f} passes "
        f"{seconds:6.2f} s  {parts}"
    )
    return found


@pytest.mark.slow
def test_merging_and_ensembling_predict_what_training_on_a_mixture_gives():
    pool, trained, domains, unseen = world()
    names = [names for names in trained if len(names) > 1]
    mixtures = pool.mixtures()
    places = [mixtures.index(pool.mixture(members)) for members in names]
    predicted, actual = {}, {}
    for target, batches in (domains | unseen).items():
        logps = ablation.expert_logps(pool, token_logps, batches)
        found = ablation.predictions(pool, mixtures, row_losses, batches, logps=logps)
        predicted[target] = {
            proxy: losses._replace(nats=losses.nats[places])
            for proxy, losses in found.items()
        }
        models_ = [trained[members] for members in names]
        actual[target] = ablation.model_losses(models_, row_losses, batches)
    pearson = {}
    for proxy in ("merged", "ensemble", "mean_of_individual", "best_single"):
        for kind, targets in (("in", domains), ("out", unseen)):
            member = {t: [t in members for members in names] for t in domains}
            rows = ablation.agreement(
                {t: predicted[t][proxy] for t in targets},
                {t: actual[t] for t in targets},
                [len(members) for members in names],
                in_domain=member if kind == "in" else None,
                resamples=200,
            )
            for row in rows:
                where = kind if row.domain == "all" else f"member {row.domain}"
                pearson[proxy, where, row.size] = row.pearson.value
                print(
                    f"  {proxy:<19} {where:<10} size {row.size!s:<6} pearson "
                    + "{:6.3f} [{:.3f}, {:.3f}] text [{:.3f}, {:.3f}]".format(
                        *row.pearson
                    )
                    + f"  spearman {row.spearman.value:6.3f}"
                )
    assert pearson["merged", "in", None] >= 0.9
    assert pearson["merged", "out", None] >= 0.85
    assert pearson["merged", "member out", None] >= 0.85
    for where in ("in", "out", "member in", "member out"):
        assert pearson["ensemble", where, None] >= pearson["merged", where, None]

    target = half_and_half(domains)
    score = ablation.merged_score(pool, target, row_losses)
    logps = {"a+b": ablation.expert_logps(pool, token_logps, target["a+b"])}
    print("six experts, one target of two domains")
    best = timed("enumerate", ablation.enumerate_best, pool, score)
    timed("greedy", ablation.greedy_search, pool, score)
    found = timed("gradient", ablation.gradient_search, pool, target, row_losses)
    by_cache = ablation.ensemble_score(pool, logps)
    subset = timed("ensemble, enumerate", ablation.enumerate_best, pool, by_cache)
    convex = timed("ensemble, convex", ablation.convex_search, pool.names, logps)
    assert found.predicted_loss <= best.predicted_loss + 1e-3
    assert convex.gap < 1e-6
    assert convex.predicted_loss <= subset.predicted_loss + 1e-6
    outcome = ablation.model_losses(trained.values(), row_losses, target["a+b"])
    chosen = [
        ablation.regret(list(trained).index(tuple(f.mixture)), outcome)
        for f in (best, subset)
    ]
    print(f"  regret of the subsets chosen: {chosen[0]:.4f}, {chosen[1]:.4f} nats")
    assert max(chosen) < 0.05


@pytest.mark.slow
def test_a_gradient_search_of_ten_experts_needs_fewer_passes_than_enumeration():
    pool, _, domains, _ = world()
    more = {f"{a}{b}": pool.average({a: 1, b: 1}) for a, b in ("cd", "ce", "de", "ef")}
    experts = {name: pool.expert(name) for name in DOMAINS} | more
    ten, target = ablation.ModelPool.create(experts), half_and_half(domains)
    score = ablation.merged_score(ten, target, row_losses)
    print("\nten experts, one target of two domains")
    best = timed("enumerate", ablation.enumerate_best, ten, score)
    timed("greedy", ablation.greedy_search, ten, score)
    found = timed("gradient", ablation.gradient_search, ten, target, row_losses)
    assert found.predicted_loss <= best.predicted_loss + 1e-3
    assert found.evaluations < best.evaluations / 8
