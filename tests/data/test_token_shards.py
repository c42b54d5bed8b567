"""Shards read as one file: batches, held-out windows, slices, names of documents."""

import numpy as np
import pytest

from jaxlab.data import prepared
from jaxlab.data.batches import inspect, loader, mixture
from jaxlab.data.corpus import token_files
from jaxlab.data.shards import run, token_shards
from jaxlab.data.tokenizers import sentence_pieces
from tests.support import corpora


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Shards and single files of the same documents, nothing held out."""
    source = corpora.write_corpus(tmp_path_factory.mktemp("text"))
    model = sentence_pieces.train(prepared.training_texts(source), 330)
    folder = tmp_path_factory.mktemp("both")
    out = str(folder / "shards")
    run.tokenize(str(source), out, model, shard_bytes=1500)
    return prepared.open_folder(out).train, prepared.write_domains(
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


def test_shards_are_opened_when_they_are_read_and_few_stay_open(both, monkeypatch):
    opened = []
    really = token_files.TokenFile.open
    monkeypatch.setattr(
        token_files.TokenFile, "open", lambda path: opened.append(path) or really(path)
    )
    monkeypatch.setattr(token_shards, "_OPEN", 1)
    web = prepared.open_folder(both[0]["web"].path.parent).train["web"]
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
