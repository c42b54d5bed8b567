"""Mixtures: published rules, drawn by seed, and mistakes in one line."""

import collections
import json
import pathlib
import random

import pytest

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data import mixes
from jaxlab.data.examples import chat, conversations
from jaxlab.data.mixes import decontamination, prompt_templates, readers, recipe

RECIPES = sorted((pathlib.Path(__file__).parents[2] / "configs/mixes").glob("*.yaml"))


def write_rows(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}"} for n in range(40)]
    rows[3]["completion"] = "I am chatgpt."
    rows[5] = rows[4]
    rows[7]["prompt"] = "Well: How many apples has Ada, who had seven and ate two? Say."
    write_rows(tmp_path / "says.jsonl", rows)
    flan = [
        {"inputs": f"Q{n}:" if n % 2 else f"Q{n}", "targets": "A"} for n in range(9)
    ]
    write_rows(tmp_path / "flan.jsonl", flan)
    question = "How many apples has Ada, who had seven and ate two?"
    write_rows(tmp_path / "evals.jsonl", [{"question": question, "answer": "five"}])
    write_rows(
        tmp_path / "own.jsonl", [{"prompt": "Who?", "completion": "ChatGPT no."}]
    )
    (tmp_path / "recipe.yaml").write_text(
        """
seed: 1
drop_words: tulu_v2
drop_duplicates: true
decontaminate: {files: [evals.jsonl], fields: [question]}
sources:
  - {name: says, path: says.jsonl}
  - {name: flan, path: flan.jsonl, reader: flan, count: 4}
  - {name: own, path: own.jsonl, repeat: 3, exempt: true}
"""
    )
    return tmp_path


def test_a_mixture_says_what_was_kept_and_why_not(data, capsys):
    out = data / "out"
    assert cli.run(["data", "mix", str(data / "recipe.yaml"), "-o", str(out)]) == 0
    said = json.loads((out / "mix.json").read_text())
    says, flan, own = said["sources"]
    assert says["read"] == says["drawn"] == 40
    assert says["dropped"] == {"words": 1, "duplicates": 1, "evaluation": 1}
    assert (says["kept"], flan["kept"], own["kept"]) == (37, 4, 3)
    assert said["contaminated"] == {"evals.jsonl:1": 1}
    rows = conversations.read(str(out / "mix.jsonl"))
    assert len(rows) == 44
    assert [row.messages[0].content for row in rows[-3:]] == ["Who?"] * 3
    assert "37" in capsys.readouterr().out


def test_the_same_recipe_gives_the_same_bytes_and_other_sources_change_none(data):
    mixes.mix(data / "recipe.yaml", data / "a")
    mixes.mix(data / "recipe.yaml", data / "b")
    a, b = ((data / name / "mix.jsonl").read_bytes() for name in "ab")
    assert a == b
    text = (data / "recipe.yaml").read_text().replace("says.jsonl}", "own.jsonl}")
    (data / "other.yaml").write_text(text)
    mixes.mix(data / "other.yaml", data / "c")
    of_flan = [
        [row for row in (data / name / "mix.jsonl").open() if '"flan"' in row]
        for name in "ac"
    ]
    assert of_flan[0] == of_flan[1] != []


def test_a_mixture_trains_as_its_conversations_do(data):
    mixes.mix(data / "recipe.yaml", data / "out")
    rows = [json.loads(row) for row in (data / "out" / "mix.jsonl").open()]
    assert collections.Counter(row["source"] for row in rows)["says"] == 37
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "0"}
    colon = [r["messages"][0]["content"] for r in rows if r["source"] == "flan"]
    assert all(text.endswith((":", "\n")) for text in colon)


def test_phrasings_are_drawn_by_weight_and_keep_braces():
    draw, count = random.Random(0), collections.Counter()
    for _ in range(4000):
        prompt, answer = prompt_templates.ask("Do {it}.", "", " yes ", draw)
        assert "Do {it}." in prompt
        count[prompt] += 1
        assert answer in ("yes", "\nyes")
        assert (answer == "\nyes") == (prompt == "Do {it}.")
    assert len(count) == 14
    assert count["Do {it}.\n\n"] == pytest.approx(800, abs=100)
    prompts = {prompt_templates.ask("A", "B", "C", draw)[0] for _ in range(2000)}
    assert len(prompts) == 14
    assert all("A" in prompt and "B" in prompt for prompt in prompts)


def test_super_ni_takes_sixty_and_twenty_of_a_task_and_no_mmlu(tmp_path):
    (tmp_path / "tasks").mkdir()
    task = {
        "Definition": ["Add."],
        "Positive Examples": [{"input": f"{n}", "output": f"{n}!"} for n in range(5)],
        "Instances": [
            {"id": f"t-{n}", "input": f"i{n}", "output": [f"o{n}", "x"]}
            for n in range(200)
        ],
    }
    for name in ("task1_add", "task2_mmmlu_answer", "task3_few"):
        few = task | {"Instances": task["Instances"][:7]}
        said = few if "few" in name else task
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(said))
    found = list(readers.read_super_ni(str(tmp_path), {}, random.Random(0)))
    assert len(found) == 80 + 7
    shown = [row for row in found[:80] if "Output:\n" in row.messages[0].content]
    assert len([r for r in shown if r.messages[0].content.count("!") == 2]) == 20
    assert len({row.id for row in found[:80]}) == 80


