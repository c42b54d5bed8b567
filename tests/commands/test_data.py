"""`jaxlab data prepare` and `inspect`."""

import json
import pathlib


def test_prepared_text_is_reported_by_domain(said, text, larger_tokenizer):
    shown = said("data", "prepare", text, larger_tokenizer, "--vocab-size=400")
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["code", "law"]
    assert "tokenizer of 400 tokens, sha256 " in shown
    with_tokenizer = larger_tokenizer.parent / "again"
    argv = ["data", "prepare", text, with_tokenizer, "--held-out", "0"]
    shown = said(*argv, "--tokenizer", larger_tokenizer / "tokenizer")
    assert shown.splitlines()[1].split()[2] == "0"


def test_a_step_names_its_documents_and_its_order(said, text, workdir):
    lines = said("data", "inspect", "--workdir", workdir, "--step", "1").splitlines()
    rows = [line for line in lines if line.startswith("step 1 row ")]
    assert len(rows) == 8
    documents = [line for line in lines if line.startswith("  tokens ")]
    assert all(str(text) in line for line in documents)
    assert lines[-1].startswith("order of epoch 0: sha256 ")
    shown = said("data", "inspect", "--workdir", workdir, "--step", "1", "--text")
    assert shown.splitlines()[1].startswith(documents[0] + ": '")


def test_changed_data_is_noticed(line, text, workdir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    raw = json.loads((pathlib.Path(workdir) / "config.json").read_text())
    raw["data_order"]["files"][0]["sha256"] = "0" * 64
    (run / "config.json").write_text(json.dumps(raw))
    message = line("data", "inspect", "--workdir", run, "--step", "0")
    assert "the data is not what" in message


def test_only_runs_have_steps_to_inspect(line, published):
    message = line("data", "inspect", "--workdir", published, "--step", "0")
    assert "is no run directory; it read no data" in message
