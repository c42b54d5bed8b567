"""The command line, run in this process on one tiny real run."""

import json
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlab import cli, load, merge, models
from jaxlab.core import checkpoint

VERBS = ("train", "evaluate", "generate", "merge", "ablate", "convert", "data", "demo")
LAW = (
    ("The court", "A witness", "The licensee", "The author", "Any person", "The clerk"),
    ("shall retain", "may distribute", "must deliver", "has reviewed", "will publish"),
    ("this notice", "a copy of the agreement", "the original source", "the record"),
)
NAMES, OPERATORS = ("total", "count", "items", "result", "value"), "+-*/"


def sentence(draw):
    return " ".join(draw.choice(part) for part in LAW) + "."


def statement(draw):
    left, right = draw.choice(NAMES), draw.choice(NAMES)
    return f"    {left} = {right} {draw.choice(OPERATORS)} {draw.randint(0, 99)}"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Two domains of 20 short files."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for domain, line in (("law", sentence), ("code", statement)):
        (folder / domain).mkdir()
        for number in range(20):
            lines = [line(draw) for _ in range(25)]
            (folder / domain / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


def train(text, workdir, *overrides):
    sizes = (
        "steps=4", "eval_batches=1", "data.vocab_size=320", "data.length=32",
        "data.batch_size=8", "data.held_out_fraction=0.2", "optim.warmup_steps=1",
        "model.embed=32", "model.layers=1", "model.heads=2", "model.mlp=64",
        "model.length=64",
    )  # fmt: skip
    return cli.run(
        [
            "train", "--config=configs/olmo.py:tiny", f"--workdir={workdir}",
            f"--config.data.source={text}", f"--config.data.folder={text}.prepared",
            *(f"--config.{size}" for size in sizes), *overrides,
        ]
    )  # fmt: skip


@pytest.fixture(scope="session")
def workdir(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "seed"
    assert train(text, path) == 0
    return str(path)


@pytest.fixture(scope="session")
def published(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "seed"
    assert cli.run(["convert", workdir, str(path)]) == 0
    return str(path)


@pytest.fixture(scope="session")
def expert(text, published, tmp_path_factory):
    """A run that starts from the Hugging Face folder and reads one domain."""
    path = tmp_path_factory.mktemp("runs") / "law"
    overrides = (f"--config.init_from={published}", "--config.data.weights.law=1")
    assert train(text, path, *overrides) == 0
    return str(path)


@pytest.fixture
def line(capsys):
    """Runs a command line that must fail, and returns its one line."""

    def run(*argv):
        capsys.readouterr()
        assert cli.run([str(part) for part in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def said(capsys):
    """Runs a command line that must succeed, and returns its stdout."""

    def run(*argv):
        capsys.readouterr()
        assert cli.run([str(part) for part in argv]) == 0
        return capsys.readouterr().out

    return run


# ------------------------------------------------------------------ arguments


def test_help_answers_without_jax():
    code = (
        "import sys; from jaxlab import cli; codes = [cli.run([*verb, '--help']) "
        f"for verb in [[], *([v] for v in {VERBS}), ['data', 'inspect'], "
        "['ablate', 'search']]]; "
        "sys.exit(any(codes) or 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in VERBS:
        assert f"usage: jaxlab {verb}" in done.stdout


def test_version_is_printed(said):
    assert said("--version").startswith("jaxlab 0.")


def test_no_verb_shows_the_overview(capsys):
    assert cli.run([]) == 2
    assert "usage: jaxlab VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "jaxlab: unknown verb 'evalute'; did you mean evaluate?"),
        (["qqq"], "jaxlab: unknown verb 'qqq'; use one of train, evaluate, gen"),
        (["evaluate"], "jaxlab evaluate: the following arguments are required: MODEL"),
        (["evaluate", "x", "--lenght=3"], "--lenght=3; did you mean --length?"),
        (
            ["retrieve", "search", "x", "--index=x"],
            "--index=x; see jaxlab retrieve --help",
        ),
        (["generate", "x", "-n", "two"], "argument -n: invalid int value: 'two'"),
        (["merge", "a", "b", "-o", "c", "--weights=1;2"], "'1;2' is not like 0.7,0.3"),
        (["merge", "a", "b", "-o", "c", "--memory=lots"], "'lots' is not like 256MB"),
        (["merge", "a", "-o", "c"], "give two or more models to merge, or a recipe"),
        (["merge", "a.yaml", "-o", "c"], "a.yaml: No such file or directory"),
        (["ablate", "rank", "--experts", "law"], "'law' is not NAME=MODEL"),
        (["data"], "jaxlab data: the following arguments are required: ACTION"),
        (["data", "inspect", "--workdir=x"], "required: --step"),
        (
            ["data", "prepare", "a", "b"],
            "one of the arguments --tokenizer --vocab-size",
        ),
    ],
)
def test_a_misused_verb_is_one_line(line, argv, message):
    assert message in line(*argv)


def test_the_module_and_the_verb_are_one_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxlab.train", "--confg=x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    expected = "jaxlab train: unknown flag '--confg'; did you mean --config?\n"
    assert done.stderr == expected


# ------------------------------------------------------------------ train


def test_a_run_leaves_its_config_metrics_and_checkpoints(workdir):
    folder = pathlib.Path(workdir)
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert checkpoint.steps(folder / "checkpoints") == [4]


def test_the_same_command_finds_the_run_finished(text, workdir, capsys):
    assert train(text, workdir) == 0
    assert "resuming at step 4 of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "jaxlab train: give --config=FILE[:VARIANT]"),
        (
            ["--config=configs/olmo.py:tiny", "--workdir=w", "--config.optim.lr=1"],
            "jaxlab train: unknown config key 'optim.lr'",
        ),
        (
            ["--config=configs/olmo.py:huge", "--workdir=w"],
            "variant 'huge'; use one of",
        ),
    ],
)
def test_mistakes_in_flags_of_train_are_one_line(line, flags, message):
    assert message in line("train", *flags)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.heads=0", "this config does not work: heads is 0; it must be >= 1"),
        ("model.norm=batch", "this config does not work: norm 'batch'; use one of"),
        ("loss_denominator=x", "loss_denominator 'x'; use labels or olmo"),
        ("system=olmo.pretrian", "config.system 'olmo.pretrian' is unknown"),
        ("data.weights.web=1", "data.weights names web; the domains are code, law"),
        ("micro_batches=3", "micro_batches 3 does not divide a batch of 8 rows"),
        ("init_from=nowhere", "model nowhere does not exist"),
    ],
)
def test_configs_that_cannot_work_are_one_line(
    text, workdir, tmp_path, capsys, override, message
):
    assert train(text, tmp_path / "run", f"--config.{override}") == 2
    [said] = capsys.readouterr().err.splitlines()
    assert message in said


