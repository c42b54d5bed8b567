"""Run directories: what they hold, which kind each is, and those of older commits."""

import json
import pathlib
import subprocess
import sys

import pytest

from jaxlab import cli
from jaxlab.core import errors, runs

# config.json as commit 865b6a5 wrote it, one of each system and of each merge.
OLD = pathlib.Path(__file__).parents[1] / "values" / "old_runs"
KINDS = {
    "olmo.pretrain": "decoder",
    "tulu.sft": "decoder",
    "tulu.dpo": "decoder",
    "languages.classify": "classifier",
    "encoders.rerank": "scorer",
    "encoders.embed": "encoder",
    "merge": "decoder",
}


def saved(folder, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def old(system):
    return json.loads((OLD / f"{system}.json").read_text())


# ------------------------------------------------------------------ which kind


@pytest.mark.parametrize("system", KINDS)
def test_runs_of_every_system_are_read_as_865b6a5_wrote_them(system, tmp_path):
    run = runs.read(saved(tmp_path / "run", old(system)))
    assert (run.system, run.kind) == (system, KINDS[system])
    assert run.config["system"] == system
    assert run.is_trained == (system != runs.MERGE)


@pytest.mark.parametrize("system", KINDS)
def test_runs_without_a_system_are_recognised(system, tmp_path):
    config = {name: value for name, value in old(system).items() if name != "system"}
    run = runs.read(saved(tmp_path / "run", config))
    assert (run.system, run.kind) == (system, KINDS[system])


def test_an_old_merge_of_folders_is_a_merge_and_its_false_record_is_forgotten(tmp_path):
    config = old("merge")
    assert "system" not in config
    assert config["data"]["files"] == ["not kept"]
    run = runs.read(saved(tmp_path / "run", config))
    assert run.data is None
    assert "data" not in run.config
    assert run.tokenizer() == pathlib.Path(config["data"]["tokenizer"])
    (run.folder / "tokenizer").mkdir()  # the folder was moved with what is in it
    assert run.tokenizer() == run.folder / "tokenizer"


def test_an_experiment_of_somebodys_own_is_a_run_once_it_has_saved(tmp_path):
    folder = saved(tmp_path / "run", {"optim": {"learning_rate": 0.1}})
    with pytest.raises(errors.UserError, match="neither a run directory nor a Hugging"):
        runs.find(folder)
    (folder / "checkpoints").mkdir()
    assert runs.read(folder).system == runs.FIT


def test_a_hugging_face_folder_is_not_a_run(tmp_path):
    folder = saved(tmp_path / "hf", {"model_type": "olmo2"})
    assert runs.find(folder) is None
    with pytest.raises(errors.UserError, match="is a Hugging Face folder, not a run"):
        runs.read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no config.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "neither system nor model_type"),
    ],
)
def test_what_is_neither_is_one_line(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(errors.UserError, match=message):
        runs.find(tmp_path)
    with pytest.raises(errors.UserError, match="does not exist"):
        runs.find(tmp_path / "nowhere")


def test_looking_at_a_run_imports_no_jax():
    script = "import sys; from jaxlab.core import runs; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# ------------------------------------------------------------------ where things are


@pytest.mark.parametrize(
    ("system", "changes", "tokenizer", "data"),
    [
        ("olmo.pretrain", {}, "run/data/tokenizer", "run/data"),
        ("olmo.pretrain", {"folder": "/d"}, "/d/tokenizer", "/d"),
        ("olmo.pretrain", {"files": ["a.npy"], "tokenizer": "/t"}, "/t", None),
        ("tulu.sft", {}, "run/data/tokenizer", None),
        ("tulu.sft", {"folder": "/d"}, "/d/tokenizer", None),  # of an old merge
        ("encoders.rerank", {}, "run/tokenizer", None),
        ("encoders.embed", {}, "run/tokenizer", None),
    ],
)
def test_tokenizer_and_text_are_where_the_system_puts_them(
    system, changes, tokenizer, data, tmp_path
):
    config = old(system)
    run = runs.read(
        saved(tmp_path / "run", {**config, "data": {**config["data"], **changes}})
    )
    assert run.tokenizer() == tmp_path / tokenizer
    assert run.data == (None if data is None else tmp_path / data)
    assert run.checkpoints == runs.checkpoints(tmp_path / "run")
    assert run.checkpoints == tmp_path / "run" / "checkpoints"


def test_a_merge_says_truly_where_tokenizer_and_text_are(tmp_path):
    source = saved(tmp_path / "source", old("olmo.pretrain"))
    (source / "data" / "tokenizer").mkdir(parents=True)
    merged = runs.merged_config(source)
    assert merged["system"] == "olmo.pretrain"
    run = runs.read(saved(tmp_path / "elsewhere" / "merged", merged))
    assert run.tokenizer() == source / "data" / "tokenizer"
    assert run.data == source / "data"

    source = saved(tmp_path / "reranker", old("encoders.rerank"))
    (source / "tokenizer").mkdir()
    merged = runs.merged_config(source)
    run = runs.read(saved(tmp_path / "other", merged))
    assert run.kind == "scorer"
    assert run.tokenizer() == source / "tokenizer"
    assert "folder" not in run.config["data"]  # it keeps none, and claims none


def test_a_tokenizer_beside_the_run_moves_with_it(tmp_path):
    config = {"system": runs.MERGE, "model": {}, "tokenizer": "tokenizer"}
    saved(tmp_path / "a", config).rename(tmp_path / "b")
    assert runs.read(tmp_path / "b").tokenizer() == tmp_path / "b" / "tokenizer"


# ------------------------------------------------------------------ config.json


def test_a_config_that_is_written_always_says_its_system(tmp_path):
    runs.write_config(tmp_path, {"system": "tulu.sft", "steps": 3})
    assert json.loads((tmp_path / "config.json").read_text())["system"] == "tulu.sft"
    runs.write_config(tmp_path, {"steps": 3})
    assert json.loads((tmp_path / "config.json").read_text())["system"] == runs.FIT


def test_an_old_run_without_a_system_goes_on_with_one(tmp_path):
    config = old("tulu.sft")
    without = {name: value for name, value in config.items() if name != "system"}
    saved(tmp_path / "run", without)
    runs.check_config(tmp_path / "run", config)
    with pytest.raises(errors.UserError, match=r"system: 'tulu\.sft' -> 'tulu\.dpo'"):
        runs.check_config(tmp_path / "run", {**config, "system": "tulu.dpo"})


def test_a_run_whose_start_was_moved_goes_on(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    after.mkdir()
    saved(tmp_path / "run", {"steps": 3, "init_from": str(before)})
    runs.check_config(tmp_path / "run", {"steps": 3, "init_from": str(after)})
    before.mkdir()  # a copy, or another start: not to be told apart
    with pytest.raises(errors.UserError, match=r"init_from: .*before' -> .*after"):
        runs.check_config(tmp_path / "run", {"steps": 3, "init_from": str(after)})
    with pytest.raises(errors.UserError, match=r"init_from: .*before' -> .*gone"):
        runs.check_config(tmp_path / "run", {"steps": 3, "init_from": "gone"})


def test_an_old_run_of_somebodys_own_goes_on(tmp_path):
    saved(tmp_path / "run", {"steps": 3})
    runs.check_config(tmp_path / "run", {"steps": 3})
    with pytest.raises(errors.UserError, match="steps: 3 -> 4"):
        runs.check_config(tmp_path / "run", {"steps": 4})


def test_a_folder_of_somebody_else_is_no_run_directory_to_be(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(errors.UserError, match="would be lost"):
        runs.refuse_other_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"system": "olmo.pretrain"}))
    runs.refuse_other_folder(tmp_path)  # of a run that was killed before it saved
    runs.refuse_other_folder(tmp_path / "new")


