"""Ranking, searching and reading targets for a few experts that were not trained."""

import itertools
import pathlib
import random

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlab import ablation, models
from jaxlab.commands.ablate import rank as rank_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.batches import loader
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import token_writer
from jaxlab.systems.data_ablation import choices, predictions, ranking, subjects
from tests.support import letters, runs

BATCHES = [runs.batches(10**6), runs.batches(10**6 + 1)]
SINGLES = [{"law": 1.0}, {"code": 1.0}, {"cook": 1.0}]


def silent(what):
    return None


def params(seed):
    decoder = models.Decoder(runs.CONFIG)
    tokens = np.zeros((1, 8), np.int32)
    return nn.unbox(decoder.init(jax.random.key(seed), tokens)["params"])


@pytest.fixture(scope="module")
def subject():
    experts = {name: params(seed) for seed, name in enumerate(("law", "code", "cook"))}
    tokens = {"law": 100, "code": 200, "cook": 300}
    pool = ablation.ModelPool.create(experts, seed=params(7), tokens=tokens)
    return predictions.Subject(
        pool, models.Decoder(runs.CONFIG), letters.Letters(), None
    )


def test_alone_an_expert_is_its_merge_its_ensemble_and_its_mean(subject):
    result = ranking.rank_target(subject, SINGLES, "t", BATCHES, "merged", silent)
    for row in result.rows:
        expected = row["predicted_perplexity"]
        assert row["ensemble_perplexity"] == pytest.approx(expected, rel=1e-4)
        assert row["mean_of_members_perplexity"] == pytest.approx(expected, rel=1e-4)
    best = result.rows[0]
    assert [result.best_single["expert"]] == list(best["mixture"])
    assert result.seed == pytest.approx(64, rel=0.1)  # of 64 ids, untrained


def long_documents(folder, count, length):
    """Held-out batches, two at most, of documents of so many letters."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=length)) for _ in range(count)]
    documents = [documents_lib.Document(str(i), t) for i, t in enumerate(texts)]
    file = token_writer.write_tokens(documents, letters.Letters(), folder / "law")
    batches = loader.eval_batches(file, 16, 8, max_batches=2)
    # The model knows 64 ids.
    return [{**b, "tokens": b["tokens"] % 64} for b in batches]


@pytest.mark.parametrize(
    ("count", "length", "words"),
    [
        (5, 2000, "5 documents and the windows within them"),
        (1, 2000, "16 windows of the only document"),
        (1, 9, "nothing: one window"),
    ],
)
def test_rankings_by_long_documents_have_intervals_or_say_why_not(
    subject, tmp_path, count, length, words, capsys
):
    batches = long_documents(tmp_path, count, length)
    mixtures = subject.pool.mixtures()
    result = ranking.rank_target(subject, mixtures, "t", batches, "ensemble", silent)
    assert {row["resampled"] for row in result.rows} == {words}
    rank_lib._print("t", result, "ensemble", 7)
    shown = capsys.readouterr().out
    if "nothing" in words:
        assert all(row["interval"] == [None, None] for row in result.rows)
        assert shown.count("none: one window") == 14  # interval and P(best) of each
        return
    for row in result.rows:
        low, high = row["interval"]
        assert low < row["predicted_perplexity"] < high
        assert f"{low:,.2f} to {high:,.2f}" in shown
    assert sum(row["best_probability"] for row in result.rows) == pytest.approx(1)
    assert f"resampled for intervals and P(best): {words}" in shown


def test_the_ensemble_ranks_without_a_merge(subject, monkeypatch):
    mixtures = subject.pool.mixtures()

    def fail(*args, **kwargs):
        raise AssertionError("something is merged")

    monkeypatch.setattr(ablation, "document_losses", fail)
    result = ranking.rank_target(subject, mixtures, "t", BATCHES, "ensemble", silent)
    assert len(result.rows) == 7
    for row in result.rows:
        assert row["predicted_perplexity"] == row["ensemble_perplexity"]
    values = [row["predicted_perplexity"] for row in result.rows]
    assert values == sorted(values)


def test_every_search_is_asked_and_the_front_is_not_beaten(subject):
    query = choices.Query({"a": 1.0, "b": 2.0}, ("best single", "convex"), pareto=True)
    evaluation = {"a": BATCHES[:1], "b": BATCHES[1:]}
    result = choices.search(query, subject, evaluation, silent)
    assert list(result.by_method) == ["best single", "convex"]
    assert len(result.by_method["best single"].mixture) == 1
    points = [tuple(row["predicted_perplexity"].values()) for row in result.front]
    assert points == sorted(points)
    for first, second in itertools.pairwise(points):
        assert second[1] < first[1]


def test_a_cap_is_on_the_tokens_of_the_members(subject):
    query = choices.Query({"a": 1.0}, ("enumerate",), cap=250)
    mixture = choices.search(query, subject, {"a": BATCHES}, silent).by_method
    assert set(mixture["enumerate"].mixture) in ({"law"}, {"code"})


def test_a_text_of_one_target_takes_the_name_of_its_domain(subject):
    query = choices.Query({"some/where.txt": 2.0}, ("best single",))
    result = choices.search(query, subject, {"where": BATCHES}, silent)
    assert result.weights == {"where": 2.0}
    with pytest.raises(errors.UserError, match="holds several targets"):
        choices.search(query, subject, {"a": BATCHES, "b": BATCHES}, silent)


def test_text_is_read_as_a_target_by_its_domain(subject, tmp_path):
    source = subjects.Source(subject, {}, length=16, rows=3, batches=2)
    (tmp_path / "sea.txt").write_text("the captain sailed over the cold waves " * 20)
    mesh = mesh_lib.make_mesh({"data": 4}, devices=jax.devices()[:4])
    targets = [str(tmp_path / "sea.txt")]
    [(name, batches)] = subjects.read_targets(source, targets, mesh).items()
    assert pathlib.Path(name).stem == "sea"
    assert len(batches) == 2
    assert batches[0]["tokens"].shape == (4, 16)
    [(_, batches)] = subjects.read_targets(
        source, targets, None, length=8, rows=2, batches=1
    ).items()
    assert [batch["tokens"].shape for batch in batches] == [(2, 8)]


def test_targets_that_do_not_exist_are_named(subject):
    source = subjects.Source(subject, {}, length=16, rows=3, batches=2)
    with pytest.raises(errors.UserError, match="keep no held-out text"):
        subjects.read_targets(source, [], None)
    with pytest.raises(errors.UserError, match="'nowhere' is neither a held-out set"):
        subjects.read_targets(source, ["nowhere"], None)