def test_another_config_in_the_same_workdir_is_one_line(text, workdir, capsys):
    assert train(text, workdir, "--config.optim.weight_decay=0") == 2
    assert "optim.weight_decay: 0.1 -> 0.0" in capsys.readouterr().err


# ------------------------------------------------------------------ evaluate


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
        (["--step", "3"], "no checkpoint to load; it has steps 4"),
        (["--mesh", "fsdp=3"], "mesh fsdp=3 does not fit 8 devices"),
        (["--length", "1"], "length 1"),
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


@pytest.fixture(scope="session")
def larger_tokenizer(text, tmp_path_factory):
    """Token files of the same text with a vocabulary that the model lacks."""
    out = tmp_path_factory.mktemp("larger") / "data"
    argv = ["data", "prepare", str(text), str(out), "--vocab-size=400"]
    assert cli.run(argv) == 0
    return out


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


# ------------------------------------------------------------------ generate


def test_every_prompt_is_continued_n_times(said, workdir, tmp_path):
    (tmp_path / "prompts.txt").write_text("A witness\n\n    count =\n")
    argv = ["generate", workdir, "--prompt", "The court", "-n", "2"]
    argv += ["--prompts", tmp_path / "prompts.txt", "--max-new-tokens", "8"]
    texts = said(*argv).split("\n--------\n")
    starts = ["The court"] * 2 + ["A witness"] * 2 + ["    count ="] * 2
    assert len(texts) == 6
    for start, whole in zip(starts, texts, strict=True):
        assert whole.startswith(start)
        assert len(whole) > len(start)
    assert said(*argv).split("\n--------\n") == texts
    assert said(*argv, "--seed", "1").split("\n--------\n") != texts


