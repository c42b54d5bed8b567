"""Files of retrieval: BEIR folders, judgments, runs and results."""

import gzip

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.retrieval import formats, metrics


def write(folder, **named):
    for name, text in named.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")


def beir(folder, corpus=None, queries=None, qrels=None):
    write(
        folder,
        corpus_jsonl=corpus
        or '{"_id": "d1", "title": "T", "text": "x"}\n\n{"_id": 2, "text": "Zürich"}\n',
        queries_jsonl=queries
        or '{"_id": "q1", "text": "?"}\n{"_id": "q2", "text": "!"}\n',
        qrels__test_tsv=qrels or "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\t2\t0\n",
    )


def test_a_beir_folder_is_read(tmp_path):
    beir(tmp_path)
    found = formats.read_beir(tmp_path)
    assert found.corpus.passages() == ["T x", "Zürich"]
    assert found.corpus.ids == ["d1", "2"]
    assert found.queries == {"q1": "?"}
    assert found.qrels == {"q1": {"d1": 1, "2": 0}}
    (tmp_path / "corpus.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    )
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "qrels").rename(tmp_path / "kept")
    (tmp_path / "qrels.dev.tsv").write_text("q2 0 d1 1\n")  # TREC's own columns
    assert formats.read_beir(tmp_path, split="dev").qrels == {"q2": {"d1": 1}}


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("corpus", '{"_id": "d1", "text": "x"}\n{\n', r"corpus.jsonl:2 is not JSON"),
        ("corpus", "[1]\n", r"corpus.jsonl:1 is not a JSON object"),
        ("corpus", '{"text": "x"}', r'corpus.jsonl:1 has no "_id"'),
        ("corpus", '{"_id": "d1"}', r'corpus.jsonl:1 has no string "text"'),
        ("corpus", '{"_id": "d1", "text": "x"}\n' * 2, "id 'd1' comes twice"),
        ("corpus", "\n", "holds no line"),
        ("corpus", r'{"_id": "d\ud83d", "text": "x"}', 'jsonl:1: "_id" holds half'),
        ("corpus", r'{"_id": "d", "text": "\ud83d"}', 'jsonl:1: "text" holds half'),
        ("corpus", r'{"_id": "d\n1", "text": "x"}', "has a tab or a line break"),
        ("queries", r'{"_id": "q\udc00", "text": "x"}', 'jsonl:1: "_id" holds half'),
        ("corpus", '{"_id": "d9", "text": "x"}', "judges document '2', which is not"),
        ("queries", '{"_id": "q9", "text": "x"}', "judges query 'q1', which has no"),
        ("qrels", "query-id\tcorpus-id\n", "test.tsv:1: columns query-id, corpus-id;"),
        ("qrels", "q1\td1\tgood\n", "test.tsv:1: judgment 'good' is not a whole"),
        ("qrels", "q1\td1\t1\nq1\td1\n", "test.tsv:2: 2 columns"),
        (
            "qrels",
            "q1\td1\t1\nq1\td1\t0\n",
            "test.tsv:2: 'd1' was judged 1 before; remove one, or say which counts",
        ),
        ("qrels", "query-id\tcorpus-id\tscore\n", "holds no judgment of split 'test'"),
    ],
)
def test_malformed_files_are_named_by_line(part, text, message, tmp_path):
    beir(tmp_path, **{part: text})
    with pytest.raises(errors.UserError, match=message):
        formats.read_beir(tmp_path)


@pytest.mark.parametrize(
    ("which", "kept"), [("max", (2, 1)), ("first", (1, 1)), ("last", (2, 0))]
)
def test_of_two_judgments_of_a_pair_the_one_that_is_named_counts(which, kept, tmp_path):
    file = tmp_path / "qrels.tsv"
    file.write_text("q 0 a 1\nq 0 b 1\nq 0 a 2\nq 0 b 0\nq 0 a 2\n")
    found = formats.read_qrels(file, duplicates=which)["q"]
    assert (found["a"], found["b"]) == kept
    with pytest.raises(errors.UserError, match=r"--duplicates=max\|first\|last"):
        formats.read_qrels(file)