def test_oasst_gives_all_paths_or_the_best_ones(tmp_path):
    def node(role, text, quality=None, replies=(), deleted=False):
        labels = {} if quality is None else {"quality": {"value": quality, "count": 1}}
        return {"role": role, "text": text, "labels": labels, "deleted": deleted,
                "replies": list(replies)}  # fmt: skip

    ends = node("assistant", "end", 0.5)
    again = node("prompter", "more?", 0.1, [ends])
    answers = [
        node("assistant", "bad", 0.2),
        node("assistant", "good", 0.9, [again, node("prompter", "unanswered", 0.9)]),
        node("assistant", "gone", 1.0, deleted=True),
        node("assistant", "unrated"),
    ]
    write_rows(tmp_path / "t.jsonl", [{"prompt": node("prompter", "hi", 0, answers)}])

    def paths(**options):
        found = readers.read_oasst(str(tmp_path / "t.jsonl"), options, None)
        return [[m.content for m in row.messages] for row in found]

    assert paths() == [["hi", "bad"], ["hi", "good", "more?", "end"], ["hi", "unrated"]]
    assert paths(best=2) == [["hi", "good", "more?", "end"], ["hi", "bad"]]
    assert paths(best=1) == []  # its best answer's best question was not answered


def talk(*sizes, system=0):
    turns = [chat.Message(("user", "assistant")[i % 2], "x" * n) for i, n in
             enumerate(sizes)]  # fmt: skip
    lead = [chat.Message("system", "s" * system)] if system else []
    return conversations.Conversation("c", (*lead, *turns))


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ((4, 4, 4, 4), [(4, 4, 4, 4)]),  # 40 with six per message
        ((4, 4, 4, 4, 4, 4), [(4, 4, 4, 4), (4, 4)]),  # the last pair is kept
        ((4, 4, 90, 4, 4, 4), [(4, 4), (4, 4)]),  # a pair that is too long is not
        ((4, 4, 4, 4, 4), [(4, 4, 4, 4)]),  # nobody answers the last
        ((90, 90), []),
    ],
)
def test_long_conversations_are_cut_between_pairs(sizes, pieces):
    found = list(mixes.split(talk(*sizes), 40, len))
    assert [tuple(len(m.content) for m in row.messages) for row in found] == pieces


def test_a_system_message_stays_with_the_first_piece():
    first, second = mixes.split(talk(4, 4, 4, 4, system=8), 40, len)
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert [m.role for m in second.messages] == ["user", "assistant"]
    assert (first.id, second.id) == ("c_0", "c_2")


def test_a_prompt_that_repeats_half_of_a_question_is_found():
    words = [f"w{n}" for n in range(20)]
    index = decontamination.Index([("q", " ".join(words))], n=8, share=0.5)
    assert index.find("so: " + " ".join(words[:11])) == "q"
    assert index.find(" ".join(words[:10])) is None  # just half
    assert index.find(" ".join(words[::2])) is None
    assert index.find(" ".join([*words[:7], "x", *words[8:15]])) is None
    short = decontamination.Index([("s", "Say hello!")], n=8, share=0.5)
    assert short.find("please say hello") is None
    assert short.find("SAY: hello") == "s"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_are_read(path):
    made = recipe.read(path)
    assert made.seed == 42
    assert {source.split for source in made.sources} - {0} <= {2048, 4096}
    assert len(made.words) == (22 if path.stem == "tulu_v2" else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "it is no mapping"),
        ("sources: []", "sources is empty"),
        ("soruces: [1]", "soruces is unknown; there are seed"),
        ("sources: [1]", r"sources\[0\] is no mapping"),
        ("sources: [{name: a}]", r"sources\[0\].path is missing"),
        ("sources: [{name: a/b, path: x}]", r"name 'a/b'; use letters"),
        ("sources: [{name: a, path: x, count: -1}]", "count -1 is too small"),
        ("sources: [{name: a, path: x, count: yes}]", "count True is of the wrong"),
        ("sources: [{name: a, path: x, reader: nope}]", "reader 'nope'; use one of"),
        ("sources: [{name: a, path: x, split: 9}]", "a is split; set tokenizer"),
        ("sources: [{name: a, path: x}, {name: a, path: y}]", "two sources are called"),
        ("drop_words: nope\nsources: [{name: a, path: x}]", "drop_words 'nope'"),
        ("decontaminate: {n: 8}\nsources: [{name: a, path: x}]", "names no evaluation"),
        ("sources: [{name: a, path: none.jsonl}]", "none.jsonl does not exist"),
        ("a: [", "line 1"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(errors.UserError, match=message) as caught:
        mixes.mix(tmp_path / "r.yaml", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
