"""Shards: the same bytes by every engine, resumed, in a bucket."""

import gzip
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from jaxlab import cli
from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import split
from jaxlab.data.shards import beam, plan, run
from jaxlab.data.tokenizers import sentence_pieces
from tests.support import corpora
from tests.support import objects as objects_lib

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {"held_out_fraction": 0.25, "seed": 3, "shard_bytes": 1500}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return corpora.write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(source):
    return sentence_pieces.train(prepared.training_texts(source), 330)


@pytest.fixture(scope="module")
def done(source, model, tmp_path_factory):
    """The shards, written in this process."""
    out = tmp_path_factory.mktemp("shards") / "out"
    run.tokenize(str(source), str(out), model, **SMALL)
    return out


def test_the_manifest_says_what_was_written(done, source, model):
    manifest = json.loads((done / "manifest.json").read_text())
    files = {n: e for record in manifest["shards"] for n, e in record["files"].items()}
    written = corpora.contents(done)
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
        for document in documents_lib.read_documents(path, domain=domain)
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
        assert all(split.hash_share(text, 3) < 0.25 for text in kept)


def test_several_processes_write_the_same_bytes(done, source, model, tmp_path):
    engine = run.in_processes(2)
    run.tokenize(str(source), str(tmp_path / "o"), model, engine=engine, **SMALL)
    assert corpora.contents(tmp_path / "o") == corpora.contents(done)


@pytest.mark.oracle
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_beam_writes_the_same_bytes(done, source, model, tmp_path, mode):
    options = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    engine = beam.engine("DirectRunner", options)
    run.tokenize(str(source), str(tmp_path / "o"), model, engine=engine, **SMALL)
    assert corpora.contents(tmp_path / "o") == corpora.contents(done)


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
    with pytest.raises(errors.UserError, match=r"pip install -e '.\[beam\]'"):
        beam.engine("DirectRunner")


# A process that is killed when it is about to give the n-th file its name, for every n
# given; forked, since each import of the package takes seconds.
KILLED = """
import os, signal, sys
from jaxlab.data.shards import run, worker
from jaxlab.data import tokenizers
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
    run.tokenize(source, out, tokenizers.load(model), **{settings})
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
    assert corpora.contents(out) == corpora.contents(done)
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
    written, wanted = corpora.contents(out), corpora.contents(done)
    for each in (written, wanted):
        del each["plan.json"]  # names the source and the bytes of before
    assert written == wanted


def test_a_file_that_changed_after_its_shard_was_written_is_named(copy, model):
    tokenize(copy, model)
    with (copy / "law.jsonl").open("ab") as file:
        file.write(corpora.lines("new", 2))
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
    other = sentence_pieces.train(prepared.training_texts(source), 320)
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
        run._lock(f"{copy}.out"),
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


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plan.json", {"settings": None}),
        ("plan.json", {"shards": [5]}),
        ("law/00000-of-00001.record.json", {"files": "x"}),
        ("law/00000-of-00001.record.json", {"sources": [3]}),
        ("law/00000-of-00001.record.json", {"train": {"documents": None}}),
    ],
)
def test_a_file_of_other_types_is_one_line(source, done, model, tmp_path, name, change):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps(before | change))
    with pytest.raises(errors.UserError, match=f"{name} is damaged"):
        run.tokenize(str(source), str(out), model, **SMALL)


# ------------------------------------------------------------------ held out


@pytest.fixture
def small_domains(copy):
    """Beside web and law, domains in which the limit of held-out documents moves."""
    for name, texts in {
        "two": ["one text", "another"],
        "same": ["the same"] * 4,
        "blank": ["one", " ", "other", ""],
    }.items():
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (copy / f"{name}.jsonl").write_text(rows)
    (copy / "spread").mkdir()
    for i in range(6):
        (copy / "spread" / f"{i}.txt").write_text(f"text {i // 2}")
    return copy


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.99])
def test_held_out_is_what_prepare_holds_out(small_domains, model, tmp_path, fraction):
    tokenize(small_domains, model, held_out_fraction=fraction, shard_bytes=10)
    out = tmp_path / "prepared"
    model.save(tmp_path / "model")
    files = prepared.prepare(
        str(small_domains),
        out,
        tokenizer=str(tmp_path / "model"),
        held_out_fraction=fraction,
        seed=SMALL["seed"],
    )
    shards = prepared.open_folder(f"{small_domains}.out")
    for domain in ("web", "law", "two", "same", "blank", "spread"):
        for single, several in (
            (files.train[domain], shards.train[domain]),
            (files.held_out[domain], shards.held_out[domain]),
        ):
            assert several.tokens[:].tolist() == single.tokens.tolist()
            ids = [
                [f.span(i).id for i in range(len(f.ends))] for f in (single, several)
            ]
            assert ids[0] == ids[1]


def test_what_was_begun_by_the_fraction_alone_continues_with_the_one_rule(
    small_domains, model, monkeypatch
):
    """Commit 865b6a5 ended in an error where a domain had nothing on one side."""
    with monkeypatch.context() as patched:
        patched.setattr(
            split,
            "find_rule",
            lambda _, fraction, seed, domain: split.Rule(fraction, seed),
        )
        with pytest.raises(errors.UserError, match="has no held out documents"):
            tokenize(small_domains, model, held_out_fraction=0.05)
    records = list(pathlib.Path(f"{small_domains}.out").glob("*/*.record.json"))
    before = {path: path.read_bytes() for path in records}
    assert not any(b'"rule"' in record for record in before.values())
    manifest = tokenize(small_domains, model, held_out_fraction=0.05)
    again = {path for path in records if path.read_bytes() != before[path]}
    assert {path.parent.name for path in again} >= {"two", "same", "blank", "spread"}
    assert any(path.parent.name == "web" for path in {*records} - again)
    fresh = shutil.copytree(small_domains, small_domains.with_name("fresh"))
    assert tokenize(fresh, model, held_out_fraction=0.05) == manifest


def test_a_rule_is_found_without_reading_the_whole_corpus(
    source, model, tmp_path, monkeypatch
):
    read = []
    really = documents_lib.read_file
    monkeypatch.setattr(
        documents_lib,
        "read_file",
        lambda *names: read.append(names[1]) or really(*names),
    )
    job = plan.Job("", str(tmp_path), 0.25, 3, model.fingerprint, {})
    job, shards = plan.make_plan(str(source), job, 1)
    assert run._find_rules(job, shards).keys() == {"law", "web"}
    assert read == ["law.jsonl", "a.jsonl"]


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
        for name, data in corpora.contents(source).items():
            objects.put(f"text/{name}", data)
        arguments = "gs://bucket/text", "gs://bucket/out", model
        run.tokenize(*arguments, **SMALL)
        names = [name for name in objects.data if name.startswith("out/")]
        written = {n.removeprefix("out/"): objects.data[n] for n in names}
        wanted = corpora.contents(done)
        for each in (written, wanted):
            del each["plan.json"]  # names the source
        assert written == wanted
        assert run.verify("gs://bucket/out") > 20
        broken = "out/law/00000-of-00001.record.json"
        del objects.data[broken]
        objects.put("text/law.jsonl", b"{}\n")
        with pytest.raises(errors.UserError, match=r"gs://bucket/text/law.jsonl:1 has"):
            run.tokenize(*arguments, **SMALL)