def test_bytes_that_are_not_text_or_not_there_are_said(tmp_path):
    beir(tmp_path)
    with pytest.raises(
        errors.UserError, match=r"has no qrels/dev.tsv or qrels.dev.tsv"
    ):
        formats.read_beir(tmp_path, split="dev")
    (tmp_path / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "?"}\n\xff\n')
    with pytest.raises(errors.UserError, match=r"queries.jsonl:2 is not UTF-8"):
        formats.read_beir(tmp_path)
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(errors.UserError, match="cannot be read"):
        formats.read_corpus(tmp_path / "c.gz")


def test_the_real_sets_are_read(test_data):
    scifact = formats.read_beir(test_data / "scifact")
    assert (len(scifact.corpus.ids), len(scifact.queries)) == (5183, 300)
    assert sum(map(len, scifact.qrels.values())) == 339
    train = formats.read_qrels(test_data / "scifact" / "qrels.train.tsv")
    assert (len(train), sum(map(len, train.values()))) == (809, 919)
    german = formats.read_beir(test_data / "xquad", name="de")
    assert len(german.queries) == 1190
    finnish = formats.read_beir(test_data / "tydiqa_goldp", name="fi", split="dev")
    assert all(query.startswith("fi-dev") for query in finnish.qrels)


def test_a_run_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "run.txt"
    run = metrics.as_run(
        ["q1", "q2"],
        np.array([[0.1, 0.1], [-3.0, -1e-20]], np.float32),
        np.array([["a", "b"], ["c", "d"]], object),
    )
    formats.write_run(path, run, tag="t")
    assert path.read_text().splitlines()[:2] == ["q1 Q0 b 1 0.1 t", "q1 Q0 a 2 0.1 t"]
    again = formats.read_run(path)
    for query, scores in run.items():
        assert {d: np.float32(s) for d, s in again[query].items()} == scores
    formats.write_run(tmp_path / "again.txt", again, tag="t")
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()
    for text, message in (
        ("q Q0 d 1 0.5\n", "run.txt:1: 5 columns"),
        ("q Q0 d 1 x t\n", "run.txt:1: 'x' is not a number"),
        ("q Q0 d 1 1 t\n" * 2, "run.txt:2: 'd' comes twice"),
    ):
        path.write_text(text)
        with pytest.raises(errors.UserError, match=message):
            formats.read_run(path)
    with pytest.raises(errors.UserError, match="'a b' cannot be a column"):
        formats.write_run(path, {"q": {"a b": 1.0}})


def test_results_have_one_line_per_query_and_values_in_full(tmp_path):
    path = tmp_path / "results.tsv"
    values = {"map": np.array([1 / 3, 0.0]), "ndcg@10": np.array([0.1, 1.0])}
    formats.write_results(path, metrics.Evaluation(("q1", "q 2"), values))
    head, *rows = (line.split("\t") for line in path.read_text().splitlines())
    assert head == ["query-id", "map", "ndcg@10"]
    assert [row[0] for row in rows] == ["q1", "q 2"]
    for i, name in enumerate(values, start=1):
        assert [float(row[i]) for row in rows] == values[name].tolist()
    for query in ("q\tx", "q\nx", ""):
        evaluation = metrics.Evaluation((query,), {"map": np.zeros(1)})
        with pytest.raises(errors.UserError, match="cannot be a line of results"):
            formats.write_results(path, evaluation)


def test_a_split_of_judgments_without_such_a_column_is_refused(tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert formats.read_qrels(path, split="test") == {"q": {"d": 1}}
    with pytest.raises(errors.UserError, match="no column split; leave out --split"):
        formats.read_qrels(path, split="test", has_split=True)
