"""Mixtures and loaders: OLMo's order, hosts, packing, held-out windows."""

import collections
import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.data.batches import inspect, loader, mixture, packing
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import token_files, token_writer

EOS = 2


class Numbers:
    """Encodes 'a b c' given as numbers; the simplest tokenizer there is."""

    vocab_size, bos_id, eos_id, pad_id, fingerprint = 60000, None, EOS, 1, "numbers"

    def encode(self, text, *, special=False):
        return [int(word) for word in text.split()]

    def encode_batch(self, texts, *, special=False):
        return [self.encode(text) for text in texts]

    def decode(self, ids, *, special=False):
        return " ".join(map(str, ids))


def make(folder, name, sizes, first=100):
    """Documents of the given sizes whose tokens count up from `first`."""
    documents = []
    for i, size in enumerate(sizes):
        text = " ".join(str(first + k) for k in range(size))
        documents.append(documents_lib.Document(f"{name}{i}", text, f"src:{i}"))
        first += size
    return token_writer.write_tokens(documents, Numbers(), folder / name)


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    return [
        make(tmp_path, "a", rng.integers(1, 30, 40).tolist(), 100),
        make(tmp_path, "b", rng.integers(1, 9, 70).tolist(), 5000),
    ]


def test_the_order_is_olmos(two):
    """The rule of olmo/data/iterable_dataset.py and memmap_dataset.py, written out."""
    length, size, seed = 8, 4, 6198
    chunks = np.concatenate(
        [f.tokens[: f.size // length * length].reshape(-1, length) for f in two]
    )
    data = loader.Loader(two, length=length, batch_size=size, seed=seed)
    for epoch in (0, 1):
        indices = np.arange(len(chunks), dtype=np.uint32)
        np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(indices)
        digest = hashlib.sha256(indices.tobytes()).hexdigest()
        assert data.order_sha256(epoch) == digest
        for k, index in enumerate(indices):
            step, row = divmod(epoch * len(chunks) + k, size)
            got = data(step)["tokens"][row]
            assert np.array_equal(got, chunks[index])
    assert data(0).keys() == {"tokens"}
    assert data(0)["tokens"].dtype == np.int32


@pytest.mark.parametrize("hosts", [1, 2, 8])
@pytest.mark.parametrize("weights", [None, [0.7, 0.3]])
def test_the_batch_does_not_depend_on_the_number_of_hosts(two, hosts, weights):
    made = mixture.Mixture(two, weights)
    whole = loader.Loader(made, length=8, batch_size=16, layout="packed", seed=1)
    for step in (0, 3, 50):  # 50 lies some epochs on
        parts = []
        for host in range(hosts):  # each host builds its own loader
            mine = loader.Loader(made, length=8, batch_size=16, layout="packed", seed=1)
            per_host = 16 // hosts
            parts.append(mine(step, slice(host * per_host, (host + 1) * per_host)))
        batch = whole(step)
        for key, value in batch.items():
            assert np.array_equal(np.concatenate([p[key] for p in parts]), value)


def test_a_batch_is_a_pure_function_of_the_step(two):
    data = loader.Loader(two, length=8, batch_size=4, seed=5)
    first = [data(step)["tokens"].copy() for step in range(60)]
    again = loader.Loader(two, length=8, batch_size=4, seed=5)
    for step in (59, 0, 17, 58, 3):  # any order, a fresh loader
        assert np.array_equal(again(step)["tokens"], first[step])
    other = loader.Loader(two, length=8, batch_size=4, seed=6)
    assert not np.array_equal(other(0)["tokens"], first[0])


def test_a_batch_larger_than_the_data_holds_several_epochs(tmp_path):
    file = make(tmp_path, "a", [11])  # 12 tokens: 3 rows of 4
    data = loader.Loader(file, length=4, batch_size=8, seed=0)
    rows = [row["index"] for row in data.describe(0)]
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]
    assert [row["epoch"] for row in data.describe(0)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert data(0)["tokens"].shape == (8, 4)


def test_listing_a_file_twice_up_weights_it_as_in_olmo(two):
    data = loader.Loader([two[0], two[0], two[1]], length=8, batch_size=4)
    once = loader.Loader(two[0], length=8, batch_size=4).source_rows[0]
    assert data.source_rows[:2] == [once, once]
    epoch = sum(data.source_rows)
    counts = data.mixture.counts(epoch, rows=data.source_rows, seed=0)
    assert counts.tolist() == data.source_rows


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    weights=st.lists(st.floats(1e-3, 10), min_size=1, max_size=6),
    start=st.integers(0, 10**7),
    size=st.integers(1, 300),
)
def test_every_prefix_of_a_weighted_mixture_has_the_recorded_shares(
    weights, start, size
):
    names = [str(i) for i in range(len(weights))]
    made = mixture.Mixture(names, weights, names)
    rows = list(range(3, 3 + len(weights)))
    shares = np.array(made.quotas) / sum(made.quotas)
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < 2e-5
    counts = made.counts(start, rows=rows, seed=0)
    assert counts.sum() == start
    assert np.abs(counts - start * shares).max() <= len(weights)
    draws = made.draws(start, start + size, rows=rows, seed=0)
    seen = np.bincount(draws.source, minlength=len(weights))
    assert (counts + seen == made.counts(start + size, rows=rows, seed=0)).all()


def test_weights_with_few_decimals_are_exact():
    assert mixture.Mixture(list("abc"), [0.5, 0.3, 0.2], "abc").quotas == (5, 3, 2)
    assert mixture.Mixture(list("abc"), [1, 1, 1e-9], "abc").quotas[2] == 1


def test_a_weighted_source_reads_each_row_once_an_epoch(two):
    made = mixture.Mixture(two, [0.75, 0.25])
    data = loader.Loader(made, length=8, batch_size=4)
    seen = collections.Counter()
    for step in range(200):
        for row in data.describe(step):
            seen[row["source"], row["epoch"], row["index"]] += 1
    assert set(seen.values()) == {1}
    finished = {(s, e) for s, e, _ in seen if (s, e + 1) in {k[:2] for k in seen}}
    for name, epoch in finished:
        rows = data.source_rows[made.names.index(name)]
        assert sum(k[:2] == (name, epoch) for k in seen) == rows
    report = data.shares(200)
    assert report["a"]["share"] == 0.75
    assert report["a"]["epochs"] == pytest.approx(600 / data.source_rows[0])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_refused(two, weight):
    with pytest.raises(errors.UserError, match="of b is not a positive number"):
        mixture.Mixture(two, [1.0, weight])


def test_impossible_settings_are_refused(two, tmp_path):
    with pytest.raises(errors.UserError, match="1 weights for 2 sources"):
        mixture.Mixture(two, [1.0])
    with pytest.raises(errors.UserError, match="needs a source"):
        loader.Loader([], length=8, batch_size=4)
    with pytest.raises(errors.UserError, match="fewer than one row of 9999"):
        loader.Loader(two, length=9999, batch_size=4)
    with pytest.raises(errors.UserError, match="layout 'rows'"):
        loader.Loader(two, length=8, batch_size=4, layout="rows")
    for bad in ({"length": 1}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(errors.UserError, match="is too small"):
            loader.Loader(two, **({"length": 8, "batch_size": 4} | bad))
    with pytest.raises(errors.UserError, match="step -1 is negative"):
        loader.Loader(two, length=8, batch_size=4)(-1)


def test_a_file_that_goes_away_during_a_run_ends_it_in_one_line(two):
    data = loader.Loader(two, length=8, batch_size=64)
    data(0)
    with two[0].path.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(errors.UserError, match="changed size while in use"):
        data(1)
    two[0].path.unlink()
    with pytest.raises(errors.UserError, match="does not exist"):
        data(1)


def test_the_document_mask_changes_segments_where_a_document_ends(two):
    data = loader.Loader(two, length=16, batch_size=8, document_mask=True)
    batch = data(2)
    segments = batch["segment_ids"]
    assert (segments[:, 0] == 1).all()
    # A segment ends exactly behind each end-of-text token.
    assert np.array_equal(
        np.diff(segments, axis=1), (batch["tokens"][:, :-1] == EOS).astype(int)
    )
    assert batch.keys() == {"tokens", "segment_ids"}


def test_packing_makes_every_token_a_label_once_after_its_predecessor(two):
    data = loader.Loader(two[0], length=16, batch_size=1, layout="packed", seed=3)
    labels, tokens = collections.Counter(), two[0].tokens
    for step in range(data.source_rows[0]):
        batch = {key: value[0] for key, value in data(step).items()}
        ids, segments = batch["tokens"], batch["segment_ids"]
        assert (batch["loss_mask"][segments == 0] == 0).all()
        assert (ids[segments == 0] == 1).all()  # padding
        for number in range(1, segments.max() + 1):
            inside = np.flatnonzero(segments == number)
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
            assert batch["positions"][inside].tolist() == list(range(len(inside)))
            assert batch["loss_mask"][inside].tolist() == [0] + [1] * (len(inside) - 1)
        for document in data.describe(step)[0]["documents"]:
            for offset in range(document["start"], document["stop"]):
                labels[offset] += 1
                assert two[0].document_at(offset).id == document["id"]
        for at in np.flatnonzero(batch["loss_mask"]):
            if ids[at] != EOS:  # numbers count up, and are unique
                offset = int(np.flatnonzero(tokens == ids[at])[0])
                before = tokens[offset - 1] if offset else EOS
                assert ids[at - 1] == before
    assert labels == collections.Counter(range(two[0].size))


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=80),
    length=st.integers(20, 40),
)
def test_packed_rows_hold_every_item_once_and_are_nearly_full(sizes, length):
    rows = packing.pack(np.array(sizes), length)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    filled = [sum(sizes[item] for item in row) for row in rows]
    assert max(filled) <= length
    assert len(rows) <= 2 * sum(sizes) / length + 1  # any-fit bound
    assert rows == packing.pack(np.array(sizes), length)