@pytest.mark.slow
def test_greedy_text_is_the_same_on_a_mesh(said, workdir):
    argv = ["generate", workdir, "--prompt=The", "--temperature=0"]
    argv += ["--max-new-tokens=8"]
    assert said(*argv, "--mesh=fsdp=8") == said(*argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --prompt TEXT or --prompts FILE"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--prompt", "The court shall " * 30], "exceed the model's length of 64"),
        (["--prompt", "a", "--top-p", "2"], "top_p 2.0; use a number above 0"),
        (["--prompt", "a", "-n", "0"], "-n and --batch-size must be 1 or more"),
    ],
)
def test_mistakes_in_generation_are_one_line(line, workdir, flags, message):
    assert message in line("generate", workdir, *flags)


# ------------------------------------------------------------------ convert, merge


def test_a_run_is_converted_with_its_tokenizer(workdir, published):
    ours, theirs = load.decoder(workdir), load.decoder(published)
    assert theirs.tokenizer.fingerprint == ours.tokenizer.fingerprint
    for a, b in zip(leaves(ours.params), leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(params):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_a_folder_is_converted_to_another_dtype(said, published, tmp_path):
    out = tmp_path / "half"
    assert "bfloat16" in said("convert", published, out, "--dtype", "bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    _, params = models.hf.load(out)
    _, whole = models.hf.load(published)
    for a, b in zip(leaves(params), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b.astype("bfloat16").astype("float32"))


def test_a_merge_is_the_weighted_average(said, published, expert, tmp_path):
    said("merge", published, expert, "-o", tmp_path / "m", "--weights", "1,3")
    merged, ours, theirs = (
        leaves(load.decoder(path).params)
        for path in (tmp_path / "m", published, expert)
    )
    for m, a, b in zip(merged, ours, theirs, strict=True):
        assert np.abs(a - b).max() > 0
        np.testing.assert_allclose(m, 0.25 * a + 0.75 * b, atol=1e-6)


def test_runs_are_merged_to_a_folder_or_to_a_run(said, workdir, expert, tmp_path):
    said("merge", workdir, expert, "-o", tmp_path / "hf", "--weights=1,3")
    said("merge", workdir, expert, "-o", tmp_path / "run", "--weights=1,3",
         "--format=orbax")  # fmt: skip
    ours, theirs, folder, run = (
        load.decoder(path)
        for path in (workdir, expert, tmp_path / "hf", tmp_path / "run")
    )
    columns = zip(*(leaves(m.params) for m in (ours, theirs, folder, run)), strict=True)
    for a, b, merged, same in columns:
        np.testing.assert_allclose(merged, 0.25 * a + 0.75 * b, atol=1e-6)
        np.testing.assert_array_equal(same, merged)
    assert folder.tokenizer.fingerprint == ours.tokenizer.fingerprint
    table = said("evaluate", tmp_path / "run", "--max-batches=1")
    assert [row.split()[0] for row in table.splitlines()[1:]] == ["code", "law"]


def test_folders_are_merged_to_a_run(said, published, text, tmp_path):
    out = tmp_path / "run"
    said("merge", published, published, "-o", out, "--format=orbax")
    merged, source = load.decoder(out), load.decoder(published)
    for a, b in zip(leaves(merged.params), leaves(source.params), strict=True):
        np.testing.assert_array_equal(a, b)
    target = text / "law" / "3.txt"
    own = said("evaluate", published, "--data", target)
    assert said("evaluate", out, "--data", target) == own


def test_layers_of_runs_are_merged_each_for_itself(said, workdir, expert, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{merge_method: slerp, base_model: {workdir}, models: [{expert}], "
        "parameters: {t: 0.4}}"
    )
    said("merge", recipe, "-o", tmp_path / "merged")
    merged, a, b = (
        load.decoder(path).params for path in (tmp_path / "merged", workdir, expert)
    )
    kernel = merged["blocks"]["mlp"]["up"]["kernel"]
    for layer in range(len(kernel)):
        x, y = (tree["blocks"]["mlp"]["up"]["kernel"][layer] for tree in (a, b))
        expected = merge.slerp({"w": x}, {"w": y}, 0.4)["w"]
        np.testing.assert_allclose(kernel[layer], expected, atol=1e-6)


def test_a_recipe_is_repeated_from_its_record(said, line, published, tmp_path):
    other, recipe = tmp_path / "other", tmp_path / "recipe.yaml"
    shutil.copytree(published, other)
    recipe.write_text(
        f"{{merge_method: linear, parameters: {{weight: 1}}, models: [{published}, "
        f"{other}]}}"
    )
    said("merge", recipe, "-o", tmp_path / "a", "--shard-size=50kB")
    said("merge", tmp_path / "a" / "merge.json", "-o", tmp_path / "b")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert len([name for name in files if name.startswith("model-")]) > 1
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    with open(other / "model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"!")
    message = line("merge", tmp_path / "a/merge.json", "-o", "c", "--sha256")
    assert "recorded crc32, not sha256; leave that out" in message
    message = line("merge", tmp_path / "a" / "merge.json", "-o", tmp_path / "c")
    assert f"not those of the merge to be repeated: {other}/model.saf" in message
    assert not (tmp_path / "c").exists()


def test_folders_are_averaged_without_jax(published, tmp_path):
    code = (
        "import sys; from jaxlab import cli; code = cli.run(sys.argv[1:]); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    argv = ["merge", published, published, "-o", str(tmp_path / "merged")]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "linear of 2 models, float32" in done.stdout


def test_other_tokenizers_are_named_and_merged(published, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(published, other)
    tokenizer = other / "tokenizer.model"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    assert cli.run(["merge", published, str(other), "-o", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert f"{tokenizer} are different tokenizers" in said


def test_runs_of_other_tokenizers_are_named(
    workdir, larger_tokenizer, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    raw = json.loads((other / "config.json").read_text())
    raw["data"]["folder"] = str(larger_tokenizer)
    (other / "config.json").write_text(json.dumps(raw))
    argv = ["merge", workdir, str(other), "-o", str(tmp_path / "m"), "--format=orbax"]
    assert cli.run(argv) == 0
    assert f"{larger_tokenizer}/tokenizer" in capsys.readouterr().err


def test_an_existing_output_is_never_overwritten(line, published, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for argv in (["convert", published], ["merge", published, published, "-o"]):
        assert f"{tmp_path} exists; remove it or choose" in line(*argv, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_models_that_are_not_alike_are_not_merged(line, published, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(published, other)
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw | {"clip_qkv": 8.0}))
    message = line("merge", published, other, "-o", tmp_path / "m")
    assert "cannot be merged, they differ: clip_qkv None and 8.0" in message
    assert not (tmp_path / "m").exists()


def test_models_of_different_tokenizers_are_named(
    line, text, workdir, published, tmp_path
):
    other, data = tmp_path / "other", tmp_path / "data"
    assert cli.run(["data", "prepare", str(text), str(data), "--vocab-size=310"]) == 0
    shutil.copytree(published, other)
    shutil.copytree(data / "tokenizer", other, dirs_exist_ok=True)
    message = line("merge", workdir, other, "-o", tmp_path / "m")
    assert f"{other} are different tokenizers" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "1"], "1 weights for 2 models; give one each"),
        (["--weights=1,-1"], "sum to 0"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    line, published, tmp_path, flags, message
):
    argv = ("merge", published, published, "-o", tmp_path / "m", *flags)
    assert message in line(*argv)


# ------------------------------------------------------------------ data


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


def test_verbose_logs_each_line_once(text, tmp_path, capsys):
    argv = ["data", "prepare", str(text), str(tmp_path / "d"), "--vocab-size=300", "-v"]
    assert cli.run(argv) == 2  # too small, which is found after the reading
    argv[-2] = "--vocab-size=320"
    assert cli.run(argv) == 0
    logged = [line for line in capsys.readouterr().err.splitlines() if "INFO" in line]
    assert [line.split(":")[1] for line in logged] == [" code", " law"]


def test_only_runs_have_steps_to_inspect(line, published):
    message = line("data", "inspect", "--workdir", published, "--step", "0")
    assert "is no run directory; it read no data" in message


# ------------------------------------------------------------------ other failures


def run_with(monkeypatch, error):
    def fail(args):
        raise error

    from jaxlab.commands import convert

    monkeypatch.setattr(convert, "run", fail)
    return cli.run(["convert", "a", "b"])


def test_an_interruption_is_one_line_and_130(monkeypatch, capsys):
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "jaxlab convert: interrupted\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), "out of memory; use smaller"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, message):
    assert run_with(monkeypatch, error) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxlab convert: {message}")


def test_a_defect_keeps_its_traceback(monkeypatch):
    with pytest.raises(AssertionError, match="ours"):
        run_with(monkeypatch, AssertionError("ours"))
