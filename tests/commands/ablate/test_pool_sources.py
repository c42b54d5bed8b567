"""`jaxlab ablate pool` from token files, or from a run of the user's."""

import shutil

import pytest

from jaxlab import ablation, cli
from tests.support import pools


@pytest.fixture(scope="module")
def token_folder(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "prepared"
    argv = ["data", "prepare", str(text / "text"), str(out), "--vocab-size=332"]
    assert cli.run([*argv, "--held-out=0.2"]) == 0
    return out


@pytest.mark.slow
def test_token_files_make_a_pool_without_their_text(
    said, line, text, token_folder, tmp_path
):
    source, pool = tmp_path / "source", tmp_path / "pool"
    shutil.copytree(token_folder, source)
    argv = ["pool", pool, "--data", source, *pools.MADE]
    assert "leave out --vocab-size" in line(*argv, "--vocab-size=400")
    assert "are not cut in parts" in line(*argv, "--parts=2")
    said(*argv, "--units=law,code")
    shutil.rmtree(source)
    said(*argv, "--units=law,code")  # it is finished: the source is not asked for
    moved = [token_folder if x == source else x for x in argv]
    said(*moved, "--units=law,code")
    changed, other = tmp_path / "changed", tmp_path / "other"
    shutil.copytree(text / "text", changed)
    (changed / "law" / "new.txt").write_text("A law of another year. " * 50)
    tokenizer = f"--tokenizer={token_folder / 'tokenizer'}"
    prepare = ["data", "prepare", str(changed), str(other), tokenizer]
    assert cli.run([*prepare, "--held-out=0.2"]) == 0
    message = line(*(other if x == source else x for x in argv), "--units=law,code")
    assert "was prepared from other text than" in message
    said("rank", pool, "--target", "cook", "--proxy=ensemble")
    added = said("pool", pool, "--add", f"food={token_folder / 'cook.npy'}")
    assert "3 experts" in added
    assert (pool / "data" / "food.held_out.npy").exists()


def test_token_files_of_another_tokenizer_are_refused(line, pool, token_folder):
    message = line("pool", pool, "--add", f"x={token_folder / 'cook.npy'}")
    assert "was encoded with another tokenizer than the pool's" in message


def test_token_files_stand_alone(line, text, token_folder, tmp_path):
    data = f"{token_folder},{text / 'more'}"
    message = line("pool", tmp_path / "pool", "--data", data, *pools.MADE)
    assert "holds token files; give it alone" in message


@pytest.mark.slow
def test_a_run_of_the_users_is_the_seed_model(said, line, pool, text, tmp_path):
    own, seed = tmp_path / "own", pool / "runs" / "seed"
    argv = ["pool", own, "--data", text / "text", "--seed-model", seed, "--units=law"]
    said(*argv, "--unit-steps=2")
    ours, theirs = ablation.pool_folder.read(own), ablation.pool_folder.read(pool)
    assert ours.seed_fingerprint == theirs.seed_fingerprint
    assert ours.branch.learning_rate == pytest.approx(1e-2 / 3)
    assert ours.units["law"].steps == 2
    message = line(*argv, "--unit-steps=3")
    assert "unit_steps: 2 -> 3" in message
    published = tmp_path / "published"
    assert cli.run(["convert", str(seed), str(published)]) == 0
    argv = ["pool", tmp_path / "x", "--data", text / "text", "--seed-model", published]
    assert "does not say how it was trained" in line(*argv)
