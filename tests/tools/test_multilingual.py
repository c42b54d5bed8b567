"""A multilingual base: text with its translations, and a start in which they meet."""

import json
import pathlib

import numpy as np
import pytest

from jaxlab import train
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import tokenizers
from jaxlab.systems.olmo import pretraining
from tests.support import devices, sib
from tools.multilingual import latent_semantics
from tools.multilingual.parallel_text import Texts, pretraining_text

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
WORDS = {  # a toy world: two languages, two topics
    "aa": (("goal ball team", "match score run"), ("vote law state", "party rule tax")),
    "bb": (("gol bola tim", "laga skor lari"), ("suara hukum negara", "partai pajak")),
}


# ------------------------------------------------------------------ pre-training text


def texts_of(file):
    return [json.loads(line)["text"] for line in file.open(encoding="utf-8")]


def test_pre_training_text_has_every_language_and_pairs_but_no_label(tmp_path):
    folder = tmp_path / "set"
    sib.write(folder, "en", "train", [("1", "sports", "a b"), ("2", "health", "c")])
    de = sib.write(folder, "de", "train", [("2", "health", "C"), ("3", "sports", "D")])
    fr = sib.write(folder, "fr", "dev", [("2", "health", "cc")])
    (tmp_path / "de.txt").write_text("E e\n\nF\n", "utf-8")
    (tmp_path / "fr.jsonl").write_text('{"id": "7", "text": "ff"}\n', "utf-8")
    sources = [
        Texts({"en": [folder / "en.train.tsv"], "de": [de], "fr": [fr]}, True),
        Texts({"de": [tmp_path / "de.txt"], "fr": [tmp_path / "fr.jsonl"]}),
    ]
    counts = pretraining_text(sources, tmp_path / "out", pivot="en")
    assert counts == {"en": 2, "de": 4, "fr": 2, "parallel": 4}
    found = {name: texts_of(tmp_path / "out" / f"{name}.jsonl") for name in counts}
    assert found == {
        "en": ["a b", "c"],
        "de": ["C", "D", "E e", "F"],
        "fr": ["cc", "ff"],
        "parallel": ["c\nC", "c\ncc", "C\nc", "cc\nc"],
    }
    counts = pretraining_text(sources, tmp_path / "all")
    assert counts["parallel"] == 6


def test_parallel_files_without_ids_go_by_place(tmp_path):
    for name, text in {"en": "a\nb\n", "de": "A\nB\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text, "utf-8")
    files = {name: [tmp_path / f"{name}.txt"] for name in ("en", "de")}
    pretraining_text([Texts(files, True)], tmp_path / "out")
    found = texts_of(tmp_path / "out" / "parallel.jsonl")
    assert found == ["a\nA", "b\nB", "A\na", "B\nb"]


def test_interleaving_keeps_the_words_of_both_in_their_order(tmp_path):
    words = "one two three four five six seven eight"
    (tmp_path / "en.txt").write_text(words, "utf-8")
    (tmp_path / "zh.txt").write_text("\u4e00\u4e8c\u4e09\u56db\u4e94", "utf-8")
    files = {name: [tmp_path / f"{name}.txt"] for name in ("en", "zh")}
    sources = [Texts(files, True)]
    made = []
    for name in ("first", "again"):
        pretraining_text(sources, tmp_path / name, interleaved=True)
        made.append(texts_of(tmp_path / name / "parallel.jsonl"))
    assert made[0] == made[1]
    for text in made[0]:
        latin = "".join(c if c.isascii() else " " for c in text)
        assert latin.split() == words.split()
        other = "".join(c for c in text if not c.isascii())
        assert other == "\u4e00\u4e8c\u4e09\u56db\u4e94"
        assert not text.startswith(words)
        assert not text.endswith(words)


def test_pre_training_text_never_has_a_test_split(tmp_path):
    test = sib.write(tmp_path / "set", "en", "test", [("1", "sports", "a")])
    with pytest.raises(errors.UserError, match="is of a test split"):
        pretraining_text([Texts({"en": [test]})], tmp_path / "out")


def test_pre_training_text_refuses_what_has_no_pair_or_is_there(tmp_path):
    files = {
        name: [sib.write(tmp_path / "set", name, "dev", [(str(i), "x", "a")])]
        for i, name in enumerate(("en", "de"))
    }
    with pytest.raises(errors.UserError, match="no text has a translation"):
        pretraining_text([Texts(files, True)], tmp_path / "out", pivot="en")
    (tmp_path / "out").mkdir()
    with pytest.raises(errors.UserError, match="exists; remove it"):
        pretraining_text([Texts(files)], tmp_path / "out")


# ------------------------------------------------------------------ a start


def test_token_vectors_are_those_of_a_whole_svd():
    random = np.random.default_rng(0)
    documents = [random.integers(0, 20, 9) for _ in range(30)]
    counts = np.stack([np.bincount(ids, minlength=20) for ids in documents])
    idf = np.log(31 / (1 + (counts > 0).sum(0)))
    rows = np.log1p(counts) * idf
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    _, s, vt = np.linalg.svd(rows)
    wanted = idf[:, None] * vt[:5].T * np.sqrt(s[:5])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = latent_semantics.token_vectors(documents, 20, 5)
    # Each dimension has a sign of its own.
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-4)


