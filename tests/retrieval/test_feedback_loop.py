"""The loop of retrieval and reranking, its files, and `jaxlab retrieve`."""

import functools
import gzip
import json
import pathlib
import shutil
import string

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import cli, retrieval
from jaxlab.core import errors
from jaxlab.retrieval import feedback_loop, formats, metrics, rerank
from jaxlab.systems.refit import comparison, corpus_index, report

MODELS = pathlib.Path(__file__).parents[1] / "values" / "bert"
relative = functools.partial(
    retrieval.refit_queries, relative=True, learning_rate=0.05, num_updates=20
)


class Asked:
    """A reranker that likes what is near hidden vectors, and counts."""

    def __init__(self, vectors, wanted):
        self.vectors, self.wanted, self.pairs = vectors, wanted, []

    def __call__(self, queries, rows):
        self.pairs += zip(queries.tolist(), rows.tolist(), strict=True)
        return 5 * np.sum(self.wanted[queries] * self.vectors[rows], axis=1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed=0, documents=300, queries=20, dim=16):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(documents, dim))).astype(np.float32)
    asked = unit(rng.normal(size=(queries, dim))).astype(np.float32)
    wanted = asked + 0.5 * rng.normal(size=asked.shape).astype(np.float32)
    return retrieval.Index(vectors), asked, Asked(vectors, wanted)


def found_share(answer, reranker, depth=20):
    """Of the documents that the reranker likes best among all."""
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :depth]
    held = [len({*a} & {*b}) for a, b in zip(answer.rows, best, strict=True)]
    return np.mean(held) / depth


# ---- the loop ----


def test_feedback_finds_what_a_larger_pool_does_not():
    index, queries, reranker = problem()
    pool = feedback_loop.retrieve_and_rerank(
        index, queries, reranker, pool=60, depth=30
    )
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=30, depth=30
    )
    assert answer.reranked.max() <= 60
    assert found_share(answer, reranker) > found_share(pool, reranker) + 0.05


def test_a_union_is_the_rerankers_order_of_both_rounds():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, depth=30
    )
    _, before = index.search_rows(queries, 10)
    _, after = index.search_rows(answer.queries, 30)
    for i, (rows, scores) in enumerate(zip(answer.rows, answer.scores, strict=True)):
        union = list(dict.fromkeys([*before[i], *after[i, :10]]))
        told = 5 * reranker.vectors[union] @ reranker.wanted[i]
        order = np.argsort(-told, kind="stable")
        rest = [row for row in after[i] if row not in union]
        assert rows.tolist() == [*np.array(union)[order], *rest][:30]
        np.testing.assert_allclose(scores[: len(union)], told[order], atol=1e-5)
        assert (np.diff(scores) <= 0).all()


def test_no_pair_is_scored_twice_and_all_are_counted():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=10, batch=7
    )
    assert len({*reranker.pairs}) == len(reranker.pairs) == answer.reranked.sum()


def test_second_is_a_search_with_the_new_queries():
    index, queries, reranker = problem()
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, merge="second", k=10, depth=15
    )
    scores, rows = index.search_rows(answer.queries, 15)
    np.testing.assert_array_equal(answer.rows, rows)
    np.testing.assert_array_equal(answer.scores, scores)
    assert (answer.reranked == 10).all()


def test_fused_ranks_are_summed_reciprocals():
    index = retrieval.Index(np.eye(4))
    likes = np.array([0.0, 1.0, 9.0, 0.0])

    def stays(queries, candidates, scores):
        return retrieval.RefitResult(queries, None, None)

    answer = feedback_loop.feedback(
        index, np.array([[4.0, 3.0, 2.0, 1.0]]), lambda q, r: likes[r], update=stays,
        merge="rrf", k=3, depth=4,
    )  # fmt: skip
    # Reranked 2, 1, 0; second round 0, 1, 2, 3.
    wanted = {0: 1 / 63 + 1 / 61, 1: 1 / 62 + 1 / 62, 2: 1 / 61 + 1 / 63, 3: 1 / 64}
    assert answer.rows.tolist() == [[2, 0, 1, 3]]
    np.testing.assert_allclose(answer.scores[0], [wanted[i] for i in (2, 0, 1, 3)])


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 30), st.sampled_from(feedback_loop.MERGES))
def test_answers_do_not_depend_on_the_batch(batch, merge):
    index, queries, reranker = problem()
    one, other = (
        feedback_loop.feedback(
            index, queries, reranker, update=relative, merge=merge, k=10, batch=size
        )
        for size in (20, batch)
    )
    np.testing.assert_array_equal(one.rows, other.rows)


def test_tour_reads_at_most_its_turns_and_ranks_them_first():
    index, queries, reranker = problem()
    answer = feedback_loop.tour(index, queries, reranker, depth=40)
    assert answer.reranked.min() >= 10
    assert answer.reranked.max() <= 30
    for i, count in enumerate(answer.reranked):
        read = {row for query, row in reranker.pairs if query == i}
        assert {*answer.rows[i, :count].tolist()} == read


@pytest.mark.parametrize("merge", feedback_loop.MERGES)
def test_a_corpus_smaller_than_k_is_ranked_whole(merge):
    index, queries, reranker = problem(documents=7)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, merge=merge
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(7)]] * 20


def test_duplicates_and_vectors_of_zeros_are_ranked_once_each():
    vectors = np.zeros((9, 4), np.float32)
    vectors[:4] = [1, 0, 0, 0]
    index = retrieval.Index(vectors)
    reranker = Asked(vectors, np.zeros((2, 4), np.float32))
    queries = np.array([[1.0, 2, 0, 0], [0, 0, 0, 0]], np.float32)
    answer = feedback_loop.feedback(
        index, queries, reranker, update=relative, k=3, depth=9
    )
    assert [sorted(rows) for rows in answer.rows.tolist()] == [[*range(9)]] * 2
    np.testing.assert_array_equal(answer.queries, queries)  # equal scores teach nothing


