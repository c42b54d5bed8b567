"""`jaxlab ablate rank`."""

import functools
import json
import shutil

import pytest

from jaxlab import ablation, cli
from tests.support import pools


@pytest.mark.slow
def test_the_ranking_in_json_is_the_one_that_is_printed(said, pool, tmp_path):
    out = tmp_path / "ranking.json"
    shown = said("rank", pool, "--json", out)
    found = json.loads(out.read_text())
    assert list(found["ranking"]) == ["code", "cook", "law"]
    for target, rows in found["ranking"].items():
        assert len(rows) == 7
        predicted = [row["predicted_perplexity"] for row in rows]
        assert predicted == sorted(predicted)
        printed = pools.table(shown, f"{target}: 7 mixtures, best predicted first")
        for row, cells in zip(rows, printed, strict=True):
            assert cells[0] == "+".join(sorted(row["mixture"]))
            numbers = [row["predicted_perplexity"], row["ensemble_perplexity"]]
            numbers.append(row["mean_of_members_perplexity"])
            texts = [cells[1], cells[-2], cells[-1]]
            assert [t.strip() for t in texts] == [f"{n:,.2f}" for n in numbers]
            if len(row["mixture"]) == 1:
                own = pools.last_perplexity(
                    pool / "runs" / f"expert-{cells[0]}", target
                )
                assert numbers == pytest.approx([own] * 3, rel=1e-5)
        best = found["best_single"][target]
        singles = [row for row in rows if len(row["mixture"]) == 1]
        assert [best["expert"]] == list(singles[0]["mixture"])
        assert f"the seed model: {found['seed_perplexity'][target]:,.2f}" in shown
        own = pools.last_perplexity(pool / "runs" / "seed", target)
        assert found["seed_perplexity"][target] == pytest.approx(own, rel=1e-5)


def test_a_second_ranking_runs_no_model(said, pool, monkeypatch):
    first = said("rank", pool)
    pools.forbid_models(monkeypatch, "expert_logps", "document_losses", "model_losses")
    assert said("rank", pool) == first
    by_ensemble = said("rank", pool, "--proxy=ensemble", "--target", "law")
    assert "by the ensemble" in by_ensemble
    said("search", pool, "--target", "law", "--method=convex")


def test_the_ensemble_merges_nothing(said, copied, monkeypatch):
    shutil.rmtree(copied / "cache", ignore_errors=True)
    pools.forbid_models(monkeypatch, "document_losses")
    rows = pools.table(
        said("rank", copied, "--proxy=ensemble", "--target=law"), "law: 7"
    )
    assert all(row[1].strip() == row[-2].strip() for row in rows)


@pytest.mark.slow
def test_after_an_addition_only_the_new_expert_is_run(said, copied, text, monkeypatch):
    said("rank", copied, "--target=law", "--proxy=ensemble")
    said("pool", copied, "--add", f"sea={text / 'more' / 'sea'}")
    asked, expert_logps = [], ablation.expert_logps

    def recorded(pool, *args, **kwargs):
        asked.append(pool.names)
        return expert_logps(pool, *args, **kwargs)

    monkeypatch.setattr(ablation, "expert_logps", recorded)
    shown = said("rank", copied, "--target=law", "--proxy=ensemble")
    assert "law: 15 mixtures" in shown
    assert asked == [("sea",)]


def test_size_weighting_and_text_targets(said, pool, text, tmp_path):
    out = tmp_path / "out.json"
    target = text / "more" / "sea" / "3.txt"
    argv = ["rank", pool, "--target", target, "--max-size=2", "--json", out]
    shown = said(*argv, "--weighting=tokens", "--top=1")
    rows = json.loads(out.read_text())["ranking"]["3"]
    assert {len(row["mixture"]) for row in rows} == {1, 2}
    assert len(pools.table(shown, "3: 6 mixtures")) == 1
    units = ablation.pool_folder.read(pool).units
    for mixture in (row["mixture"] for row in rows):
        total = sum(units[name].partition_tokens for name in mixture)
        for name, weight in mixture.items():
            share = units[name].partition_tokens / total
            assert weight == pytest.approx(share, rel=1e-6)


@pytest.mark.slow
def test_a_mesh_changes_no_prediction(said, copied):
    def rows():
        shutil.rmtree(copied / "cache", ignore_errors=True)
        return pools.table(said("rank", copied, "--target=law", *mesh), "law: 7")

    mesh = []
    one = rows()
    mesh = ["--mesh=fsdp=4,data=2"]
    for ours, theirs in zip(rows(), one, strict=True):
        assert ours[0] == theirs[0]
        assert float(ours[1]) == pytest.approx(float(theirs[1]), abs=0.02)


@pytest.mark.slow
def test_runs_and_published_folders_are_ranked_without_a_pool(
    said, line, pool, text, tmp_path
):
    published, out = tmp_path / "code", tmp_path / "out.json"
    assert cli.run(["convert", str(pool / "runs/expert-code"), str(published)]) == 0
    experts = ["--experts", f"law={pool / 'runs/expert-law'}", f"code={published}"]
    seed = ["--seed-model", pool / "runs" / "seed"]
    sizes = ["--length=32", "--max-batches=2", "--json", out]
    shown = said("rank", *experts, *seed, "--target", "law", *sizes)
    rows = json.loads(out.read_text())["ranking"]["law"]
    assert {tuple(sorted(r["mixture"])) for r in rows} == {
        ("law",), ("code",), ("code", "law"),
    }  # fmt: skip
    own = next(row for row in rows if list(row["mixture"]) == ["law"])
    expected = pools.last_perplexity(pool / "runs" / "expert-law", "law")
    assert own["predicted_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert "the seed model: " in shown
    target = text / "more" / "sea" / "3.txt"
    assert "3: 3 mixtures" in said("rank", *experts, "--target", target)
    message = line("rank", *experts, "--target", "sonnets")
    assert "target 'sonnets' is neither a held-out set of the experts" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "web"], "is neither a held-out set of the experts (code, cook,"),
        (["--max-size=0"], "--max-size 0; use 1 or more"),
        (["--max-batches=0"], "--max-batches 0; use 1 or more"),
        (["--length=1"], "length 1"),
        (["--length=0"], "--length 0; use 1 or more"),
        (["--length=9999"], "--length 9999 is beyond the model's"),
        (["--mesh=fsdp=3"], "mesh fsdp=3 does not fit 8 devices"),
    ],
)
def test_mistakes_in_a_ranking_are_one_line(line, pool, flags, message):
    assert message in line("rank", pool, *flags)


def test_an_expert_that_was_trained_over_is_named(line, copied):
    shutil.rmtree(copied / "runs" / "expert-law")
    shutil.copytree(copied / "runs" / "seed", copied / "runs" / "expert-law")
    message = line("rank", copied)
    assert "unit law in runs/expert-law has changed since it was recorded" in message


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("unit_steps",), 1e9), (("seed_domains",), "law"), (("base",), []),
        (("base", "data"), None), (("base", "data", "length"), ""),
        (("base", "model", "layers"), float("inf")), (("base", "model", "rope"), 3),
        (("base", "data", "batch_size"), ...), (("unit_rate",), ...),
    ],
)  # fmt: skip
def test_a_recipe_of_somebody_is_refused_in_one_line(copied, line, keys, value):
    content = json.loads((copied / "recipe.json").read_text())
    *above, last = keys
    place = functools.reduce(dict.get, above, content)
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (copied / "recipe.json").write_text(json.dumps(content))
    said = line("rank", copied, "--target", "law")
    assert f"{copied / 'recipe.json'}" in said
    assert last in said