def test_described_documents_are_the_tokens_of_the_row(two):
    data = loader.Loader(two, length=16, batch_size=8, seed=2)
    batch, files = data(4), {str(f.path): f for f in two}
    for described in data.describe(4):
        file = files[described["file"]]
        parts = [file.tokens[d["start"] : d["stop"]] for d in described["documents"]]
        got = batch["tokens"][described["row"]]
        assert np.array_equal(np.concatenate(parts), got)


def test_inspection_prints_documents_offsets_and_text(two):
    lines = []
    data = loader.Loader(two, length=16, batch_size=2, seed=2)
    inspect.print_order(data, 7, Numbers(), lines.append)
    first = data.describe(7)[0]
    assert lines[0].startswith(f"step 7 row 0: {first['source']} epoch")
    document = first["documents"][0]
    assert f"tokens {document['start']}-{document['stop']} of" in lines[1]
    assert str(data(7)["tokens"][0, 0]) in lines[1]
    assert lines[-1].endswith(data.order_sha256(0))


def test_the_fingerprint_tells_different_data_and_orders_apart(two, tmp_path):
    def fingerprint(files, **changes):
        settings = {"length": 8, "batch_size": 4, "seed": 0} | changes
        return loader.Loader(files, **settings).fingerprint

    assert fingerprint(two) == fingerprint(two)
    (tmp_path / "copy").mkdir()
    for file in tmp_path.glob("a.*"):
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    copy = token_files.TokenFile.open(tmp_path / "copy" / "a")
    assert fingerprint([copy, two[1]]) == fingerprint(two)  # a folder may move
    for changes in ({"length": 9}, {"seed": 1}, {"batch_size": 2}):
        assert fingerprint(two, **changes) != fingerprint(two)
    assert fingerprint(two[::-1]) != fingerprint(two)
    assert fingerprint(mixture.Mixture(two, [1, 2])) != fingerprint(two)


