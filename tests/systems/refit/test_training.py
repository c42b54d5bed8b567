"""The training of rerankers and bi-encoders, and configs that cannot work."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxlab import load, train
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import BertScorer
from jaxlab.systems.refit import cross_encoder, training
from tests.support import toy_retrieval

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_retrieval.write_set(tmp_path_factory.mktemp("toy") / "set")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return toy_retrieval.write_encoder(tmp_path_factory.mktemp("encoder"))


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
    assert cross_encoder.prior_of(tmp_path) == config.eval.prior == 80
    assert cross_encoder.prior_of(encoder) == 0
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
        ({"data.length": 9999}, "9999 is beyond the model's 512 tokens"),
        ({"data.sets": ()}, "set --config.data.sets to BEIR folders"),
        ({"data.sets": ({"path": "x"},)}, "a set has a folder, and may have"),
    ],
)
def test_configs_that_cannot_work_are_refused(toy, encoder, tmp_path, changes, message):
    config = config_of(toy, encoder, **changes)
    mesh = mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1])
    with pytest.raises(errors.UserError, match=message), mesh_lib.use(mesh):
        training.rerank(config, tmp_path, mesh)
