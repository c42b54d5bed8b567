"""The demo and the data ablation behind it, on three tiny domains."""

import json
import pathlib
import random
import re
import string

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.models import hf
from jaxlab.stats import correlation
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import demo, experts
from jaxlab.systems.data_ablation import mixtures as mixtures_lib
from jaxlab.systems.data_ablation import study as study_lib

pytestmark = pytest.mark.slow

WORDS = {
    "law": "the licensee shall retain this notice and any person may distribute it",
    "code": "def total ( items ) : return sum ( value for value in items )",
    "cook": "stir the butter into warm flour then add salt and simmer gently",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("domains"), random.Random(0)
    for domain, words in WORDS.items():
        (folder / domain).mkdir()
        for number in range(16):
            lines = [" ".join(draw.choices(words.split(), k=9)) for _ in range(30)]
            (folder / domain / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


def tiny_study(workdir: pathlib.Path, data: str | None = None) -> study_lib.Study:
    study = demo.quick_study(workdir, data)
    base = study.recipe.base
    base.steps, base.eval_batches = 6, 1
    base.model.update({"embed": 32, "layers": 1, "heads": 2, "mlp": 64})
    base.data.update({"vocab_size": 320, "length": 32, "held_out_fraction": 0.25})
    base.optim.warmup_steps = 1
    recipe = branches.Recipe(base, unit_steps=4, unit_rate=5e-3)
    return study_lib.Study(recipe, trained=3)


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """(workdir, outcome) of a finished demo."""
    workdir = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "quick_study", tiny_study_of(demo.quick_study))
        outcome = demo.main(quick=True, data=str(text), workdir=workdir)
    return workdir, outcome


def tiny_study_of(quick_study):
    def study(workdir, data=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "quick_study", quick_study)
            return tiny_study(workdir, data)

    return study


def last_evaluation(run):
    """Target -> perplexity in the last evaluation rows of a run's metrics.jsonl."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        for key, value in json.loads(line).items():
            if key.startswith("eval/") and key.endswith("/perplexity"):
                found[key.split("/")[1]] = value
    return found


def test_every_mixture_is_ranked_for_every_target(done):
    _, outcome = done
    assert list(outcome.units) == ["code", "cook", "law"]
    assert set(outcome.ranking) == set(outcome.units)
    for rows in outcome.ranking.values():
        names = {experts.name_of(row.mixture) for row in rows}
        assert len(names) == len(rows) == 7
        losses = [row.predicted_loss for row in rows]
        assert losses == sorted(losses)


def test_the_report_agrees_with_the_runs(done):
    workdir, outcome = done
    report = json.loads((workdir / "report.json").read_text())
    checked = 0
    for target, rows in report["ranking"].items():
        for row in rows:
            name = "+".join(sorted(row["mixture"]))
            if len(row["mixture"]) == 1:
                # An average of one is the expert: its own evaluation is the number.
                folder = workdir / "runs" / f"expert-{name}"
                own = last_evaluation(folder)[target]
                assert row["predicted_perplexity"] == pytest.approx(own, rel=1e-5)
                assert row["trained_perplexity"] is None
            elif row["trained_perplexity"] is not None:
                folder = workdir / "runs" / f"mixture-{name}"
                own = last_evaluation(folder)[target]
                assert row["trained_perplexity"] == pytest.approx(own, rel=1e-5)
                checked += 1
    assert checked == 3 * 3
    assert report["seed_perplexity"] == outcome.seed
    assert report["seconds"]["total"] > 0
    assert report["versions"]["jax"]


def test_the_correlation_is_that_of_the_mixtures_shown(done):
    workdir, _ = done
    report = json.loads((workdir / "report.json").read_text())
    for target, rows in report["ranking"].items():
        pairs = [
            (row["predicted_perplexity"], row["trained_perplexity"])
            for row in rows
            if row["trained_perplexity"] is not None
        ]
        said = report["correlation"][target]
        assert said["n"] == len(pairs) == 3
        predicted, trained = np.array(pairs).T
        for kind in ("spearman", "pearson"):
            actual = float(getattr(correlation, kind)(predicted, trained))
            assert said[kind] == pytest.approx(actual, abs=1e-6)


def test_the_page_is_whole_and_self_contained(done):
    workdir, _ = done
    page = (workdir / "report.html").read_text()
    images = re.findall(r"(?s)<img .*?>", page)
    assert len(images) >= 3
    assert all('src="data:image/svg+xml;base64,' in image for image in images)
    assert all(re.search(r'alt="[^"]{20,}', image) for image in images)
    assert "http" not in page.replace("https://arxiv.org", "")
    assert page.endswith("</html>")


def test_the_best_mixtures_are_exported(done):
    workdir, _ = done
    config, params = hf.load(workdir / "export" / "seed")
    assert config.norm == "layernorm"
    assert params["embed"]["embedding"].shape == (config.vocab, 32)
    assert len(list((workdir / "export").iterdir())) >= 2


def test_running_again_trains_nothing_and_says_so(done, text, monkeypatch, capsys):
    workdir, outcome = done
    before = {p: p.read_bytes() for p in workdir.glob("runs/*/metrics.jsonl")}
    monkeypatch.setattr(demo, "quick_study", tiny_study_of(demo.quick_study))
    again = demo.main(quick=True, data=str(text), workdir=workdir)
    assert {p: p.read_bytes() for p in workdir.glob("runs/*/metrics.jsonl")} == before
    assert repr(again.ranking) == repr(outcome.ranking)  # NaN is no NaN's equal
    assert "finished parts are kept" in capsys.readouterr().out


def test_another_study_in_the_same_folder_is_refused(done, text):
    workdir, _ = done
    with pytest.raises(errors.UserError, match="other settings"):
        demo.main(quick=True, data=str(text), workdir=workdir)


def test_one_domain_is_refused(text, tmp_path):
    (tmp_path / "text" / "only").mkdir(parents=True)
    for file in (text / "law").iterdir():
        (tmp_path / "text" / "only" / file.name).write_bytes(file.read_bytes())
    study = tiny_study(tmp_path / "run", str(tmp_path / "text"))
    with pytest.raises(errors.UserError, match="two subfolders"):
        study_lib.run(study, tmp_path / "run")


def test_an_empty_domain_is_named(text, tmp_path):
    for domain in WORDS:
        (tmp_path / domain).symlink_to(text / domain)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match="empty"):
        demo.main(quick=True, data=str(tmp_path), workdir=tmp_path / "run")


def test_many_domains_are_ranked_up_to_the_size_that_can_be_had():
    pool = study_lib.ablation.ModelPool.create(
        {
            letter: {"w": np.ones(1, np.float32)}
            for letter in string.ascii_lowercase[:20]
        }
    )
    sizes = {len(mixture) for mixture in mixtures_lib.affordable(pool)}
    assert sizes == {1, 2}  # 20 + 190 of them; 1,140 of three are too many


def test_chosen_mixtures_take_turns_by_size_and_repeat_none():
    chosen = mixtures_lib.choose("abcde", 10, seed=3)
    names = [experts.name_of(mixture) for mixture in chosen]
    assert len(set(names)) == 10
    assert {len(mixture) for mixture in chosen} == {2, 3, 4, 5}
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in chosen)