def test_a_score_that_is_no_number_names_query_and_document():
    index, queries, _ = problem()
    with pytest.raises(errors.UserError, match=r"gave nan for query 0 and document \d"):
        feedback_loop.retrieve_and_rerank(
            index, queries, lambda q, r: np.full(len(q), np.nan)
        )
    with pytest.raises(errors.UserError, match=r"shape \(1,\) for 2000 pairs"):
        feedback_loop.retrieve_and_rerank(index, queries, lambda q, r: np.zeros(1))
    with pytest.raises(errors.UserError, match="use one of union_rerank"):
        feedback_loop.feedback(index, queries, lambda q, r: q, merge="best")


# ---- kept scores ----


def test_kept_scores_survive_a_kill_in_the_middle_of_a_record(tmp_path):
    path, asked = tmp_path / "scores.bin", []

    def score(queries, rows):
        asked.append(len(queries))
        return queries + rows / 8

    first = rerank.CachedReranker(score, path, made_from="one", at_once=3)
    queries, rows = np.arange(6), np.arange(6)[::-1]
    expected = first(queries, rows)
    path.write_bytes(path.read_bytes()[:-5])
    again = rerank.CachedReranker(score, path, made_from="one")
    np.testing.assert_array_equal(again(queries, rows), expected)
    assert asked == [3, 3, 1]
    assert again.pairs == 6
    assert again.seconds > 0
    third = rerank.CachedReranker(score, path, made_from="one")
    np.testing.assert_array_equal(third(queries, rows), expected)
    assert asked == [3, 3, 1]
    with pytest.raises(errors.UserError, match="other models or texts"):
        rerank.CachedReranker(score, path, made_from="two")


def test_a_pair_that_comes_twice_is_asked_once_and_charged_twice():
    asked = []
    kept = rerank.CachedReranker(lambda q, r: asked.append(len(q)) or np.ones(len(q)))
    assert kept(np.array([1, 1, 2]), np.array([0, 0, 0])).tolist() == [1, 1, 1]
    assert asked == [2]
    assert kept.pairs == 3
    assert kept(np.zeros(0, int), np.zeros(0, int)).shape == (0,)


# ---- the comparison ----


def test_a_comparison_writes_runs_measures_and_a_page(tmp_path):
    index, vectors, reranker = problem()
    best = np.argsort(-reranker.wanted @ reranker.vectors.T, axis=1)[:, :5]
    names = [f"q{i}" for i in range(len(vectors))]
    qrels = {
        name: {str(row): 1 for row in rows}
        for name, rows in zip(names, best, strict=True)
    }
    queries = comparison.Queries(names, [""] * len(names), vectors, qrels)
    chosen = comparison.Settings(
        k=20, depth=20, learning_rate=0.05, updates=(0, 10), feedback=(5, 20)
    )
    kept = rerank.CachedReranker(reranker)
    outcomes = comparison.compare(index, queries, kept, chosen, tmp_path)
    assert list(outcomes) == list(comparison.ROWS)
    recall = {n: x.evaluation.means["recall@20"] for n, x in outcomes.items()}
    assert recall["refit"] > recall["rerank_2k"] > recall["rerank"]
    curves = comparison.curves(index, queries, kept, chosen)
    assert curves.by_updates[0] == recall["bi-encoder"]
    corpus = formats.Corpus([str(i) for i in range(300)], [""] * 300, ["<b>"] * 300)
    report.write(tmp_path, "A & B", outcomes, queries, corpus, chosen, curves, 1.0)
    for name, outcome in outcomes.items():
        run = formats.read_run(tmp_path / "runs" / f"{name}.trec")
        again = metrics.evaluate(qrels, run, chosen.metrics)
        np.testing.assert_array_equal(
            again.values["recall@20"], outcome.evaluation.values["recall@20"]
        )
        kept_values = formats.read_results(tmp_path / "results" / f"{name}.tsv")
        np.testing.assert_array_equal(
            kept_values.values["ndcg@10"], again.values["ndcg@10"]
        )
    numbers = json.loads((tmp_path / "report.json").read_text())
    value, low, high = numbers["rows"]["refit"]["less"]["rerank_2k"]["recall@20"]
    assert low < value < high
    assert value == pytest.approx(recall["refit"] - recall["rerank_2k"], abs=1e-6)
    page = (tmp_path / "report.html").read_text()
    assert "A &amp; B" in page
    assert "query won" in page
    assert "<b>" not in page
    with pytest.raises(errors.UserError, match="no row best"):
        comparison.compare(
            index, queries, kept, comparison.Settings(rows=("best",)), tmp_path
        )


# ---- the command ----


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
    assert command("refit", out, *given, *judged, *reranker, "--k", "3") == 0
    assert "recall@100" in capsys.readouterr().out
    again = corpus / "prior"
    assert command("refit", again, *given, *reranker, "--k", "3", "--prior", "50") == 0
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
        "positions": ("index", corpus / "x", *made, "--length", "9999"),
        "no queries": ("search", index),
        "use 1 or more": ("search", index, "--query", "a", "--k", "0"),
        "does not score pairs": (
            "refit", corpus / "o", "--index", index, "--queries",
            corpus / "queries.jsonl", "--reranker", bert,
        ),
        "is not an index": ("search", corpus / "nothing", "--query", "a"),
    }  # fmt: skip
    for words, case in cases.items():
        assert command(*case) == 2, words
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
