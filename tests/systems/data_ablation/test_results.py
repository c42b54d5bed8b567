"""What a data ablation found, from written-out losses; and the page that says it."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxlab import ablation
from jaxlab.reports import page as page_lib
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import experts, finding, report, results
from jaxlab.systems.data_ablation import mixtures as mixtures_lib
from jaxlab.systems.data_ablation import study as study_lib
from jaxlab.systems.olmo import config as olmo_config

UNITS = ("law.1", "law.2", "code", "cook", "news")
TARGETS = ("law", "code", "elsewhere")
TOKENS = np.array([10.0, 20.0, 30.0])


def losses(rows):
    """Losses a token of K models, the same on every document but for a wobble."""
    wobble = np.array([0.9, 1.0, 1.1 - 1 / 30])  # keeps the weighted mean
    wobble = wobble / (wobble @ TOKENS / TOKENS.sum())
    return ablation.DocumentLosses(np.outer(rows, wobble * TOKENS), TOKENS)


@pytest.fixture
def outcome(tmp_path):
    """Ten pairs, predicted exactly by the ensemble and in reverse by merging."""
    base = olmo_config.pretraining()
    base.data.update({"length": 8, "batch_size": 2})
    study = study_lib.Study(
        branches.Recipe(base, unit_steps=5, unit_rate=0.1),
        trained=10,
        budget="member",
        searched=("law",),
        search_size=2,
    )
    pairs = [dict.fromkeys(pair, 0.5) for pair in itertools.combinations(UNITS, 2)]
    singles = [{unit: 1.0} for unit in UNITS]
    models = []
    for mixture, why in [
        *((single, "expert") for single in singles),
        *((pair, "checked") for pair in pairs),
        *((pair, "repeated") for pair in pairs[:2]),
    ]:
        folder = tmp_path / "runs" / f"{why}-{experts.name_of(mixture)}"
        folder.mkdir(parents=True)
        rows = [{"step": step, "loss": 3.0, "seconds": 0.5} for step in (1, 2)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text)
        units = len(mixture)
        models.append(study_lib.Trained(mixture, folder, units, why))
    (tmp_path / "runs" / "seed").mkdir()
    (tmp_path / "runs" / "seed" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 4.0, "seconds": 1.0}\n'
    )
    truth = 2.0 + 0.1 * np.arange(10)
    trained = np.concatenate([np.full(5, 3.5), truth, truth[:2] + 0.02])
    predicted = {
        "merged": losses([*np.full(5, 3.0), *(5.0 - truth)]),
        "ensemble": losses([*np.full(5, 3.0), *(truth + 1)]),
        "mean_of_individual": losses(np.linspace(3, 4, 15)),
        "seed": losses(np.full(15, 4.0)),
    }
    found = ablation.Found(pairs[3], 2.7, {"law": 2.7}, 15, (2.7,))
    return study_lib.Outcome(
        study=study,
        units={unit: unit.split(".")[0] for unit in UNITS},
        seed=dict.fromkeys(TARGETS, 55.0),
        mixtures=[*singles, *pairs],
        predicted=dict.fromkeys(TARGETS, predicted),
        models=models,
        actual=dict.fromkeys(TARGETS, losses(trained)),
        found={"law": {"enumerate": found}},
        seconds={"merged mixtures": 7.0, "predictions of experts": 1.0},
    )


def test_correlations_are_of_the_checked_mixtures_alone(outcome):
    found = results.correlations(outcome)["code"]
    assert found["n"] == 10
    assert found["spearman"] == pytest.approx(-1)
    assert found["ensemble_spearman"] == pytest.approx(1)


def test_agreement_tells_in_from_out_of_domain(outcome):
    found = results.agreement(outcome, "ensemble")
    rows = {(row.domain, row.size): row for row in found["units"]}
    assert rows["all", None].pairs == 20  # of two targets
    # law: every pair but code+cook, code+news, cook+news; code: four pairs of ten
    assert rows["in", None].pairs == 7 + 4
    assert rows["out", None].pairs == 6  # law has three outside it, too few
    assert rows["all", 2].kendall.value == pytest.approx(1)
    assert {row.domain for row in found["others"]} == {"all"}


def test_regret_is_above_the_best_model_of_that_budget(outcome):
    # An expert of one unit is better than every pair of two, and no rival of theirs.
    nats = outcome.actual["law"].nats
    nats[0] = nats[5] / 2
    (choice,) = results.choices(outcome)
    assert choice.mixture == outcome.mixtures[5 + 3]
    assert choice.trained == pytest.approx(2.3)
    assert choice.regret == pytest.approx(0.3)


def test_names_of_choices_in_whole_percents_are_of_one_mixture_each():
    shares = np.random.default_rng(0).dirichlet([0.5, 0.5, 2.0], 500)
    whole = [
        mixtures_lib.whole_percents(dict(zip("abc", row, strict=True)))
        for row in shares
    ]
    names = {experts.name_of(mixture) for mixture in whole}
    assert len(names) == len({tuple(sorted(mixture.items())) for mixture in whole})
    for mixture, row in zip(whole, shares, strict=True):
        assert sum(mixture.values()) == pytest.approx(1)
        assert np.allclose([mixture.get(name, 0) for name in "abc"], row, atol=0.01)


def test_noise_is_between_repeats_and_between_mixtures(outcome):
    within, between = results.noise(outcome)["law"]
    assert within == pytest.approx(np.std([0, 0.02], ddof=1))
    assert between == pytest.approx(np.std([2.01, 2.11], ddof=1))


def test_costs_count_units_and_the_seconds_of_experts(outcome):
    every, merged, ensemble = results.costs(outcome)
    assert (every.units, merged.units, ensemble.units) == (5 + 20, 5, 5)
    assert merged.train_seconds == pytest.approx(5 * 2 * 0.5)
    assert every.train_seconds == pytest.approx(25 * 1.0)
    assert (merged.score_seconds, ensemble.score_seconds) == (7.0, 1.0)


def test_the_worst_misses_are_reversed_ranks(outcome):
    target, _, predicted, trained, count = results.misses(outcome, "merged")[0]
    assert target in TARGETS
    assert {predicted, trained} == {1, count} == {1, 10}
    assert all(row[2] == row[3] for row in results.misses(outcome, "ensemble"))


def test_the_page_has_every_section_and_only_finite_json(outcome, tmp_path):
    report.write(tmp_path, outcome, {"total": 1.0}, samples=[("The ", "<b>cat</b>")])
    page = (tmp_path / "report.html").read_text()
    numbers = json.loads((tmp_path / "report.json").read_text())
    json.dumps(numbers, allow_nan=False)
    for title in (
        "Did merging predict training?", "At fixed size, in and out of domain",
        "What each search chose", "Where merging failed most", "How noisy training is",
        "Ranking by target", "What it cost", "Training loss",
    ):  # fmt: skip
        assert title in page
    assert "text of the units, target&#39;s domain not in it" in page
    assert "<b>The </b>&lt;b&gt;cat&lt;/b&gt;" in page


def test_the_page_shows_the_numbers_of_report_json(outcome, tmp_path):
    report.write(tmp_path, outcome, {"total": 1.0})
    page = (tmp_path / "report.html").read_text()
    numbers = json.loads((tmp_path / "report.json").read_text())
    for target, row in numbers["correlation"].items():
        cells = ["10", f"{row['spearman']:.2f}", f"{row['pearson']:.2f}"]
        assert as_row(target, *cells) in page
    (choice,) = numbers["choices"]
    assert f"<td>{choice['regret']:.4f}</td></tr>" in page
    best = numbers["ranking"]["law"][0]
    name = experts.name_of(best["mixture"])
    assert as_row(f"1. {name}", f"{best['predicted_perplexity']:.2f}") in page


def as_row(first, *others):
    cells = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr><th scope="row">{first}</th>{cells}'


def test_the_page_opens_with_what_was_found_and_its_catch(outcome, tmp_path):
    report.write(tmp_path, outcome, {"total": 1.0})
    page = (tmp_path / "report.html").read_text()
    first = page.split("</h1>")[1].split("</p>")[0]
    best = json.loads((tmp_path / "report.json").read_text())["ranking"]["law"][0]
    assert f"{experts.name_of(best['mixture'])} for law (perplexity" in first
    assert "10 mixtures were trained to check it" in first
    assert "-1.00" in first  # merging predicts them in reverse
    assert "merging has shown nothing here" in first
    unchecked = dataclasses.replace(outcome, models=outcome.models[:5])
    assert "a prediction alone" in finding.finding(unchecked, {})


def test_a_domain_may_be_called_like_a_formula(outcome, tmp_path):
    name = r"$\notacommand{$"
    for by_target in (outcome.predicted, outcome.actual, outcome.seed):
        by_target[name] = by_target["law"]
    report.write(tmp_path, outcome, {"total": 1.0})
    assert page_lib.image(report._heatmap(outcome))
