"""Runs in folders and in buckets; the bucket is on loopback (support/objects.py)."""

import importlib.util
import io
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

from jaxlab import cli, load, train
from jaxlab.core import (
    checkpoint,
    checkpoint_files,
    errors,
    folders,
    paths,
    report,
    tree,
)
from tests.support import objects as objects_lib
from tests.support import runs as tiny_run

# What orbax leaves behind in its event loop when a read fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def store():
    """The bucket's objects; gs://bucket is on loopback while the module runs."""
    with objects_lib.serve() as served, pytest.MonkeyPatch.context() as patch:
        objects, environment = served
        for name, value in environment.items():
            patch.setenv(name, value)
        yield objects


def test_a_folder_is_pathlibs(tmp_path):
    assert type(paths.path(str(tmp_path))) is type(tmp_path)
    assert paths.path("a/b") == pathlib.Path("a/b")
    assert paths.absolute("a") == pathlib.Path("a").absolute()
    assert not paths.is_remote(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/run", "local folders and gs:// only; mount the bucket"),
        ("http://host/run", "local folders and gs:// only"),
        ("gs://", "names no bucket; use gs://BUCKET/FOLDER"),
    ],
)
def test_a_place_that_cannot_hold_a_run_is_one_line(place, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        paths.path(place)
    assert "\n" not in str(caught.value)


def test_a_bucket_without_gcsfs_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match=r"pip install -e '.*\[gcs\]'"):
        paths.path("gs://bucket/run")


def test_a_file_that_grows_begins_with_its_text_and_is_seen_at_once(tmp_path):
    file = tmp_path / "rows"
    file.write_text("old\n")
    growing = folders.Growing(file, "1\n")
    growing.write("2\n")
    growing.flush()
    assert file.read_text() == "1\n2\n"
    growing.close()
    growing.close()
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.mark.oracle
def test_a_bucket_is_recognised_after_pathlib_took_a_slash(store):
    assert str(paths.path(pathlib.Path("gs://bucket/run"))) == "gs://bucket/run"
    assert paths.absolute("gs://bucket/run").name == "run"


@pytest.mark.oracle
def test_a_bucket_that_is_not_there_is_one_line(store, tmp_path):
    with pytest.raises(errors.UserError, match="there is no bucket gs://other"):
        train.fit(tiny_run.experiment(2), "gs://other/run")
    with pytest.raises(errors.UserError, match="cannot reach gs://other/run"):
        folders.write_text("gs://other/run", "text")
    assert not pathlib.Path("gs:").exists()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config=configs/olmo.py:tiny", "--workdir=gs://bucket/closed"],
        ["evaluate", "gs://bucket/closed"],
        ["checkpoint", "ls", "gs://bucket/closed"],
    ],
)
def test_a_bucket_without_rights_is_one_line(store, monkeypatch, capsys, argv):
    monkeypatch.setattr(store, "is_closed", True)
    assert cli.run(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot reach gs://bucket" in line
    assert "gcloud auth application-default login" in line


@pytest.mark.oracle
def test_a_file_in_a_bucket_grows_by_whole_copies(store, monkeypatch):
    file = paths.path("gs://bucket/rows")
    growing = folders.Growing(file, "1\n")
    growing.write("2\n")
    growing.flush()
    assert "rows" not in store.data
    growing.publish()
    growing.publish()
    assert store.data["rows"] == b"1\n2\n"
    assert store.writes.count("rows") == 1  # nothing was new
    later = time.monotonic() + 3600  # however slow the first upload was
    monkeypatch.setattr(folders.time, "monotonic", lambda: later)
    growing.write("3\n")
    growing.flush()
    assert store.data["rows"] == b"1\n2\n3\n"
    growing.write("4\n")
    growing.flush()
    growing.close()
    assert store.data["rows"] == b"1\n2\n3\n4\n"


@pytest.mark.oracle
def test_rows_after_the_checkpoint_are_dropped_when_a_run_resumes(store):
    rows = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 6))
    folders.write_text("gs://bucket/resumed/metrics.jsonl", rows + '{"step": 6, "lo')
    folder = paths.path("gs://bucket/resumed")
    with report.Reporter(folder, 9, first=3, out=io.StringIO()) as reporter:
        reporter.evaluation(4, "own", {"loss": 1.0})
    kept = store.data["resumed/metrics.jsonl"].decode().splitlines()
    assert [json.loads(row)["step"] for row in kept] == [1, 2, 3, 4]


@pytest.mark.oracle
def test_a_run_killed_in_a_bucket_continues_bit_for_bit(store, tmp_path):
    reference = tiny_run.launch(tmp_path / "local", 12)
    killed = tiny_run.launch("gs://bucket/run", 2000)
    _wait_for(store, "run/checkpoints/4/commit_success.txt", killed)
    killed.kill()
    killed.communicate()
    newest = checkpoint.steps("gs://bucket/run/checkpoints")[0]
    assert 4 <= newest < 12

    resumed = tiny_run.launch("gs://bucket/run", 12)
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert f"resuming at step {newest} of 12" in said
    assert reference.wait() == 0

    rows = map(json.loads, store.data["run/metrics.jsonl"].decode().splitlines())
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 12
    assert losses == tiny_run.losses(tmp_path / "local")
    remote = checkpoint.load_params("gs://bucket/run")
    local = checkpoint.load_params(tmp_path / "local")
    assert tree.fingerprint(remote) == tree.fingerprint(local)
    # The save that was killed has left nothing.
    entries = checkpoint.entries("gs://bucket/run/checkpoints")
    assert [(entry.step, entry.is_finished) for entry in entries] == [
        (12, True),
        (10, True),
    ]
    assert not [name for name in store.data if ".tmp" in name]


