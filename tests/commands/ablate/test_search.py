"""`jaxlab ablate search`."""

import json
import math

import pytest

from jaxlab import ablation
from jaxlab.ablation import method_names


@pytest.mark.slow
def test_every_method_chooses_and_json_agrees(said, pool, tmp_path):
    out = tmp_path / "found.json"
    shown = said(
        "search", pool, "--target", "law=3", "code", "--pareto", "--json", out
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["targets"] == {"law": 3.0, "code": 1.0}
    assert set(found["found"]) == set(method_names.METHODS)
    for method, row in found["found"].items():
        [printed] = [
            each for each in shown.splitlines() if each.startswith(method + "  ")
        ]
        for target in ("law", "code"):
            assert f"{row['predicted_perplexity'][target]:,.2f}" in printed
        for name, weight in row["mixture"].items():
            assert f"{name} {weight:.0%}" in printed
        logs = {t: math.log(p) for t, p in row["predicted_perplexity"].items()}
        mean = (3 * logs["law"] + logs["code"]) / 4
        assert row["predicted_loss"] == pytest.approx(mean, abs=1e-5)
    convex, subset = (found["found"][m] for m in ("convex", "enumerate ensemble"))
    assert 0 <= convex["gap"] < 1e-4
    assert convex["predicted_loss"] <= subset["predicted_loss"] + convex["gap"]
    front = [row["predicted_perplexity"] for row in found["front"]]
    assert [row["law"] for row in front] == sorted(row["law"] for row in front)
    codes = [row["code"] for row in front]
    assert codes == sorted(codes, reverse=True)
    assert f"{len(front)} mixtures that none beats" in shown


@pytest.mark.slow
def test_limits_are_kept_by_every_method(said, pool, tmp_path):
    out = tmp_path / "found.json"
    units = ablation.pool_folder.read(pool).units
    tokens = {name: unit.partition_tokens for name, unit in units.items()}
    cap = tokens["law"] + tokens["code"]
    argv = ["search", pool, "--target=law", "--must=code", "--forbid=cook"]
    said(*argv, f"--cap={cap}", "--max-size=2", "--json", out)
    found = json.loads(out.read_text())["found"]
    for method, row in found.items():
        assert "cook" not in row["mixture"]
        assert len(row["mixture"]) <= 2
        assert method == "best single" or "code" in row["mixture"]
        spent = sum(tokens[name] for name in row["mixture"])
        assert spent <= cap


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--must=code", "--forbid=code"], "code: both required and forbidden"),
        (["--must=web"], "no expert web; the pool has code, cook, law"),
        (["--cap=3"], "no mixture costs at most 3; the cheapest allowed one costs"),
        (["--cap=3", "--method=convex"], "no weights keep the cap"),
        (["--forbid=code,cook,law"], "every expert is forbidden"),
        (["--method=annealing"], "invalid choice: 'annealing'"),
    ],
)
def test_infeasible_searches_are_one_line(line, pool, flags, message):
    assert message in line("search", pool, "--target=law", *flags)
