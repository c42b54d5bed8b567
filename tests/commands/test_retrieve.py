"""`jaxlab retrieve`: an index, searches, feedback and measures, by the command."""

import gzip
import json
import pathlib
import shutil
import string
import sys

import pytest
import tokenizers

from jaxlab import cli
from jaxlab.core import installation
from jaxlab.retrieval import formats, metrics
from jaxlab.systems.refit import corpus_index

MODELS = pathlib.Path(__file__).parents[1] / "values" / "bert"


def write_lines(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture
def corpus(tmp_path):
    words = ["stars", "猫は魚を食べる", "law of the sea", "кошка", "", "soup " * 200]
    rows = [{"_id": f"d{i}", "title": "", "text": x} for i, x in enumerate(words)]
    write_lines(tmp_path / "corpus.jsonl.gz", rows)
    asked = [{"_id": "a", "text": "the sea"}, {"_id": "b", "text": "long " * 300}]
    write_lines(tmp_path / "queries.jsonl", asked)
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\na\td2\t1\nb\td5\t1\n"
    )
    vocab = [f"[{x}]" for x in ("PAD", "UNK", "CLS", "SEP")] + [*string.ascii_lowercase]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({x: i for i, x in enumerate(vocab)})
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    for name in ("bert", "bert_scorer"):
        shutil.copytree(MODELS / name, tmp_path / name)
        model.save(str(tmp_path / name / "tokenizer.json"))
    return tmp_path


def command(*words):
    return cli.run(["retrieve", *map(str, words)])


@pytest.mark.slow
def test_a_corpus_is_indexed_searched_refitted_and_evaluated(corpus, capsys):
    index, out = corpus / "index", corpus / "out"
    texts = corpus / "corpus.jsonl.gz"
    made = ("--corpus", texts, "--encoder", corpus / "bert")
    assert command("index", index, *made, "--mesh", "data=2,fsdp=4") == 0
    assert command("search", index, "--query", "the sea", "--k", "99") == 0
    printed = capsys.readouterr().out
    assert len([x for x in printed.splitlines() if x.startswith("  ")]) == 6
    given = ("--index", index, "--queries", corpus / "queries.jsonl")
    judged = ("--qrels", corpus / "qrels.tsv")
    reranker = ("--reranker", corpus / "bert_scorer")
    three = (*reranker, "--k", "3", "--depth", "6")
    assert command("refit", out, *given, *judged, *three) == 0
    printed = capsys.readouterr().out
    assert "recall@3" in printed
    assert "recall@100" not in printed
    again = corpus / "prior"
    assert command("refit", again, *given, *three, "--prior", "50") == 0
    found = [formats.read_run(x / "runs" / "rerank_2k.trec")["a"] for x in (out, again)]
    opened = corpus_index.open_index(index)
    asked = corpus_index.vectors(opened.encoder, ["the sea"]).vectors[0]
    for row, each in enumerate(opened.corpus.ids):
        added = found[1][each] - found[0][each]
        assert added == pytest.approx(
            50 * opened.index.take([row])[0] @ asked, abs=1e-4
        )
    capsys.readouterr()
    runs = [out / "runs" / f"{name}.trec" for name in ("rerank", "refit")]
    assert command("evaluate", *runs, *judged, "--out", corpus / "by_query") == 0
    assert "refit less rerank, ndcg@10" in capsys.readouterr().out
    assert (corpus / "by_query" / "refit.tsv").is_file()
    assert command("refit", corpus / "bare", *given, *reranker, "--rows", "refit") == 0
    assert "ndcg" not in capsys.readouterr().out


