"""`jaxlab merge` of runs, of folders, and of both."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxlab import cli, load, merge
from tests.support import verb_runs


def test_a_merge_is_the_weighted_average(said, published, expert, tmp_path):
    said("merge", published, expert, "-o", tmp_path / "m", "--weights", "1,3")
    merged, ours, theirs = (
        verb_runs.leaves(load.decoder(path).params)
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
    columns = zip(
        *(verb_runs.leaves(m.params) for m in (ours, theirs, folder, run)), strict=True
    )
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
    for a, b in zip(
        verb_runs.leaves(merged.params), verb_runs.leaves(source.params), strict=True
    ):
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
    assert "recorded xxh3, not sha256; leave that out" in message
    message = line("merge", tmp_path / "a" / "merge.json", "-o", tmp_path / "c")
    assert f"not those of the merge to be repeated: {other};" in message
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
    assert cli.run(argv) == 2
    refused = capsys.readouterr().err
    assert f"{larger_tokenizer}/tokenizer" in refused
    assert "--force" in refused
    assert cli.run([*argv, "--force"]) == 0
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