def test_tokens_that_tell_nothing_have_no_vector():
    documents = [np.array([0, 1, 9]), np.array([2, 3, 9])] * 3
    found = latent_semantics.token_vectors(documents, 10, 2)
    assert np.linalg.norm(found, axis=1).round(3).tolist() == [1] * 4 + [0] * 6
    with pytest.raises(errors.UserError, match="do not span 8 dimensions"):
        latent_semantics.token_vectors(documents, 10, 8)


@pytest.mark.slow
def test_translations_lie_side_by_side_before_the_first_step(tmp_path):
    mesh = devices.one()
    words = [[" ".join(WORDS[name][topic]) for name in WORDS] for topic in (0, 1)]
    random = np.random.default_rng(0)
    for side, name in enumerate(WORDS):
        lines = [
            " ".join(random.choice(words[topic % 2][side].split(), 6))
            for topic in range(80)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    files = {name: [tmp_path / f"{name}.txt"] for name in WORDS}
    source = tmp_path / "text"
    pretraining_text([Texts(files, True)], source, interleaved=True)
    config = config_lib.load(f"{CONFIGS / 'olmo.py'}:tiny")
    config.steps, config.eval_batches, config.optim.warmup_steps = 1, 0, 0
    config.model.update({"embed": 8, "layers": 1, "heads": 2, "mlp": 16, "length": 16})
    config.data.update(
        {
            "source": str(source), "folder": str(tmp_path / "data"), "vocab_size": 320,
            "length": 16, "batch_size": 8, "max_bytes_per_domain": 0,
        }
    )  # fmt: skip
    start = tmp_path / "start"
    with mesh_lib.use(mesh):
        latent_semantics.write_start(config, start, mesh)
        config.init_from = str(start)
        experiment = pretraining.pretrain(config, tmp_path / "run", mesh)
    tokenizer = tokenizers.load(tmp_path / "data" / "tokenizer")

    def vector(text):
        rows = experiment.init_from["embed"]["embedding"]
        return np.asarray(rows)[tokenizer.encode(text)].mean(axis=0)

    def likeness(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    english, other = (
        [vector(words[topic][side]) for topic in (0, 1)] for side in (0, 1)
    )
    for topic in (0, 1):
        same = likeness(english[topic], other[topic])
        assert same > likeness(english[topic], other[1 - topic]) + 0.3
    assert train.fit(experiment, tmp_path / "run", mesh=mesh).finished
    config.model.tied = False
    with pytest.raises(errors.UserError, match=r"set model.tied"):
        latent_semantics.write_start(config, tmp_path / "again", mesh)
