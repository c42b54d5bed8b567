"""`jaxlab evaluate`: runs, published folders and text alike."""

import json

import numpy as np
import pytest

from jaxlab import cli, load


def test_a_run_is_evaluated_on_its_own_held_out_sets(said, workdir, tmp_path):
    out = tmp_path / "numbers.json"
    header, *rows = said("evaluate", workdir, "--json", out).splitlines()
    assert header.split() == ["domain", "loss", "perplexity", "bits/byte", "tokens"]
    domains = json.loads(out.read_text())["domains"]
    assert [row.split()[0] for row in rows] == list(domains) == ["code", "law"]
    for row, values in zip(rows, domains.values(), strict=True):
        assert float(row.split()[1]) == pytest.approx(values["loss"], abs=1e-4)
        assert values["perplexity"] == pytest.approx(np.exp(values["loss"]))
        assert values["bits_per_byte"] > 0


def test_json_alone_goes_to_stdout_where_it_is_asked_for(workdir, capsys):
    case = ["evaluate", str(workdir), "--max-batches=1", "--json", "-"]
    assert cli.run(case) == 0
    said = capsys.readouterr()
    assert {*json.loads(said.out)["domains"]} == {"code", "law"}
    assert json.loads(said.out)["step"] == 4
    assert f"{workdir}, step 4" in said.err
    assert "bits/byte" in said.err
    assert cli.run([*case, "--step", "3"]) == 2
    assert capsys.readouterr().out == ""


def test_a_run_and_its_hugging_face_folder_score_alike(said, text, workdir, published):
    own = said("evaluate", workdir, "--max-batches", "2")
    prepared = f"{text}.prepared"
    assert said("evaluate", published, "--data", prepared, "--max-batches=2") == own


def test_text_is_encoded_and_evaluated_whole(said, text, published):
    table = said("evaluate", published, "--data", text / "law" / "3.txt")
    tokenizer = load.decoder(published).tokenizer
    tokens = len(tokenizer.encode((text / "law" / "3.txt").read_text())) + 1
    assert table.splitlines()[1].split()[-1] == str(tokens)


def test_a_mesh_changes_no_number(said, workdir):
    one = said("evaluate", workdir, "--max-batches", "1")
    assert said("evaluate", workdir, "--max-batches=1", "--mesh=fsdp=4,data=2") == one


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "jaxlab evaluate: data nowhere does not exist"),
        (["--step", "3"], "has no checkpoint of step 3; it has steps 4"),
        (["--mesh", "fsdp=3"], "mesh fsdp=3 does not fit 8 devices"),
        (["--length", "1"], "length 1"),
        (["--length", "0"], "--length 0; use 1 or more"),
        (["--max-batches", "0"], "--max-batches 0; use 1 or more"),
        (["--json", "/"], "--json / is a folder; name a file"),
        (
            ["--length", "100000"],
            "beyond the model's 64 tokens; use at most --length 6",
        ),
    ],
)
def test_mistakes_in_evaluation_are_one_line(line, workdir, flags, message):
    assert message in line("evaluate", workdir, *flags)


def test_a_folder_that_holds_no_model_is_one_line(line, tmp_path):
    assert "model nowhere does not exist" in line("evaluate", "nowhere")
    assert "has no config.json" in line("evaluate", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "is neither a run directory nor a Hugg" in line("evaluate", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in line("evaluate", tmp_path)


def test_a_published_model_has_no_held_out_text(line, published):
    assert "has no held-out text; give --data" in line("evaluate", published)


def test_a_tokenizer_larger_than_the_model_is_one_line(
    line, published, larger_tokenizer
):
    message = line("evaluate", published, "--tokenizer", larger_tokenizer / "tokenizer")
    assert "the tokenizer has 400 ids, the model's vocabulary 384" in message


def test_another_tokenizer_than_the_runs_is_one_line(line, workdir, larger_tokenizer):
    message = line("evaluate", workdir, "--tokenizer", larger_tokenizer / "tokenizer")
    assert "was trained with" in message


def test_token_files_of_another_tokenizer_are_one_line(line, workdir, larger_tokenizer):
    message = line("evaluate", workdir, "--data", larger_tokenizer)
    assert "was encoded with another tokenizer than the model's" in message
