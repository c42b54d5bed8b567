"""The rule of held-out documents: a partition, fixed by the texts, as ever."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import split


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=2),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_a_split_is_a_partition_with_two_sides_that_order_does_not_change(
    texts, fraction, seed
):
    given = [documents_lib.Document(str(i), text) for i, text in enumerate(texts)]
    train, held_out = split.split_documents(given, fraction, seed)
    assert sorted(train + held_out) == sorted(given)
    assert train
    assert held_out
    if len(set(texts)) > 1:
        assert not {d.text for d in train} & {d.text for d in held_out}
    again = split.split_documents(given[::-1], fraction, seed)
    if len(set(texts)) > 1:
        assert sorted(again[0]) == sorted(train)


def published_split(documents, fraction, seed):
    """The rule of commit 865b6a5, which published pools were made with."""
    shares = [split.hash_share(document.text, seed) for document in documents]
    threshold = fraction
    ordered = sorted(set(shares))
    if ordered[0] >= threshold:
        threshold = (ordered[0] + [*ordered, 1.0][1]) / 2
    elif ordered[-1] < threshold and len(ordered) > 1:
        threshold = ordered[-1]
    pairs = list(zip(documents, shares, strict=True))
    train = [document for document, share in pairs if share >= threshold]
    held_out = [document for document, share in pairs if share < threshold]
    return (train, held_out) if train else (held_out[1:], held_out[:1])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    texts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=9),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_small_domains_are_split_as_those_of_published_pools(texts, fraction, seed):
    given = [documents_lib.Document(str(i), text) for i, text in enumerate(texts)]
    sides = split.split_documents(given, fraction, seed)
    assert sides == published_split(given, fraction, seed)


def test_no_more_is_read_than_tells_the_rule():
    documents = (documents_lib.Document(str(i), f"text {i}") for i in range(1000))
    assert split.find_rule(documents, 0.2) == split.Rule(0.2)
    assert int(next(documents).id) < 30


def test_the_limit_moves_where_a_side_would_be_empty():
    texts = ["one text", "another", "a third"]
    documents = [documents_lib.Document(text, text, "here") for text in texts]
    least, _, greatest = sorted(split.hash_share(text, 0) for text in texts)
    below = split.find_rule(documents, least / 2)
    assert [below.holds_out(d) for d in documents].count(True) == 1
    above = split.find_rule(documents, (greatest + 1) / 2)
    assert above == split.Rule(greatest)
    copies = [documents_lib.Document(str(i), "same", "here") for i in range(3)]
    first = split.find_rule(copies, 0.5)
    assert [first.holds_out(d) for d in copies] == [True, False, False]


@pytest.mark.parametrize("count", [0, 1])
def test_a_domain_of_fewer_than_two_documents_is_named(count):
    documents = [documents_lib.Document("a", "text")] * count
    said = "one document" if count else "no document"
    with pytest.raises(errors.UserError, match=f"'law' has {said} with text; two are"):
        split.find_rule(documents, 0.5, domain="law")


def test_a_held_out_fraction_outside_zero_and_one_is_refused():
    with pytest.raises(errors.UserError, match="not between 0 and 1"):
        split.split_documents([], 1.0)
