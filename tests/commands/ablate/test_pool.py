"""`jaxlab ablate pool`: made, finished, added to, refused."""

import json
import pathlib
import shutil

import pytest

from jaxlab import ablation, train
from tests.support import pools


def test_a_pool_has_an_expert_for_every_partition(pool):
    units = ablation.pool_folder.read(pool).units
    assert list(units) == ["code", "cook", "law"]
    assert {unit.tokens_trained for unit in units.values()} == {3 * 32 * 8}
    assert {unit.steps for unit in units.values()} == {3}


def test_the_same_command_finds_the_pool_finished(said, pool, text, no_training):
    before = pools.contents(pool / "runs")
    shown = said("pool", pool, "--data", text / "text", *pools.MADE)
    assert "3 experts" in shown
    assert pools.contents(pool / "runs") == before


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--unit-steps=4", "unit_steps: 3 -> 4"),
        ("--units=law,code", "units: [] -> ['law', 'code']"),
        ("--parts=2", "base.data.parts: 1 -> 2"),
        ("--seed-domains=law", "seed_domains: [] -> ['law']"),
    ],
)
def test_another_pool_in_the_same_folder_is_refused(line, pool, text, flag, difference):
    message = line("pool", pool, "--data", text / "text", *pools.MADE, flag)
    assert "was made with other settings" in message
    assert difference in message


def test_a_pool_whose_text_was_moved_is_continued_and_other_text_is_refused(
    said, line, copied, text, tmp_path, no_training
):
    moved = pathlib.Path(shutil.copytree(text / "text", tmp_path / "elsewhere"))
    argv = ["pool", copied, "--data", moved, *pools.MADE]
    assert "3 experts" in said(*argv)
    said(*argv)
    file = next(path for path in sorted(moved.rglob("*")) if path.is_file())
    file.write_text(file.read_text() + file.read_text())
    moved = moved.rename(tmp_path / "again")
    message = line("pool", copied, "--data", moved, *pools.MADE)
    assert "was prepared from other text" in message


@pytest.mark.parametrize("name", ["a+b", "a=50", "a@2", "a,b"])
def test_names_that_are_read_as_a_mixture_are_refused(line, text, tmp_path, name):
    source = pathlib.Path(shutil.copytree(text / "text", tmp_path / "text"))
    law = next(path for path in source.iterdir() if path.name.startswith("law"))
    law.rename(law.with_name(law.name.replace("law", name)))
    message = line("pool", tmp_path / "pool", "--data", source, *pools.MADE)
    assert f"no partition may be called '{name}'" in message
    assert not (tmp_path / "pool" / "data").exists()


def test_a_partition_too_small_is_named_before_anything_is_trained(
    line, text, tmp_path, no_training
):
    source = pathlib.Path(shutil.copytree(text / "text", tmp_path / "text"))
    (source / "little").mkdir()
    for number in range(2):
        (source / "little" / f"{number}.txt").write_text(f"any person {number}")
    message = line("pool", tmp_path / "pool", "--data", source, *pools.MADE)
    assert "fewer than one row of 32: give more text" in message
    assert f"remove {tmp_path / 'pool' / 'data'}" in message


@pytest.mark.slow
def test_a_pool_that_was_killed_is_finished(
    run, said, text, tmp_path, monkeypatch, capsys
):
    pool, add, argv = tmp_path / "pool", ablation.pool_folder.add, ["--units=law,cook"]
    argv = ["pool", pool, "--data", text / "text", *pools.MADE, *argv]

    def killed(folder, unit):
        if unit.name == "cook":
            raise KeyboardInterrupt
        add(folder, unit)

    monkeypatch.setattr(ablation.pool_folder, "add", killed)
    assert run(*argv) == 130
    assert ablation.pool_folder.open(pool).names == (
        "law",
    )  # without the unfinished one
    before = pools.contents(pool / "runs")
    monkeypatch.setattr(ablation.pool_folder, "add", add)
    said(*argv)
    assert pools.contents(pool / "runs") == before
    assert ablation.pool_folder.open(pool).names == ("law", "cook")