def test_an_index_made_twice_is_the_same_bytes_and_grows(corpus):
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", corpus / "bert")
    folders = [corpus / "one", corpus / "two"]
    for folder in folders:
        assert command("index", folder, *made) == 0
    names = sorted(x.name for x in folders[0].iterdir())
    for name in names:
        same = [(folder / name).read_bytes() for folder in folders]
        assert same[0] == same[1]
    write_lines(
        corpus / "more.jsonl",
        [{"_id": "d1", "text": "again"}, {"_id": "new", "text": "a new one"}],
    )
    grown = ("--corpus", corpus / "more.jsonl", "--encoder", corpus / "bert")
    assert command("index", folders[0], *grown, "--append") == 0
    opened = corpus_index.open_index(folders[0])
    assert len(opened.index) == 7
    assert opened.corpus.passages()[1] == "猫は魚を食べる"  # the first text stays
    assert command("index", folders[0], *grown, "--append") == 2


def test_mistakes_are_one_line(corpus, capsys):
    index, bert = corpus / "index", corpus / "bert"
    (corpus / "empty.jsonl").write_text("")
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", bert)
    assert command("index", index, *made) == 0
    capsys.readouterr()
    cases = {
        "holds no line": (
            "index", corpus / "x", "--corpus", corpus / "empty.jsonl", "--encoder", bert
        ),
        "scores pairs": (
            "index", corpus / "x", *made[:3], corpus / "bert_scorer"
        ),
        "--length 9999 is beyond the model's": (
            "index", corpus / "x", *made, "--length", "9999"
        ),
        "--length 0; use 1 or more": ("index", corpus / "x", *made, "--length", "0"),
        "--length 9998 is beyond the model's": (
            "refit", corpus / "o", "--index", index, "--length", "9998", "--queries",
            corpus / "queries.jsonl", "--reranker", corpus / "bert_scorer",
        ),
        "no queries": ("search", index),
        "--query is empty": ("search", index, "--query", " "),
        "half a surrogate pair": ("search", index, "--query", "caf\udce9"),
        "--limit -1": (
            "refit", corpus / "o", "--index", index, "--limit", "-1", "--queries",
            corpus / "queries.jsonl", "--reranker", bert,
        ),
        "name an INDEX": ("search", "--query", "a"),
        "use 1 or more": ("search", index, "--query", "a", "--k", "0"),
        "does not score pairs": (
            "refit", corpus / "o", "--index", index, "--queries",
            corpus / "queries.jsonl", "--reranker", bert,
        ),
        "does not exist; make an index": ("search", corpus / "nothing", "--query", "a"),
    }  # fmt: skip
    for words, case in cases.items():
        assert command(*case) == 2, words
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1


def test_runs_of_one_file_name_get_a_file_of_values_each(tmp_path):
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    runs = [tmp_path / name / "run.trec" for name in ("a", "b")]
    for run in runs:
        run.parent.mkdir()
        run.write_text("q Q0 d 1 0.5 t\n")
    out = ("--qrels", tmp_path / "qrels.tsv", "--out", tmp_path / "out")
    assert command("evaluate", *runs, *out) == 0
    assert len([*(tmp_path / "out").iterdir()]) == 2