def test_what_follows_from_settings_is_not_told_beside_them(tmp_path):
    saved(tmp_path / "run", {"steps": 3, "data_order": {"files": ["x" * 999]}})
    with pytest.raises(errors.UserError) as caught:
        runs.check_config(tmp_path / "run", {"steps": 4, "data_order": {}})
    assert "steps: 3 -> 4. Use" in str(caught.value)
    assert "data_order" not in str(caught.value)
    with pytest.raises(errors.UserError, match=r"data_order.files: .*x \.\.\. -> None"):
        runs.check_config(tmp_path / "run", {"steps": 3, "data_order": {}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"system": 3}, "'system' is not a name"),
        ({"system": "olmo.pretrain", "data": None}, "'data' is not a section"),
        ({"system": "olmo.pretrain", "data": {}}, "it has no data.folder"),
        ({"system": "olmo.pretrain"}, "it has no data.folder"),
    ],
)
def test_a_config_that_lost_a_section_is_one_line(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    fix = "config.json is damaged: .*; restore it from a copy"
    with pytest.raises(errors.UserError, match=fix) as caught:
        _ = runs.read(tmp_path).data
    assert message in str(caught.value)


# ------------------------------------------------------------------ metrics.jsonl


def test_rows_are_read_without_a_last_one_that_a_kill_cut(tmp_path):
    assert runs.rows(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert runs.rows(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_copied_run_has_one_checkpoint_its_rows_and_the_config_given(tmp_path):
    source = saved(tmp_path / "source", old("olmo.pretrain"))
    for step in (1, 2):
        (source / "checkpoints" / str(step)).mkdir(parents=True)
        (source / "checkpoints" / str(step) / "leaf").write_text("x")
    (source / "metrics.jsonl").write_text('{"step": 1}\n')
    runs.copy(source, tmp_path / "copy", 2, {"system": "olmo.pretrain"})
    assert [x.name for x in (tmp_path / "copy" / "checkpoints").iterdir()] == ["2"]
    assert runs.rows(tmp_path / "copy") == [{"step": 1}]
    assert runs.read(tmp_path / "copy").config == {"system": "olmo.pretrain"}


# ------------------------------------------------------------------ the border


@pytest.mark.parametrize("system", ["languages.classify", "encoders.rerank"])
def test_a_run_of_another_kind_is_named_where_a_language_model_is_needed(
    system, tmp_path, capsys
):
    folder = saved(tmp_path / "run", old(system))
    assert cli.run(["evaluate", str(folder)]) == 2
    message = capsys.readouterr().err
    assert f"is a run of {system}; this needs a language model" in message
