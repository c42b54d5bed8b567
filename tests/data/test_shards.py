"""Shards: the same bytes by every engine, resumed, in a bucket, read as one file."""

import gzip
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.batches import inspect, loader, mixture
from jaxlab.data.corpus import domains, token_files
from jaxlab.data.shards import beam, plan, run, token_shards
from jaxlab.data.tokenizers import tokenizer
from tests.support import objects as objects_lib

ROOT = pathlib.Path(__file__).parents[2]
LANGUAGES = ("word number {}. ", "слово {}, ", "語{}、", "كلمة {} ", "🙂 {}\n")
SMALL = {"held_out_fraction": 0.25, "seed": 3, "shard_bytes": 1500}


def lines(name, count):
    texts = [LANGUAGES[i % 5].format(i) * (3 + i % 7) for i in range(count)]
    texts[1] = " \n"  # left out
    rows = [{"id": f"{name}{i}", "text": text} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of two domains: web of many files and kinds, law of one file."""
    folder = tmp_path_factory.mktemp("text")
    web = folder / "web"
    (web / "more").mkdir(parents=True)
    (web / "a.jsonl").write_bytes(lines("a", 30))
    (web / "b.jsonl.gz").write_bytes(gzip.compress(lines("b", 25)))
    (web / "c.json.gz").write_bytes(gzip.compress(lines("c", 12)))
    (web / "more" / "d.jsonl.zst").write_bytes(zstandard.compress(lines("d", 40)))
    for i in range(8):
        (web / "more" / f"{i}.txt").write_text(f"Text {i}. " * 40)
    (web / "more" / "empty.txt").touch()  # left out
    (folder / "law.jsonl").write_bytes(lines("law", 20))
    return folder


@pytest.fixture(scope="module")
def model(source):
    return tokenizer.train_sentencepiece(domains.training_texts(source), 330)


@pytest.fixture(scope="module")
def done(source, model, tmp_path_factory):
    """The shards, written in this process."""
    out = tmp_path_factory.mktemp("shards") / "out"
    run.tokenize(str(source), str(out), model, **SMALL)
    return out


def contents(folder):
    """Every file's bytes by its name."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_manifest_says_what_was_written(done, source, model):
    manifest = json.loads((done / "manifest.json").read_text())
    files = {n: e for record in manifest["shards"] for n, e in record["files"].items()}
    written = contents(done)
    own = {n for n in written if n.startswith(("web", "law")) and "record" not in n}
    assert own == files.keys()
    assert len([n for n in own if n.startswith("web/") and n.endswith(".npy")]) > 2
    for name, entry in files.items():
        assert len(written[name]) == entry["bytes"]
        assert hashlib.sha256(written[name]).hexdigest() == entry["sha256"]
    read = [entry for record in manifest["shards"] for entry in record["sources"]]
    assert len(read) == 13  # all but the empty one
    for entry in read:
        data = (source / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert manifest["tokenizer"] == model.fingerprint
    web = manifest["domains"]["web"]
    assert sum(side["documents"] for side in web.values()) == 30 + 25 + 12 + 40 - 4 + 8
    assert run.verify(str(done)) == len(files)


def test_every_document_is_there_in_order_and_decodes(done, source, model):
    found = prepared.open_folder(done)
    texts = {
        (document.domain, document.id): document.text
        for domain, path in (("web", source / "web"), ("law", source / "law.jsonl"))
        for document in domains.read_documents(path, domain=domain)
        if document.text.strip()
    }
    order = list(texts)
    for domain in ("law", "web"):
        sides = found.train[domain], found.held_out[domain]
        read = []
        for side in sides:
            spans = [side.span(i) for i in range(len(side.ends))]
            own = [(domain, span.id) for span in spans]
            assert own == sorted(own, key=order.index)
            for span, name, size in zip(spans, own, side.document_bytes, strict=True):
                ids = side.tokens[span.start : span.stop].tolist()
                assert ids.pop() == model.eos_id
                assert model.decode(ids) == texts[name]
                assert size == len(texts[name].encode())
                assert side.document_at(span.stop - 1) == span
            read += own
        assert sorted(read) == sorted(name for name in order if name[0] == domain)
        kept = [texts[domain, span.id] for span in spans]  # of the held-out side
        assert all(domains.hash_share(text, 3) < 0.25 for text in kept)


def test_several_processes_write_the_same_bytes(done, source, model, tmp_path):
    engine = run.in_processes(2)
    run.tokenize(str(source), str(tmp_path / "o"), model, engine=engine, **SMALL)
    assert contents(tmp_path / "o") == contents(done)


@pytest.mark.oracle
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_beam_writes_the_same_bytes(done, source, model, tmp_path, mode):
    options = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    engine = beam.engine("DirectRunner", options)
    run.tokenize(str(source), str(tmp_path / "o"), model, engine=engine, **SMALL)
    assert contents(tmp_path / "o") == contents(done)


@pytest.mark.oracle
def test_a_mistake_on_beam_is_one_line_and_a_runner_is_checked(source, model, tmp_path):
    text = shutil.copytree(source, tmp_path / "text")
    (text / "law.jsonl").write_text('{"text": "one"}\nno JSON\n')
    engine = beam.engine("DirectRunner")
    with pytest.raises(errors.UserError, match=r"law.jsonl:2 is not JSON") as caught:
        run.tokenize(str(text), str(tmp_path / "o"), model, engine=engine, **SMALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(errors.UserError, match=r"Beam does not take this: .*NoRunner"):
        beam.engine("NoRunner")


def test_without_beam_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(errors.UserError, match=r"pip install 'jaxlab\[beam\]'"):
        beam.engine("DirectRunner")


# A process that is killed when it is about to give the n-th file its name, for every n
# given; forked, since each import of the package takes seconds.
KILLED = """
import os, signal, sys
from jaxlab.data.shards import run, worker
from jaxlab.data.tokenizers import tokenizer
source, out, model, *numbers = sys.argv[1:]
for number in map(int, numbers):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        continue
    publish, left = worker._publish, number
    def dying(*paths):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        publish(*paths)
    worker._publish = dying
    run.tokenize(source, out, tokenizer.load(model), **{settings})
    os._exit(0)
"""


def test_killed_at_any_file_and_resumed_is_as_never_killed(
    done, source, model, tmp_path
):
    out = tmp_path / "out"
    model.save(tmp_path / "model")
    script = KILLED.replace("{settings}", repr(SMALL))
    argv = [source, out, tmp_path / "model", *(0, 2, 3, 8, 9, 11)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, argv)]
    subprocess.run(command, check=True, env=environment)
    assert not (out / "manifest.json").exists()
    assert (out / plan.STAGING).exists()  # of the last one
    with pytest.raises(errors.UserError, match="is not finished; start the same"):
        prepared.open_folder(out)
    before = {path: path.stat().st_ino for path in out.glob("*/*.record.json")}
    assert 0 < len(before) < 5
    run.tokenize(str(source), str(out), model, **SMALL)
    assert contents(out) == contents(done)
    assert {path: path.stat().st_ino for path in before} == before  # not made again


def test_a_killed_run_takes_its_workers_along(source, model, tmp_path):
    model.save(tmp_path / "model")
    script = """
import os, signal, sys
from jaxlab.data.shards import run
if __name__ == "__main__":
    import concurrent.futures as futures, multiprocessing
    pool = futures.ProcessPoolExecutor(
        2, multiprocessing.get_context("spawn"), run._begin_worker
    )
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    # The pipe is at its end: no worker holds it, so all have ended.
    assert killed.returncode == -signal.SIGKILL
    assert int(killed.stdout)


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "text")


def tokenize(text, model, **options):
    return run.tokenize(str(text), f"{text}.out", model, **SMALL | options)


def test_a_bad_line_is_named_the_rest_is_written_and_it_can_be_repaired(
    copy, source, done, model
):
    good = (copy / "web" / "a.jsonl").read_bytes()
    (copy / "web" / "a.jsonl").write_bytes(good + b"no JSON\n")
    match = r"text/web/a.jsonl:31 is not JSON .* \(1 of \d+ shards are not written; "
    with pytest.raises(errors.UserError, match=match):
        tokenize(copy, model)
    (copy / "web" / "a.jsonl").write_bytes(good)
    tokenize(copy, model)
    out = copy.with_name("text.out")
    written, wanted = contents(out), contents(done)
    for each in (written, wanted):
        del each["plan.json"]  # names the source and the bytes of before
    assert written == wanted


def test_a_file_that_changed_after_its_shard_was_written_is_named(copy, model):
    tokenize(copy, model)
    with (copy / "law.jsonl").open("ab") as file:
        file.write(lines("new", 2))
    with pytest.raises(errors.UserError, match=r"law.jsonl changed since .*; restore"):
        tokenize(copy, model)
    (copy.with_name("text.out") / "law" / "00000-of-00001.record.json").unlink()
    manifest = tokenize(copy, model)
    sides = manifest["domains"]["law"].values()
    assert sum(side["documents"] for side in sides) == 20


def test_other_files_settings_or_tokenizers_are_refused(copy, source, model):
    tokenize(copy, model)
    with pytest.raises(errors.UserError, match=r"seed 3, not 4; use the same, or"):
        tokenize(copy, model, seed=4)
    other = tokenizer.train_sentencepiece(domains.training_texts(source), 320)
    with pytest.raises(errors.UserError, match="was begun with tokenizer "):
        tokenize(copy, other)
    (copy / "web" / "new.txt").write_text("new")
    with pytest.raises(errors.UserError, match=r"has a new web/new.txt since"):
        tokenize(copy, model)
    (copy / "web" / "new.txt").unlink()
    (copy / "law.jsonl").rename(copy / "web" / "law.jsonl")
    with pytest.raises(errors.UserError, match=r"has no law.jsonl since"):
        tokenize(copy, model)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("law.jsonl", "", r"law.jsonl is empty \(0 bytes\); remove it"),
        ("law.jsonl", '{"text": " "}\n', "domain 'law' has no train documents; use"),
        ("law.jsonl", '{"text": "x"}\n', "domain 'law' has no held out documents; use"),
        ("law.jsonl", '{"text": 1}\n', r"law.jsonl:1 has no string field \"text\""),
        ("new/.keep", "", r"new holds no document; put"),
        ("new/dataset_info.json", "{}", "is a TFDS data set; use `jaxlab data prep"),
        ("tokenizer.jsonl", "", "no domain may be called 'tokenizer'; rename"),
        ("law.held_out.jsonl", "", "no domain may be called 'law.held_out'; rename"),
    ],
)
def test_what_cannot_be_tokenized_is_named(copy, model, name, text, message):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(text)
    with pytest.raises(errors.UserError, match=message):
        tokenize(copy, model)


def test_nothing_else_is_prepared_into_shards(done, source):
    with pytest.raises(errors.UserError, match="name no source beside it"):
        prepared.prepare(str(source), done)


def test_an_empty_source_a_foreign_folder_and_a_second_process_are_refused(
    copy, model, tmp_path
):
    (tmp_path / "none").mkdir()
    with pytest.raises(errors.UserError, match="holds no domain; put one subfolder"):
        tokenize(tmp_path / "none", model)
    (tmp_path / "text.out").mkdir()
    (tmp_path / "text.out" / "mine.txt").touch()
    with pytest.raises(errors.UserError, match=r"holds mine.txt and is not of `jaxlab"):
        tokenize(copy, model)
    (tmp_path / "text.out" / "mine.txt").unlink()
    with (
        run._alone(f"{copy}.out"),
        pytest.raises(errors.UserError, match="another process writes to"),
    ):
        tokenize(copy, model)


def test_a_shard_of_nothing_but_empty_documents_has_a_record_alone(copy, model):
    (copy / "web" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": ""}\n' * 200))
    manifest = tokenize(copy, model, shard_bytes=1)
    (record,) = [
        record
        for record in manifest["shards"]
        if record["sources"][0]["file"] == "web/b.jsonl.gz"
    ]
    assert record["files"] == {}
    assert record["train"]["documents"] == 0
    found = prepared.open_folder(copy.with_name("text.out"))
    assert found.train["web"].info["documents"] == len(found.train["web"].ends)


def test_a_damaged_shard_is_found_and_made_again(copy, done, model):
    tokenize(copy, model)
    out = copy.with_name("text.out")
    path = out / "web" / "00001-of-00004.npy"
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    with pytest.raises(
        errors.UserError, match=r"00001-of-00004.npy is damaged; remove"
    ):
        run.verify(str(out))
    path.write_bytes(data[:-2])
    with pytest.raises(errors.UserError, match="npy is missing or truncated"):
        prepared.open_folder(out)
    tokenize(copy, model)
    assert path.read_bytes() == data
    run.verify(str(out))


# ------------------------------------------------------------------ reading


@pytest.fixture(scope="module")
def both(source, model, tmp_path_factory):
    """Shards and single files of the same documents, nothing held out."""
    folder = tmp_path_factory.mktemp("both")
    out = str(folder / "shards")
    run.tokenize(str(source), out, model, shard_bytes=1500)
    return prepared.open_folder(out).train, domains.prepare(
        source, model, folder / "one"
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"document_mask": True}, {"layout": "packed"}],
    ids=["chunks", "masked", "packed"],
)
def test_batches_are_those_of_single_files(both, options, monkeypatch):
    monkeypatch.setattr(token_shards, "_OPEN", 2)
    shards, files = both
    assert list(shards) == list(files)
    loaders = [
        loader.Loader(
            mixture.Mixture(list(found.values()), [3, 1], list(found)),
            length=48,
            batch_size=8,
            seed=1,
            **options,
        )
        for found in both
    ]
    for step in range(40):  # several epochs
        batches = [made(step) for made in loaders]
        assert batches[0].keys() == batches[1].keys()
        for key, value in batches[0].items():
            np.testing.assert_array_equal(value, batches[1][key])
    assert len(shards["web"].files) > 3


def test_held_out_batches_are_those_of_single_files(both):
    for domain in both[0]:
        pairs = [list(loader.eval_batches(f[domain], 32, 4)) for f in both]
        for batches in zip(*pairs, strict=True):
            for key, value in batches[0].items():
                np.testing.assert_array_equal(value, batches[1][key])


def test_tokens_are_indexed_as_an_array(both):
    shards, files = (found["web"] for found in both)
    whole = np.asarray(files.tokens)
    assert len(shards.tokens) == shards.size == len(whole)
    assert shards.dtype == files.dtype
    for start in range(-3, len(whole) + 3, 101):
        for stop in (start, start + 1, start + 700):
            np.testing.assert_array_equal(shards.tokens[start:stop], whole[start:stop])
    assert [shards.tokens[i] for i in (0, 700, -1)] == whole[[0, 700, -1]].tolist()
    with pytest.raises(IndexError):
        shards.tokens[len(whole)]
    with pytest.raises(IndexError, match="steps of 1"):
        shards.tokens[::2]


def test_shards_are_opened_when_they_are_read_and_few_stay_open(done, monkeypatch):
    opened = []
    really = token_files.TokenFile.open
    monkeypatch.setattr(
        token_files.TokenFile, "open", lambda path: opened.append(path) or really(path)
    )
    monkeypatch.setattr(token_shards, "_OPEN", 1)
    web = prepared.open_folder(done).train["web"]
    mixed = loader.Loader([web], length=16, batch_size=4)
    assert not opened
    mixed(0)
    assert opened
    assert web._open.cache_info().currsize == 1


def test_inspection_names_the_source_of_every_document(both):
    found = both[0]
    mixed = loader.Loader(
        mixture.Mixture(list(found.values()), names=list(found)),
        length=512,
        batch_size=8,
    )
    shown = []
    inspect.print_order(mixed, 0, out=shown.append)
    assert any("of law3 from law.jsonl:4" in line for line in shown)
    assert any("from web/more/d.jsonl.zst:" in line for line in shown)


# ------------------------------------------------------------------ command, bucket


def test_the_command_says_what_it_wrote(source, model, tmp_path, capsys):
    model.save(tmp_path / "model")
    out = str(tmp_path / "out")
    argv = ["data", "tokenize", str(source), out, "--tokenizer", f"{tmp_path}/model"]
    for _ in range(2):  # the second time there is nothing to do
        assert cli.run([*argv, "--held-out=0.3"]) == 0
        said = capsys.readouterr().out
        assert "domain  shards  documents  held out" in said
    assert "2 of 2 shards are written already" in said
    assert cli.run(["data", "verify", out]) == 0
    assert "16 files are as the manifest says" in capsys.readouterr().out
    for more, message in (
        (["--workers=0"], "--workers 0 is too few"),
        (["--", "--project=x"], "what follows -- is for a --runner"),
        (["--held-out=0.4"], "held_out_fraction 0.3, not 0.4"),
        (["--held-out=2"], "2.0 held out is not a share"),
    ):
        assert cli.run([*argv, *more]) == 2
        assert message in capsys.readouterr().err


def test_what_follows_two_dashes_is_for_beam():
    argv = ["tokenize", "a", "b", "--tokenizer=t", "--runner=R", "--", "--x=1", "-y"]
    args = cli.parse("data", argv)
    assert (args.source, args.out, args.runner) == ("a", "b", "R")
    assert args.runner_options == ["--x=1", "-y"]


@pytest.mark.oracle
def test_a_bucket_gets_the_same_bytes(done, source, model, monkeypatch):
    with objects_lib.serve() as (objects, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name, data in contents(source).items():
            objects.put(f"text/{name}", data)
        arguments = "gs://bucket/text", "gs://bucket/out", model
        run.tokenize(*arguments, **SMALL)
        names = [name for name in objects.data if name.startswith("out/")]
        written = {n.removeprefix("out/"): objects.data[n] for n in names}
        wanted = contents(done)
        for each in (written, wanted):
            del each["plan.json"]  # names the source
        assert written == wanted
        assert run.verify("gs://bucket/out") > 20
        broken = "out/law/00000-of-00001.record.json"
        del objects.data[broken]
        objects.put("text/law.jsonl", b"{}\n")
        with pytest.raises(errors.UserError, match=r"gs://bucket/text/law.jsonl:1 has"):
            run.tokenize(*arguments, **SMALL)
