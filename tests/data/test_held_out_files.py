"""NAME.val.jsonl beside NAME.train.jsonl is the domain's held-out text, everywhere."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import domains, split
from jaxlab.data.shards import run
from jaxlab.data.tokenizers import sentence_pieces
from jaxlab.systems import corpora
from jaxlab.systems.olmo import config as olmo_config


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_text(rows)
    return path


@pytest.fixture
def text(tmp_path):
    """Law with a file of held-out text, code without one."""
    folder = tmp_path / "text"
    write(folder / "law.train.jsonl", [f"law {i} says this" for i in range(30)])
    write(folder / "law.val.jsonl", [f"answer {i}" for i in range(4)])
    write(folder / "code.jsonl", [f"code {i} does that" for i in range(30)])
    return folder


@pytest.fixture(scope="module")
def model():
    texts = [f"law {i} says this code does that answer" for i in range(300)]
    return sentence_pieces.train(texts, 290)


def read(file, model):
    """The texts of a token file."""
    spans = [file.span(i) for i in range(len(file.ends))]
    return [model.decode(file.tokens[s.start : s.stop - 1].tolist()) for s in spans]


def prepare(text, model, out="out", **options):
    model.save(text.parent / "tokenizer")
    options = {"held_out_fraction": 0.2, "seed": 0} | options
    tokenizer = str(text.parent / "tokenizer")
    return prepared.prepare(
        str(text), text.parent / out, tokenizer=tokenizer, **options
    )


def tokenize(text, model, out="out", held_out_fraction=0.2, **options):
    out = text.parent / out
    run.tokenize(
        str(text), str(out), model, held_out_fraction=held_out_fraction, **options
    )
    return prepared.open_folder(out)


@pytest.mark.parametrize("make", [prepare, tokenize])
@pytest.mark.parametrize("name", ["val", "Validation"])
def test_a_folder_of_train_and_val_is_split_so(text, model, make, name, caplog):
    for old, new in (("train", "train"), ("val", name)):
        (text / "law").mkdir(exist_ok=True)
        (text / f"law.{old}.jsonl").rename(text / "law" / f"{new}.jsonl")
    found = make(text, model)
    assert read(found.train["law"], model) == [f"law {i} says this" for i in range(30)]
    assert read(found.held_out["law"], model) == [f"answer {i}" for i in range(4)]
    again = make(text, model)
    assert read(again.held_out["law"], model) == [f"answer {i}" for i in range(4)]
    assert not caplog.messages
    write(text / "law" / "test.jsonl", ["a third one"])
    assert domains.held_out_file(text / "law") is None
    (text / "law" / "test.jsonl").unlink()
    write(text / "law.val.jsonl", ["beside"])
    with pytest.raises(errors.UserError, match=r"law/.*jsonl are both held-out text"):
        domains.held_out_file(text / "law")


@pytest.mark.parametrize("make", [prepare, tokenize])
def test_the_file_is_held_out_and_all_beside_it_is_trained_on(text, model, make):
    found = make(text, model)
    assert read(found.train["law"], model) == [f"law {i} says this" for i in range(30)]
    assert read(found.held_out["law"], model) == [f"answer {i}" for i in range(4)]
    code = [found.train["code"], found.held_out["code"]]
    assert sum(len(file.ends) for file in code) == 30
    assert 0 < len(code[1].ends) < 15
    assert found.held_out["law"].span(0).source.endswith("law.val.jsonl:1")


@pytest.mark.parametrize(
    ("domain", "held_out"),
    [
        ("law.train.jsonl", "law.Valid.jsonl"),
        ("law.jsonl", "law.validation.ndjson"),
        ("law/a.txt", "law.dev.txt"),
        ("law.v2.train.jsonl", "law.v2.val.jsonl"),
    ],
)
@pytest.mark.parametrize("make", [prepare, tokenize])
def test_its_name_may_be_any_of_those_that_are_not_trained_on(
    tmp_path, model, domain, held_out, make, caplog
):
    text = tmp_path / "text"
    write(text / domain, ["law says this"])
    write(text / held_out, ["answer"])
    write(text / "law.test.jsonl", ["never"])
    found = make(text, model)
    ((name, file),) = found.held_out.items()
    assert read(file, model)[0].strip().endswith(("answer", '"}'))
    assert name == ("law.v2" if "v2" in domain else "law")
    assert [held_out in message for message in caplog.messages] == [False] * len(
        caplog.messages
    )
    assert any("law.test.jsonl" in message for message in caplog.messages)


@pytest.mark.parametrize("make", [prepare, tokenize])
def test_a_file_alone_has_the_one_beside_it(text, model, make):
    found = make(text / "law.train.jsonl", model, out="../out")
    assert read(found.held_out["law"], model) == [f"answer {i}" for i in range(4)]
    assert domains.held_out_file(text / "law.val.jsonl") is None


@pytest.mark.parametrize("make", [prepare, tokenize])
def test_where_nothing_is_held_out_the_file_is_named_as_unread(
    text, model, make, caplog
):
    found = make(text, model, held_out_fraction=0.0)
    assert not found.held_out
    assert sum("law.val.jsonl is not read" in each for each in caplog.messages) == 1


@pytest.mark.parametrize("make", [prepare, tokenize])
def test_an_answer_that_stands_in_both_is_not_trained_on(text, model, make, caplog):
    with (text / "law.train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "answer 2"}) + "\n")
    found = make(text, model)
    assert not any("answer" in each for each in read(found.train["law"], model))
    assert len(found.train["law"].ends) == 30
    assert len(found.held_out["law"].ends) == 4
    assert any("1 of the documents beside" in each for each in caplog.messages)
    trained_on = prepared.training_texts(text, held_out_fraction=0.2)
    assert not any("answer" in each for each in trained_on)


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("law.val.jsonl", [], r"law.val.jsonl is empty"),
        (
            "law.val.jsonl",
            [" ", "\n"],
            r"held-out text of domain 'law' and holds no te",
        ),
        ("law.val.jsonl", None, r"law.val.jsonl holds all text of domain 'law'"),
        ("law.dev.jsonl", ["x"], r"law.dev.jsonl and law.val.jsonl are both held-out"),
    ],
)
@pytest.mark.parametrize("make", [prepare, tokenize])
def test_a_file_that_cannot_be_held_out_is_one_line(
    text, model, name, texts, message, make
):
    if texts is None:
        (text / name).write_bytes((text / "law.train.jsonl").read_bytes())
    else:
        write(text / name, texts)
    with pytest.raises(errors.UserError, match=message) as raised:
        make(text, model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [prepare, tokenize])
def test_what_was_begun_when_the_file_was_not_read_keeps_its_split(
    text, model, make, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(domains, "held_out_file", lambda path: None)
        before = make(text, model)
    law = read(before.held_out["law"], model)
    assert law
    assert not any("answer" in each for each in law)
    if make is tokenize:
        (text.parent / "out" / "manifest.json").unlink()
        record = next((text.parent / "out").glob("law/*.record.json"))
        record.unlink()
    moved = text.rename(text.with_name("moved"))
    after = make(moved, model)
    assert read(after.held_out["law"], model) == law
    assert len(after.train["law"].ends) == len(before.train["law"].ends)


def test_other_held_out_text_is_other_text(text, model):
    prepare(text, model)
    moved = text.rename(text.with_name("moved"))
    prepare(moved, model)
    write(moved / "law.val.jsonl", ["another answer"])
    again = moved.rename(text)
    prepare(again, model, out="new")
    with pytest.raises(errors.UserError, match="was prepared from other text"):
        prepare(again, model)
    tokenize(again, model, out="shards")
    write(again / "law.val.jsonl", ["answers that are longer than before"])
    with pytest.raises(errors.UserError, match=r"law.val.jsonl changed since its shar"):
        tokenize(again, model, out="shards")
    (again / "law.val.jsonl").unlink()
    with pytest.raises(errors.UserError, match=r"has no law.val.jsonl since"):
        tokenize(again, model, out="shards")


def test_held_out_text_of_the_same_size_is_made_again(text, model):
    tokenize(text, model)
    write(text / "law.val.jsonl", [f"answer {i}" for i in (9, 8, 7, 6)])
    found = tokenize(text, model)
    assert read(found.held_out["law"], model)[0] == "answer 9"


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    st.lists(st.sampled_from("abcdefg"), min_size=1),
    st.lists(st.sampled_from("efgh "), min_size=1),
)
def test_each_text_is_on_one_side(own, held_out):
    def documents(texts):
        return [documents_lib.Document(str(i), t) for i, t in enumerate(texts)]

    if not any(each.strip() for each in held_out) or {*own} <= {*held_out}:
        with pytest.raises(errors.UserError):
            split.file_rule("v", documents(held_out), documents(own))
        return
    rule = split.file_rule("v", documents(held_out), documents(own))
    joined = [*rule.join(documents(own), documents(held_out))]
    sides = [[d.text for d in joined if rule.holds_out(d) is s] for s in (False, True)]
    assert sides[0] == [t for t in own if t not in held_out] + [
        t for t in held_out if not t.strip()
    ]
    assert sides[1] == [t for t in held_out if t.strip()]


def test_a_run_a_pool_and_a_study_open_it_so(text, tmp_path, capsys):
    """`train`, `ablate pool` and `tram domains` read text by `open_corpus`."""
    data = olmo_config.pretraining().data
    data.update({"source": str(text), "vocab_size": 290, "held_out_fraction": 0.1})
    found = corpora.open_corpus(data, tmp_path / "run")
    assert len(found.held_out["law"].ends) == 4
    assert len(found.train["law"].ends) == 30
    argv = ["train", "--config=configs/olmo.py:tiny", "--dry-run", f"--workdir={text}"]
    assert cli.run([*argv, f"--config.data.source={text}"]) == 0
    assert "; held out: law.val.jsonl, " in capsys.readouterr().out


def test_the_commands_count_it(text, capsys):
    out = text.parent / "out"
    cli.run(["data", "prepare", str(text), str(out), "--vocab-size=290"])
    (row,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("law"))
    assert row.split()[1:3] == ["30", "4"]
    shards = text.parent / "shards"
    cli.run(
        ["data", "tokenize", str(text), str(shards), f"--tokenizer={out / 'tokenizer'}",
         "--held-out=0.2"]
    )  # fmt: skip
    (row,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("law"))
    assert row.split()[1:4] == ["1", "30", "4"]
    assert run.verify(str(shards)) == 16  # files of both sides of both