@pytest.mark.parametrize(("length", "size"), [(4, 3), (16, 8), (64, 2)])
def test_held_out_batches_score_every_token_once(two, length, size):
    file = two[0]
    scored, total_bytes, per_document = collections.Counter(), 0, collections.Counter()
    for batch in loader.eval_batches(file, length, size):
        assert batch["tokens"].shape == (size, length)
        for row in range(size):
            document = int(batch["document"][row])
            labels = batch["tokens"][row][batch["loss_mask"][row] == 1]
            assert (document == -1) == (len(labels) == 0)
            scored.update((document, int(token)) for token in labels)
            per_document[document] += int(batch["text_bytes"][row])
        assert (batch["loss_mask"][:, 0] == 0).all()
        total_bytes += int(batch["text_bytes"].sum())
    expected = collections.Counter()
    for index in range(len(file.ends)):
        span = file.span(index)
        expected.update((index, int(t)) for t in file.tokens[span.start : span.stop])
    assert scored == expected
    assert total_bytes == file.info["bytes"]
    assert [per_document[i] for i in range(len(file.ends))] == (
        file.document_bytes.tolist()
    )


def test_held_out_windows_begin_with_the_token_before_them(tmp_path):
    file = make(tmp_path, "a", [5, 1])  # 100..104 EOS | 105 EOS
    (batch,) = loader.eval_batches(file, 4, 4)
    assert batch["tokens"].tolist() == [
        [EOS, 100, 101, 102],
        [102, 103, 104, EOS],
        [EOS, 105, EOS, 1],
        [1, 1, 1, 1],
    ]
    assert batch["loss_mask"].tolist() == [
        [0, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert batch["document"].tolist() == [0, 0, 1, -1]


def test_few_held_out_batches_are_a_fixed_sample_of_documents(two):
    few = list(loader.eval_batches(two[1], 16, 4, max_batches=2))
    again = list(loader.eval_batches(two[1], 16, 4, max_batches=2))
    assert len(few) == 2
    seen = np.concatenate([batch["document"] for batch in few])
    assert np.array_equal(seen, np.concatenate([b["document"] for b in again]))
    assert seen.max() > 20  # not the file's beginning


def test_few_held_out_batches_spread_over_long_documents(tmp_path):
    file = make(tmp_path, "long", [150, 90, 3, 120])  # 11, 7, 1 and 9 windows
    seen = [
        np.concatenate([b["document"] for b in loader.eval_batches(file, 16, 2, most)])
        for most in (2, 4, 14)
    ]
    assert sorted(seen[0].tolist()) == [0, 1, 2, 3]
    assert np.bincount(seen[1]).tolist() in ([3, 2, 1, 2], [2, 3, 1, 2], [2, 2, 1, 3])
    assert np.bincount(seen[2][seen[2] >= 0]).tolist() == [11, 7, 1, 9]
    # Windows of a document are drawn, not its first ones.
    (batch,) = loader.eval_batches(file, 16, 4, 1)
    first = batch["tokens"][:, 0] == EOS
    assert not first[batch["document"] != 2].all()