def _wait_for(store, name, process, seconds=120.0):
    deadline = time.monotonic() + seconds
    while name not in store.data and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    assert name in store.data


@pytest.mark.oracle
def test_a_corrupt_checkpoint_in_a_bucket_is_moved_and_the_one_before_used(
    store, caplog
):
    folder = paths.path("gs://bucket/broken/checkpoints")
    state = {"w": jnp.arange(1000.0)}
    with checkpoint.Checkpointer(folder) as saver:
        saver.save(1, state)
        saver.save(2, state)
    name = max(
        (name for name in store.data if name.startswith("broken/checkpoints/2/")),
        key=lambda name: len(store.data[name]),
    )
    data = bytearray(store.data[name])
    data[len(data) // 2] ^= 1
    store.put(name, bytes(data))
    assert checkpoint_files.verify(folder / "2") == {"w": "another checksum"}

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=place)}
    step, restored = checkpoint.restore(folder, target)

    assert step == 1
    assert tree.fingerprint(restored) == tree.fingerprint(state)
    assert "moved corrupt checkpoint 2 to gs://bucket/broken/corrupt/2" in caplog.text
    assert name.replace("checkpoints", "corrupt") in store.data
    assert checkpoint.steps(folder) == [1]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two domains of 20 short files."""
    folder = tmp_path_factory.mktemp("text")
    for domain in ("law", "code"):
        (folder / domain).mkdir()
        for number in range(20):
            lines = [f"{domain} {number} {line * line}" for line in range(40)]
            (folder / domain / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


def _train(text, workdir, *overrides):
    sizes = (
        "steps=2", "eval_batches=1", "data.vocab_size=280", "data.length=32",
        "data.batch_size=8", "data.held_out_fraction=0.2", "optim.warmup_steps=1",
        "model.embed=32", "model.layers=1", "model.heads=2", "model.mlp=64",
        "model.length=64", "run.keep_every=2", "run.save_every=2",
    )  # fmt: skip
    return cli.run(
        [
            "train", "--config=configs/olmo.py:tiny", f"--workdir={workdir}",
            f"--config.data.source={text}",
            *(f"--config.{size}" for size in sizes), *overrides,
        ]
    )  # fmt: skip


def _machine(monkeypatch, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.mark.oracle
def test_a_run_in_a_bucket_moves_from_machine_to_machine(
    store, text, tmp_path, monkeypatch, capsys
):
    run = "gs://bucket/moving"
    _machine(monkeypatch, tmp_path / "first")
    assert _train(text, run) == 0
    first = json.loads(store.data["moving/config.json"])["data_order"]
    assert "moving/data/tokenizer/tokenizer.model" in store.data
    assert not [name for name in store.data if name.endswith(".npy")]
    assert list((tmp_path / "first").rglob("*.npy"))

    # Preempted: another machine prepares the same tokens, and goes on.
    _machine(monkeypatch, tmp_path / "second")
    assert _train(text, run, "--config.steps=4") != 0  # the schedule would change
    assert "steps: 2 -> 4" in capsys.readouterr().err
    assert _train(text, run) == 0
    assert "complete: 2 of 2 steps" in capsys.readouterr().out
    assert json.loads(store.data["moving/config.json"])["data_order"] == first
    assert cli.run(["evaluate", run]) == 0
    assert "law" in capsys.readouterr().out

    # A third opens it, starts from it, and exports it; it has none of the text.
    _machine(monkeypatch, tmp_path / "third")
    opened = load.decoder(run)
    own = load.tokenizer_path(run)
    assert own.is_relative_to(tmp_path / "third")
    assert opened.tokenizer.decode(opened.tokenizer.encode("law 3")) == "law 3"
    assert _train(text, tmp_path / "next", f"--config.init_from={run}") == 0
    out = tmp_path / "exported"
    assert cli.run(["checkpoint", "export", run, str(out), "--dtype=bfloat16"]) == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), opened.params)
    again = jax.tree.map(lambda x: x.astype("bfloat16"), load.decoder(out).params)
    assert tree.fingerprint(again) == tree.fingerprint(rounded)
    for number in range(20, 30):
        (text / "law" / f"{number}.txt").write_text("more law\n" * 40)
    capsys.readouterr()
    assert cli.run(["evaluate", run]) == 2
    assert "was not prepared here; give --data" in capsys.readouterr().err
    # Text that has changed is no silent reason for other data.
    assert _train(text, run) == 2
    assert "another config: data_order" in capsys.readouterr().err


@pytest.mark.oracle
def test_a_run_in_a_bucket_is_listed_and_verified(store, capsys):
    folder = paths.path("gs://bucket/listed/checkpoints")
    with checkpoint.Checkpointer(folder) as saver:
        saver.save(3, {"params": {"w": jnp.arange(10.0)}})
        saver.save(4, {"params": {"w": jnp.arange(10.0)}})
    del store.data["listed/checkpoints/4/commit_success.txt"]
    assert cli.run(["checkpoint", "ls", "gs://bucket/listed"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("4", "unfinished"), ("3", "ok")]
    assert cli.run(["checkpoint", "verify", "gs://bucket/listed"]) == 0
    assert capsys.readouterr().out == "step 3: ok, 1 leaves have their checksums\n"


@pytest.mark.oracle
def test_a_system_that_keeps_files_is_told_before_the_work(store, capsys):
    config = "--config=configs/refit.py:bi_encoder"
    assert cli.run(["train", config, "--workdir=gs://bucket/encoder"]) == 2
    assert "encoders.embed needs a local --workdir" in capsys.readouterr().err
    assert not [name for name in store.data if name.startswith("encoder/")]


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "caches", "./caches"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert paths.cache("data") == tmp_path / ".cache" / "jaxlab" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert paths.cache() == tmp_path / "own" / "jaxlab"