def test_prefixes_are_those_of_the_folder_or_of_the_flags(corpus, capsys):
    rows = [{"_id": f"d{i}", "text": x} for i, x in enumerate(["stars", "law", "sea"])]
    write_lines(corpus / "plain.jsonl", rows)
    before = [row | {"text": f"ab {row['text']}"} for row in rows]
    write_lines(corpus / "before.jsonl", before)
    bert, told = corpus / "bert", corpus / "told"
    shutil.copytree(bert, told)
    prompts = {"prompts": {"query": "xy ", "passage": "ab "}}
    (told / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    ours = ("--corpus", corpus / "plain.jsonl", "--encoder")
    flags = ("--query-prefix", "xy ", "--document-prefix", "ab ")
    made = {
        "spelled": ("--corpus", corpus / "before.jsonl", "--encoder", bert),
        "flags": (*ours, bert, *flags),
        "folder": (*ours, told),
    }
    vectors, found = {}, {}
    for name, options in made.items():
        assert command("index", corpus / name, *options) == 0
        said = capsys.readouterr().out
        assert ("no prompts" in said) == (name == "spelled")
        vectors[name] = (corpus / name / "vectors.bin").read_bytes()
        query = "xy the sea" if name == "spelled" else "the sea"
        assert command("search", corpus / name, "--query", query) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        found[name] = [line.split()[:2] for line in lines]
    assert len({*vectors.values()}) == 1
    assert found["spelled"] == found["flags"] == found["folder"]
    assert (
        command("search", corpus / "flags", "--query", "a", "--query-prefix", "") == 0
    )
    more = ("--corpus", corpus / "more.jsonl", "--encoder", bert, "--append")
    write_lines(corpus / "more.jsonl", [{"_id": "new", "text": "a new one"}])
    assert command("index", corpus / "flags", *more) == 0  # with its own prefixes
    capsys.readouterr()
    assert command("index", corpus / "spelled", *more, *flags) == 2
    assert "document_prefix None, not 'ab '" in capsys.readouterr().err


def test_an_index_of_before_prompts_were_followed_goes_on_as_it_was(corpus, capsys):
    bert, index = corpus / "bert", corpus / "index"
    prompts = {"prompts": {"query": "xy ", "passage": "ab "}}
    (bert / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    plain = ("--query-prefix", "", "--document-prefix", "")
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", bert)
    assert command("index", index, *made, *plain) == 0
    assert "texts" not in json.loads((index / "index.json").read_text())["made_from"]
    (index / "texts.bin").unlink()  # nor was there this one
    corpus_index.open_index(index)
    assert "was made before" not in capsys.readouterr().err  # the flags said so
    source = json.loads((index / "source.json").read_text())
    del source["encoder_says"]
    (index / "source.json").write_text(json.dumps(source))
    opened = corpus_index.open_index(index)
    assert opened.encoder.config.query("a") == "a"
    write_lines(corpus / "more.jsonl", [{"_id": "new", "text": "a new one"}])
    more = ("--corpus", corpus / "more.jsonl", "--encoder", bert, "--append")
    assert command("index", index, *more) == 0
    capsys.readouterr()
    assert command("search", index, "--query", "a") == 0
    told = capsys.readouterr().err
    assert "was made before query_prefix 'xy ', document_prefix 'ab ' of" in told
    assert command("search", index, "--query", "a", "--query-prefix", "") == 0
    assert "was made before document_prefix" in capsys.readouterr().err


def test_an_encoder_that_was_changed_is_another(corpus, capsys):
    bert, index = corpus / "bert", corpus / "index"
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    settings = {
        "modules.json": [{"path": x, "type": kinds[x]} for x in kinds],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": 16},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "tokenizer_config.json": {},
    }
    for name, value in settings.items():
        (bert / name).parent.mkdir(exist_ok=True)
        (bert / name).write_text(json.dumps(value))
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", bert)
    assert command("index", index, *made) == 0
    for name in (*settings, "tokenizer.json"):
        file = bert / name
        text = file.read_text()
        file.write_text(text.replace("}", " }", 1))
        for case in (("search", index, "--query", "a"), ("index", index, *made)):
            capsys.readouterr()
            assert command(*case) == 2
            assert "another encoder" in capsys.readouterr().err, name
        file.write_text(text)
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    description = json.loads((index / "index.json").read_text())
    del description["made_from"]["files"]  # as it was before
    (index / "index.json").write_text(json.dumps(description))
    assert command("search", index, "--query", "a") == 0
    assert command("index", index, *made) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_second_index_is_up_to_date_or_refused(corpus, capsys):
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", corpus / "bert")
    for word in ("were cut at", "up to date"):
        assert command("index", corpus / "index", *made) == 0
        assert word in capsys.readouterr().out
    write_lines(corpus / "other.jsonl", [{"_id": "new", "text": "a new one"}])
    for changes in (("--corpus", corpus / "other.jsonl"), ("--dtype", "bfloat16")):
        assert command("index", corpus / "index", *made, *changes) == 2
        assert "--append" in capsys.readouterr().err


def test_a_text_that_is_not_that_of_its_vector_is_told(corpus, capsys):
    index, texts = corpus / "index", corpus / "texts.jsonl"
    rows = [{"_id": "a", "text": "one"}, {"_id": "b", "text": "two"}]
    write_lines(texts, rows)
    made = ("--corpus", texts, "--encoder", corpus / "bert")
    assert command("index", index, *made) == 0
    assert command("search", index, "--query", "one") == 0
    assert "another text" not in capsys.readouterr().err
    write_lines(texts, [{"_id": "a", "text": "other"}, *rows[1:]])
    assert command("search", index, "--query", "one") == 0
    assert "1 documents have another text" in capsys.readouterr().err
    write_lines(texts, [{"_id": "a", "text": "other"}, {"_id": "c", "text": "three"}])
    assert command("index", index, *made, "--append") == 0
    assert "e.g. 'a'" in capsys.readouterr().err


def test_a_document_that_is_its_own_query_is_left_out_and_told(tmp_path, capsys):
    judged, run = tmp_path / "qrels.tsv", tmp_path / "run.trec"
    judged.write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nz\tz\t1\n")
    run.write_text("q Q0 q 1 9 t\nq Q0 a 2 5 t\nz Q0 z 1 9 t\n")
    case = ("evaluate", run, "--qrels", judged, "--metrics", "mrr@10")
    for flag, value in (((), "1.0000"), (("--keep-identical",), "0.7500")):
        assert command(*case, *flag) == 0
        said = capsys.readouterr()
        assert value in said.out
        assert ("run: 1 queries have the identical id" in said.err) == (not flag)
    assert command("evaluate", run, *case[1:], "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"]["run"] == {"mrr@10": 1.0, "missing": []}
    few = {"difference": 0.0, "low": None, "high": None}  # of six queries and more
    assert found["less_first"] == {"run-2": {"mrr@10": few}}


def test_a_search_leaves_out_a_querys_own_document(corpus, capsys):
    pytest.importorskip("bm25s")
    queries, run = corpus / "own.jsonl", corpus / "run.trec"
    rows = [("d0", "stars"), ("d2", "law of the sea"), ("z", "stars")]
    write_lines(queries, [{"_id": x, "text": text} for x, text in rows])
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", corpus / "bert")
    assert command("index", corpus / "index", *made) == 0
    for stage in ("encoder", "bm25"):
        for k in ("2", "9"):
            given = (corpus / "index", "--queries", queries, "--first-stage", stage)
            case = ("search", *given, "--run", run, "--k", k)
            assert command(*case) == 0
            assert "2 queries have the identical id" in capsys.readouterr().err
            mine = formats.read_run(run)
            assert command(*case, "--keep-identical") == 0
            assert "identical" not in capsys.readouterr().err
            kept = formats.read_run(run)
            assert mine["z"] == kept["z"]
            assert "d2" in kept["d2"]
            if stage == "encoder":
                assert [len(mine[x]) for x in ("d0", "z")] == [
                    min(int(k), n) for n in (5, 6)
                ]
            assert not any(x in mine.get(x, {}) for x in ("d0", "d2"))


def test_as_many_documents_are_printed_as_one_reads(corpus, capsys):
    rows = [{"_id": f"d{i}", "text": "star \x1b[2K" * i} for i in range(12)]
    write_lines(corpus / "many.jsonl", rows)
    index, run = corpus / "index", corpus / "run.trec"
    made = ("--corpus", corpus / "many.jsonl", "--encoder", corpus / "bert")
    assert command("index", index, *made) == 0
    capsys.readouterr()
    assert command("search", index, "--query", "a") == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 11
    assert r"star \x1b[2K" in said
    assert "\x1b" not in said  # a text of others does not command the terminal
    assert command("search", index, "--query", "a", "--run", run) == 0
    assert len(run.read_text().splitlines()) == 12
    source = json.loads((index / "source.json").read_text())
    for change in ({"corpora": []}, {"corpora": 3}, {"encoder": []}, {"length": "9"}):
        (index / "source.json").write_text(json.dumps(source | change))
        assert command("search", index, "--query", "a") == 2
        (key,) = change
        assert f"source.json: {key} is" in capsys.readouterr().err


# ------------------------------------------------------------------ BM25


@pytest.mark.parametrize("action", ["search", "refit"])
def test_bm25_without_its_extra_ends_in_one_line(corpus, capsys, monkeypatch, action):
    monkeypatch.setitem(sys.modules, "bm25s", None)  # as if it were not installed
    queries = ("--queries", corpus / "queries.jsonl")
    case = ("search", "--corpus", corpus / "corpus.jsonl.gz", *queries)
    if action == "refit":
        reranker = ("--reranker", corpus / "bert_scorer")
        case = ("refit", corpus / "out", "--index", corpus / "i", *queries, *reranker)
    assert command(*case, "--first-stage", "bm25") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith(installation.how_to_add("bm25"))
    assert len(error.splitlines()) == 1


@pytest.mark.oracle
def test_bm25_searches_a_corpus_without_an_encoder(corpus, capsys):
    texts = ("--first-stage", "bm25", "--corpus", corpus / "corpus.jsonl.gz")
    run = corpus / "bm25.trec"
    queries = ("--queries", corpus / "queries.jsonl")
    assert command("search", *texts, *queries, "--run", run) == 0
    assert {q: [*x] for q, x in formats.read_run(run).items()} == {"a": ["d2"]}
    capsys.readouterr()
    assert command("search", *texts, "--query", "soup of the STARS") == 0
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert sorted(shown) == ["d0", "d5"]
    judged = ("--qrels", corpus / "qrels.tsv")
    assert command("evaluate", run, *judged, "--metrics", "recall@10") == 0
    assert "0.5000" in capsys.readouterr().out  # of b no document has a word
    assert command("search", "--first-stage", "bm25", "--query", "x") == 2
    assert "name an INDEX, or --corpus FILE" in capsys.readouterr().err


@pytest.mark.oracle
def test_bm25_gives_the_first_documents_of_feedback(corpus, capsys):
    index, out = corpus / "index", corpus / "out"
    made = ("--corpus", corpus / "corpus.jsonl.gz", "--encoder", corpus / "bert")
    assert command("index", index, *made) == 0
    by_words = corpus / "words.trec"
    queries = ("--queries", corpus / "queries.jsonl")
    words = ("--first-stage", "bm25")
    assert command("search", index, *words, *queries, "--run", by_words) == 0
    given = ("--index", index, *queries, "--reranker", corpus / "bert_scorer")
    options = ("--k", "1", "--depth", "6", "--qrels", corpus / "qrels.tsv")
    rows = ("--rows", "bi-encoder,bm25,rerank,refit")
    assert command("refit", out, *given, *options, *rows, *words) == 0
    runs = {path.stem: formats.read_run(path)["a"] for path in (out / "runs").glob("*")}
    assert {*runs} == {"bi-encoder", "bm25", "rerank", "refit"}
    assert metrics.ranking(runs["bm25"])[0] == "d2"
    assert runs["bm25"]["d2"] == formats.read_run(by_words)["a"]["d2"]
    # Of k = 1 the reranker reads one document, the first by words, and keeps it first.
    assert metrics.ranking(runs["rerank"])[0] == "d2"
    assert "d2" in metrics.ranking(runs["refit"])[:2]
    capsys.readouterr()
    assert command("refit", out, *given, *options, "--rows", "bm25") == 2
    assert "no row bm25" in capsys.readouterr().err
