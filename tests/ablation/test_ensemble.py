"""Ensembles of predictions, proxies by document, and their cache."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import ablation, models
from jaxlab.ablation import ensemble
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.evals import perplexity

MODEL = models.Decoder(
    models.TransformerConfig(vocab=16, embed=16, layers=1, heads=2, mlp=16)
)
TOKENS = jax.random.randint(jax.random.key(9), (6, 5), 0, 16)
# Rows 0, 2 and 4 are windows of one document; row 5 is padding.
BATCHES = [
    {"tokens": TOKENS[:3], "document": np.array([7, 3, 7])},
    {
        "tokens": TOKENS[3:],
        "document": np.array([9, 7, -1]),
        "loss_mask": jnp.ones((3, 5)).at[2].set(0),
    },
]
BATCHES[0]["loss_mask"] = jnp.ones((3, 5))


def from_seed(number):
    tokens = jnp.zeros((1, 5), jnp.int32)
    params = MODEL.init(jax.random.key(number), tokens)["params"]
    return jax.tree.map(lambda leaf: 3 * leaf, mesh_lib.unbox(params))


@functools.cache
def pool():
    experts = {name: from_seed(i) for i, name in enumerate("abc")}
    return ablation.ModelPool.create(experts, seed=from_seed(5))


losses = functools.partial(perplexity.row_losses, MODEL.apply)
logps = functools.partial(perplexity.token_logps, MODEL.apply)


@functools.cache
def known():
    return ablation.expert_logps(pool(), logps, BATCHES)


def test_the_loss_of_an_ensemble_has_its_written_out_value():
    logs = np.log(np.float32([[0.5, 0.25, 0.1], [0.25, 0.75, 0.3]]))
    tokens = ablation.TokenLogps(logs, np.float32([1, 1, 2]), np.int32([0, 0, 1]))
    rows = np.float32([[1, 0], [0.5, 0.5], [0.25, 0.75]])
    found = ensemble.document_losses(tokens, rows)
    expected = [
        [-math.log(0.5 * 0.25), -2 * math.log(0.1)],
        [-math.log(0.375 * 0.5), -2 * math.log(0.2)],
        [-math.log(0.3125 * 0.625), -2 * math.log(0.25)],
    ]
    np.testing.assert_allclose(found.nats, expected, rtol=1e-6)
    assert found.tokens.tolist() == [2, 2]
    np.testing.assert_allclose(found.loss, np.sum(expected, axis=1) / 4, rtol=1e-6)


@pytest.mark.slow
def test_an_ensemble_of_one_expert_has_that_experts_loss_by_document():
    alone = [{name: 1.0} for name in "abc"]
    merged = ablation.document_losses(pool(), alone, losses, BATCHES)
    found = ensemble.document_losses(known(), np.eye(3))
    np.testing.assert_allclose(found.nats, merged.nats, rtol=1e-5)
    assert found.document.tolist() == merged.document.tolist() == [0, 1, 1, 1, 2]
    found, merged = found.by_document(), merged.by_document()
    np.testing.assert_allclose(found.nats, merged.nats, rtol=1e-5)
    assert found.tokens.tolist() == merged.tokens.tolist() == [4, 12, 4]  # 3, 7, 9


@pytest.mark.slow
def test_rows_of_one_document_are_summed_wherever_they_stand():
    rows = [losses(pool().expert("a"), batch) for batch in BATCHES]
    nats = np.concatenate([row[0] for row in rows])
    found = ablation.document_losses(pool(), [{"a": 1}], losses, BATCHES)
    expected = [nats[1], nats[0] + nats[2] + nats[4], nats[3]]
    np.testing.assert_allclose(found.by_document().nats[0], expected, rtol=1e-5)


def test_blocks_of_tokens_do_not_change_a_loss(monkeypatch):
    draw = np.random.default_rng(0)
    document = np.sort(draw.integers(0, 9, 1000)).astype(np.int32)
    log = np.log(draw.random((3, 1000))).astype(np.float32)
    tokens = ablation.TokenLogps(log, np.ones(1000, np.float32), document)
    rows = draw.dirichlet(np.ones(3), 4)
    whole = ensemble.document_losses(tokens, rows)
    monkeypatch.setattr(ensemble, "_BLOCK_NUMBERS", 1)  # the least block: 256 tokens
    np.testing.assert_allclose(
        ensemble.document_losses(tokens, rows).nats, whole.nats, rtol=1e-6
    )
    exact = -np.log(rows @ np.exp(np.float64(log)))
    np.testing.assert_allclose(whole.nats.sum(axis=1), exact.sum(axis=1), rtol=1e-6)


def test_what_an_ensemble_gives_no_weight_neither_underflows_nor_spoils_it():
    logs = np.float32([[-0.1, -0.1], [-200.0, -2.0], [np.nan, -1.0]])
    tokens = ablation.TokenLogps(logs, np.ones(2, np.float32), np.zeros(2, np.int32))
    found = ensemble.document_losses(tokens, [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]])
    assert found.nats[0, 0] == pytest.approx(202)
    second = -math.log(0.5 * math.exp(-0.1) + 0.5 * math.exp(-2))
    assert found.nats[1, 0] == pytest.approx(0.1 + math.log(2) + second)
    assert np.isnan(found.nats[2, 0])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_ensembles_loss_is_convex_in_the_weights(seed):
    draw = np.random.default_rng(seed)
    log = np.log(draw.random((4, 20))).astype(np.float32)
    tokens = ablation.TokenLogps(log, np.ones(20, np.float32), np.zeros(20, np.int32))
    ends = draw.dirichlet(np.full(4, 0.3), 2)
    found = ensemble.document_losses(tokens, [*ends, ends.mean(axis=0)]).loss
    assert found[2] <= found[:2].mean() + 1e-5


def test_predictions_hold_every_proxy_and_every_baseline_on_the_same_documents():
    mixtures = [{"a": 1.0}, {"a": 0.5, "b": 0.5}, {"b": 1, "c": 3}]
    found = ablation.predictions(pool(), mixtures, losses, BATCHES, logps=known())
    assert list(found) == [
        "merged", "ensemble", "mean_of_individual", "best_single", "seed"
    ]  # fmt: skip
    for proxy in found.values():
        chex.assert_shape(proxy.nats, (3, 5))
        assert proxy.document.tolist() == [0, 1, 1, 1, 2]
        assert proxy.by_document().tokens.tolist() == [4, 12, 4]
    own = ablation.document_losses(
        pool(), [{name: 1.0} for name in "abc"], losses, BATCHES
    )
    mean = found["mean_of_individual"].nats
    np.testing.assert_allclose(mean[2], own.nats[1] / 4 + own.nats[2] * 3 / 4)
    best = np.argmin(own.loss[:2])
    np.testing.assert_array_equal(found["best_single"].nats[1], own.nats[best])
    seed = ablation.model_losses([from_seed(5)], losses, BATCHES)
    np.testing.assert_array_equal(found["seed"].nats, np.repeat(seed.nats, 3, axis=0))
    for proxy in ("merged", "ensemble", "mean_of_individual", "best_single"):
        np.testing.assert_allclose(found[proxy].nats[0], own.nats[0], rtol=1e-5)
    # Jensen: the mean of the members' losses is an upper bound of the ensemble's.
    assert (found["ensemble"].nats <= mean + 1e-3).all()


def test_models_as_they_are_have_the_losses_of_their_pool():
    members = (pool().expert(name) for name in "abc")  # one at a time
    found = ablation.model_losses(members, losses, BATCHES)
    alone = [{name: 1.0} for name in "abc"]
    expected = ablation.document_losses(pool(), alone, losses, BATCHES)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    with pytest.raises(errors.UserError, match="no models"):
        ablation.model_losses([], losses, BATCHES)


def test_a_member_without_a_finite_loss_spoils_only_its_own_mixtures():
    def broken(params, batch):
        nats, tokens = losses(params, batch)
        is_b = params["final_norm"]["scale"][0] == 6  # twice the others'
        return jnp.where(is_b, jnp.inf, nats), tokens

    experts = {"a": from_seed(0), "b": jax.tree.map(lambda x: 2 * x, from_seed(1))}
    two = ablation.ModelPool.create(experts)
    mixtures = [{"a": 1.0}, {"a": 1.0, "b": 1.0}]
    found = ablation.predictions(two, mixtures, broken, BATCHES)
    mean = found["mean_of_individual"].nats
    assert np.isfinite(mean[0]).all()
    assert not np.isfinite(mean[1]).any()


def test_an_expert_that_diverged_is_refused_by_name():
    experts = {"good": from_seed(0), "bad": jax.tree.map(jnp.log, from_seed(1))}
    with pytest.raises(errors.UserError, match="bad: parameters that are not finite"):
        ablation.ModelPool.create(experts)


def test_sharded_experts_give_results_that_every_host_can_read():
    mesh = mesh_lib.make_mesh({"fsdp": 4, "data": 2})
    with mesh_lib.use(mesh):
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))
        whole = jax.device_put(pool().stacked, spec)
        rows = np.float32([[0.5, 0.5, 0]])
        batch = {n: BATCHES[0][n] for n in ("tokens", "loss_mask")}
        found = ablation.proxies._evaluate(losses, "map", whole, rows, batch)
        more = ensemble._expert_logps(logps, whole, batch)
    assert all(each.is_fully_replicated for each in (*found, *more))
    expected = ablation.proxies._evaluate(losses, "map", pool().stacked, rows, batch)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_a_cache_is_used_only_for_what_it_was_made_of(tmp_path, caplog):
    path, made = tmp_path / "logps.npz", []

    def compute():
        made.append(1)
        return known()

    key = ablation.cache.digest("members", BATCHES)
    get = functools.partial(ablation.cache.load_or_compute, path, ablation.TokenLogps)
    for _ in range(2):
        chex.assert_trees_all_equal(get(key, compute), known())
    assert len(made) == 1
    get(ablation.cache.digest("others", BATCHES), compute)
    assert len(made) == 2
    assert "other models or other text" in caplog.text
    path.write_bytes(path.read_bytes()[:-90])
    assert ablation.cache.load(path, ablation.TokenLogps, key) is None
    assert "damaged" in caplog.text
    get(key, compute)
    ablation.cache.save(path, ablation.DocumentLosses(np.ones((1, 1)), np.ones(1)), key)
    assert ablation.cache.load(path, ablation.TokenLogps, key) is None  # another kind
    packed = dict.fromkeys(known()._fields, np.zeros(1 << 20))
    np.savez_compressed(path, __fingerprint__=np.array(key), **packed)
    assert ablation.cache.load(path, ablation.TokenLogps, key) is None  # or a bomb
    assert [entry.name for entry in tmp_path.iterdir()] == ["logps.npz"]


def test_a_digest_sees_every_part():
    base = {"tokens": np.arange(4), "mask": np.ones(4)}
    others = [
        base | {"tokens": np.arange(4).reshape(2, 2)},
        base | {"mask": np.ones(4, np.float32)},
        base | {"tokens": np.array([0, 1, 3, 2])},
        {"tokens": base["tokens"]},
    ]
    digests = [ablation.cache.digest(each) for each in (base, *others)]
    digests += [ablation.cache.digest("1"), ablation.cache.digest(1)]
    digests += [ablation.cache.digest("a", "bc"), ablation.cache.digest("ab", "c")]
    assert len(set(digests)) == len(digests)
    with pytest.raises(TypeError, match="no fingerprint of a object"):
        ablation.cache.digest(object())


def test_bad_ensembles_are_refused():
    with pytest.raises(errors.UserError, match="no batches"):
        ablation.expert_logps(pool(), logps, [])
    nothing = [{**BATCHES[1], "loss_mask": jnp.zeros((3, 5))}]
    with pytest.raises(errors.UserError, match="no token that counts"):
        ablation.expert_logps(pool(), logps, nothing)
    with pytest.raises(errors.UserError, match="must be of the same experts"):
        ensemble.document_losses(known(), np.eye(2))
    with pytest.raises(errors.UserError, match="are of other text"):
        ablation.predictions(pool(), [{"a": 1}], losses, BATCHES[:1], logps=known())


def test_weights_by_source_and_by_tokens_have_their_written_out_values():
    params = {"w": np.zeros(1, np.float32)}
    sized = ablation.ModelPool.create(
        dict.fromkeys("abc", params),
        units={"a": 1, "b": 3, "c": 1},
        tokens={"a": 10, "b": 10, "c": 30},
        sources={"a": "papers", "b": "papers"},
    )
    weights = [
        list(sized.mixture("abc", rule).values())
        for rule in ("macro", "micro", "tokens")
    ]
    np.testing.assert_allclose(
        weights, [[1 / 8, 3 / 8, 1 / 2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
    )
    assert sized.mixture("ac") == {"a": 0.5, "c": 0.5}
    for pair in itertools.permutations("ab"):
        assert list(sized.mixture(pair)) == list(pair)
    with pytest.raises(errors.UserError, match="does not know its partitions' tokens"):
        pool().mixture("ab", "tokens")
    with pytest.raises(errors.UserError, match="sources of no expert: x"):
        ablation.ModelPool.create({"a": params}, sources={"x": "papers"})
