"""Links in folders of others: what they lead to is neither read nor copied."""

import json
import shutil

import pytest

from jaxlab import cli, models
from jaxlab.core import errors, links, paths, runs
from jaxlab.data.corpus import documents, domains
from jaxlab.retrieval import index_files
from tests.support import toy_retrieval


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return toy_retrieval.write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(encoder, tmp_path):
    return shutil.copytree(encoder, tmp_path / "model")


def move_out(file, name):
    """Leaves a link to a file that gets another place and name."""
    target = file.parents[1] / name
    file.rename(target)
    file.symlink_to(target)
    return target


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_file_of_a_model_that_is_a_link_to_elsewhere_is_one_line(
    name, model, tmp_path, line_of, monkeypatch
):
    target = move_out(model / name, "elsewhere")
    said = line_of("convert", model, tmp_path / "out")
    assert f"{name} is a link to {target}, outside of {model}; put a copy" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("JAXLAB_FOLLOW_LINKS", "1")
    assert cli.run(["merge", *[str(model)] * 2, "-o", str(tmp_path / "out")]) == 0


def test_settings_that_are_a_link_are_not_written_into_an_output(
    model, tmp_path, line_of
):
    (tmp_path / "secret.json").write_text('{"auths": "key"}')
    (model / "generation_config.json").symlink_to(tmp_path / "secret.json")
    for verb in (["convert", model], ["merge", model, model, "-o"]):
        assert "is a link to" in line_of(*verb, tmp_path / "out")


def test_weights_on_another_disk_and_blobs_of_the_hub_are_read(model, tmp_path):
    move_out(model / "model.safetensors", "weights.safetensors")
    models.hf.load(model)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    model.rename(snapshot)
    for number, file in enumerate([x for x in snapshot.iterdir() if x.is_file()]):
        blob = shutil.move(file.resolve(), snapshot.parents[1] / "blobs" / f"{number}")
        file.unlink(missing_ok=True)
        file.symlink_to(f"../../blobs/{number}")
        assert blob.exists()
    models.hf.load(snapshot)
    (tmp_path / "mine").symlink_to(snapshot)  # the path that a user gives
    mine, out = str(tmp_path / "mine"), str(tmp_path / "out")
    assert cli.run(["merge", mine, mine, "-o", out]) == 0


def test_a_folder_that_is_copied_whole_holds_no_link_out(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "step" / "d").mkdir(parents=True)
    (tmp_path / "step" / "d" / "own").symlink_to("../manifest")
    links.check_all(tmp_path / "step")
    (tmp_path / "step" / "d" / "keys").symlink_to(tmp_path / "keys")
    with pytest.raises(errors.UserError, match="keys is a link to"):
        links.check_all(tmp_path / "step")


def test_a_folder_of_blobs_is_no_way_around(tmp_path):
    """An archive can hold `snapshots`, and `blobs` that is a link."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "id").write_text("key")
    (tmp_path / "a" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "a" / "blobs").symlink_to(tmp_path / "keys")
    file = tmp_path / "a" / "snapshots" / "1" / "config.json"
    file.symlink_to("../../blobs/id")
    with pytest.raises(errors.UserError, match="keys/id, outside of"):
        links.check(file.parent)


def test_a_run_and_an_index_are_looked_at_too(tmp_path, line_of):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "secret").write_text(json.dumps({"system": "olmo.pretrain"}))
    (tmp_path / "run" / runs.CONFIG).symlink_to(tmp_path / "secret")
    assert "is a link to" in line_of("convert", tmp_path / "run", tmp_path / "out")
    index_files.build(tmp_path / "index", [[[1.0, 2.0]]], ["a"])
    move_out(tmp_path / "index" / "vectors.bin", "elsewhere")
    with pytest.raises(errors.UserError, match=r"vectors\.bin is a link to"):
        index_files.read(tmp_path / "index")


def test_text_is_followed_to_text_and_not_to_keys(tmp_path, caplog, monkeypatch):
    here, home = tmp_path / "data", tmp_path / "home"
    for folder in (here / "law", home / ".ssh", home / "more", home / "more" / ".git"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    (home / ".ssh" / "id_rsa").write_text("key")
    for name, target in {
        "b.txt": "more/a.txt", "key.txt": ".ssh/id_rsa", "hidden.txt": ".ssh/a.txt",
        "far": "more", "ssh": ".ssh",
    }.items():  # fmt: skip
        (here / "law" / name).symlink_to(home / target)
    (here / "keys").symlink_to(home / ".ssh")
    found = [d.id for d in documents.read_documents(here / "law")]
    assert found == ["a.txt", "b.txt", "far/a.txt"]
    assert [*domains.find_domains(here)] == ["law"]
    said = "\n".join(caplog.messages)
    for name in ("key.txt", "hidden.txt", "ssh", "keys"):
        assert f"{name} is not read: it " in said
    monkeypatch.setenv("JAXLAB_FOLLOW_LINKS", "1")
    assert len(paths.list_files(here / "law")) == 8


@pytest.fixture
def line_of(capsys):
    """Runs a command line that must fail, and returns its one line."""

    def run(*argv):
        assert cli.run([*map(str, argv)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run