def test_unknown_partitions_are_named_and_spoil_nothing(line, said, text, tmp_path):
    pool = tmp_path / "pool"
    argv = ["pool", pool, "--data", text / "text", *pools.MADE]
    assert "has no partition web; there are code, cook, law" in line(
        *argv, "--units=web"
    )
    assert not (pool / "recipe.json").exists()


def test_adding_trains_one_expert_and_changes_nothing_else(
    said, line, copied, text, tmp_path, monkeypatch
):
    fits, fit = [], train.fit
    monkeypatch.setattr(
        train, "fit", lambda *a, **k: fits.append(k["name"]) or fit(*a, **k)
    )
    before = pools.contents(copied)
    argv = ["pool", copied, "--add", f"sea={text / 'more' / 'sea'}"]
    assert "4 experts" in said(*argv)
    after = pools.contents(copied)
    assert fits == ["expert sea"]
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"pool.json"}
    new = after.keys() - before.keys()
    assert {name[: name.index("sea")] for name in new} == {"data/", "runs/expert-"}
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law", "sea")
    held_out = json.loads(after["data/sea.held_out.json"])
    assert held_out["documents"] >= 1
    said(*argv)  # again: it is there
    for name in ("one", "two"):  # the other text was moved, and moved again
        moved = shutil.copytree(text / "text", tmp_path / name)
        assert "4 experts" in said("pool", copied, "--data", moved, *pools.MADE)
    assert fits == ["expert sea"]
    shutil.rmtree(next(path for path in moved.iterdir() if path.is_dir()))
    moved = moved.rename(tmp_path / "three")
    message = line("pool", copied, "--data", moved, *pools.MADE)
    assert "was prepared from other text" in message


@pytest.mark.slow
def test_a_partition_is_added_with_its_held_out_text(said, copied, text, tmp_path):
    sea = shutil.copytree(text / "more" / "sea", tmp_path / "sea")
    (tmp_path / "sea.val.txt").write_text("the captain sailed his ship home " * 9)
    said("pool", copied, "--add", f"sea={sea}")
    counts = [
        json.loads((copied / "data" / f"{name}.json").read_text())["documents"]
        for name in ("sea", "sea.held_out")
    ]
    assert counts == [16, 1]
    assert "resampled for intervals" in said("rank", copied, "--target=sea")


@pytest.mark.slow
def test_adding_that_was_killed_is_finished(run, said, copied, text, monkeypatch):
    def killed(folder, unit):
        raise KeyboardInterrupt

    argv = ["pool", copied, "--add", f"sea={text / 'more' / 'sea'}"]
    with monkeypatch.context() as patch:
        patch.setattr(ablation.pool_folder, "add", killed)
        assert run(*argv) == 130
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law")
    before = pools.contents(copied / "runs")
    said(*argv)
    assert pools.contents(copied / "runs") == before
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law", "sea")


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("law={text}/more/sea", "has other text under the name law; choose another"),
        ("../x={text}/more/sea", "'../x' is not a name of a partition"),
        ("a+b={text}/more/sea", "'a+b' is not a name of a partition"),
        ("x=nowhere", "nowhere does not exist"),
        ("x={text}/more/sea/0.txt", "has one document with text; two are needed"),
        ("x={text}/little", "fewer than one row of 32"),
        ("x=nowhere.npy", "nowhere.npy does not exist"),
    ],
)
def test_what_cannot_be_added_is_one_line(line, pool, text, addition, message):
    (text / "little").mkdir(exist_ok=True)
    for number in range(2):
        (text / "little" / f"{number}.txt").write_text(f"any person {number}")
    before = pools.contents(pool)
    assert message in line("pool", pool, "--add", addition.format(text=text))
    assert pools.contents(pool) == before
