"""Right and wrong answers in RewardBench's files, and a judge's verdicts on them."""

import json

import pytest

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data.examples import comparisons
from jaxlab.evals import rewards

PUBLISHED = {
    "chosen_model": "a", "rejected_model": "b", "prompt": "Why?", "id": 3,
    "chosen": "So.", "rejected": "No.", "subset": "donotanswer",
}  # fmt: skip
SECOND = {
    "id": "tied:1", "prompt": "Which?", "chosen": ["x", "y"], "rejected": ["z"],
    "num_correct": 2, "num_incorrect": 1, "total_completions": 3, "models": ["m"] * 3,
    "subset": "Ties", "additional_metadata": {"category": None},
}  # fmt: skip


def write(file, *rows):
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(file)


def test_both_published_forms_are_read(tmp_path):
    one, two = comparisons.read(write(tmp_path / "a.jsonl", PUBLISHED, SECOND))
    assert (one.id, one.subset, one.num_correct) == ("3", "donotanswer", 1)
    assert [x[-1].content for x in one.answers] == ["So.", "No."]
    assert (two.id, two.subset, two.num_correct) == ("tied:1", "Ties", 2)
    assert [x[-1].content for x in two.answers] == ["x", "y", "z"]
    assert {x[0].content for x in two.answers} == {"Which?"}
    with pytest.raises(errors.UserError, match="a right and a wrong answer"):
        comparisons.read(write(tmp_path / "b.jsonl", {**SECOND, "rejected": []}))
    with pytest.raises(errors.UserError, match=r"b.jsonl:1 has .*expected"):
        comparisons.read(write(tmp_path / "b.jsonl", {"prompt": "a"}))


def test_a_judges_verdicts_are_evaluated_like_rewards(tmp_path, capsys):
    names = [name for section in rewards.SECTIONS.values() for name in section]
    rows = [
        {**PUBLISHED, "id": f"{name}-{i}", "subset": name}
        for name in names
        for i in range(2)
    ]
    ref = {**SECOND, "id": "ref:1", "chosen": ["x"], "rejected": ["z", "w"]}
    source = write(tmp_path / "pairs.jsonl", *rows, SECOND, ref)
    said = [
        {"id": row["id"], "verdict": "tie" if row["id"].endswith("go-1") else "chosen"}
        for row in rows
    ]
    said += [
        {"id": "tied:1", "scores": [2, 1, 0]},
        {"id": "ref:1", "scores": [1, 0, 0]},
    ]
    verdicts, out = write(tmp_path / "said.jsonl", *said), tmp_path / "out.json"
    asked = ["evaluate", verdicts, f"--rewards={source}", f"--json={out}"]
    assert cli.run(asked) == 0, capsys.readouterr().err
    found = json.loads(out.read_text())
    assert found["subsets"]["hep-go"]["value"] == 0.5
    assert found["subsets"]["overall"]["count"] == 46
    reasoning = 1 - 0.5 * 164 / (984 + 6 * 164)
    assert found["rewardbench"]["Reasoning"] == pytest.approx(reasoning)
    assert found["ties"]["accuracy_tied"] == 1
    assert "rewardbench" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 4, "verdict": "tie"}], "said.jsonl:1 has no id of one of the pairs"),
        ([{"id": 3, "verdict": "so"}], "the verdict is 'so' on 2 answers; write"),
        ([{"id": 3, "scores": [1]}], "scores is not a list of 2 numbers"),
        ([{"id": 3, "verdict": "tie"}] * 2, "3 has two verdicts; leave out one"),
        ([{"id": 5, "verdict": "tie"}], "has no verdict on 1 of 2 rows, e.g. 3; add"),
    ],
)
def test_verdicts_that_do_not_fit_are_refused_with_their_row(rows, message, tmp_path):
    more = [{**PUBLISHED, "id": 5}] if rows[0]["id"] == 5 else []
    compared = comparisons.read(write(tmp_path / "a.jsonl", PUBLISHED, *more))
    with pytest.raises(errors.UserError, match=message):
        comparisons.read_verdicts(write(tmp_path / "said.jsonl", *rows), compared)
