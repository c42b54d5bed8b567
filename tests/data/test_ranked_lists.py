"""Batches of ranked lists and of contrasts: order, content, what is refused."""

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.data.examples import ranked_lists
from tests.support.toy_retrieval import WORDS, tokenizer

DATA = ranked_lists.Judged(
    queries=["w0", "w1 w2", "w3"],
    documents=["w0 w4", "w1 w5", "w3 w6", "w7", "w8 w9"],
    relevant=[{0: 1.0}, {1: 2.0, 0: 1.0}, {2: 1.0}],
    negatives=[[3, 4, 1], [4, 3], []],
)


def lists(**changes):
    options = {"batch_size": 2, "candidates": 3, "length": 8, "seed": 1, **changes}
    return ranked_lists.Lists(DATA, tokenizer(), **options)


def contrast_batches(**changes):
    options = {"batch_size": 3, "negatives": 1, "query_length": 4, "length": 6}
    return ranked_lists.Contrasts(DATA, tokenizer(), **{**options, **changes})


@pytest.mark.parametrize("make", [lists, contrast_batches])
def test_batches_follow_from_seed_and_step_alone(make):
    one, two, other = make(), make(), make(seed=2)
    late = one(7)
    one(3)
    for name, value in two(7).items():
        assert np.array_equal(value, late[name])
        for half in (slice(0, 1), slice(1, None)):  # as two hosts would read it
            assert np.array_equal(two(7, half)[name], value[half])
    assert any(
        not np.array_equal(one(step)["tokens"], other(step)["tokens"])
        for step in range(3)
    )


def test_every_query_comes_once_an_epoch_with_a_relevant_document_first():
    drawn = ranked_lists.draws(DATA, 0, 0, 60, 2)
    for start in range(0, 60, 3):
        assert {each.query for each in drawn[start : start + 3]} == {0, 1, 2}
    for query, documents in drawn:
        assert documents[0] in DATA.relevant[query]
        rest = [x for x in documents[1:] if x != ranked_lists.NOTHING]
        assert len({*rest}) == len(rest) == min(2, len(DATA.negatives[query]))
        assert {*rest} <= {*DATA.negatives[query]}
    # All of what may be drawn is drawn sooner or later.
    firsts = {each.documents[0] for each in drawn if each.query == 1}
    seen = {x for each in drawn if each.query == 0 for x in each.documents[1:]}
    assert firsts == {0, 1}
    assert seen == {1, 3, 4}


def test_a_list_holds_pairs_grades_and_where_there_is_a_candidate():
    batches = lists(batch_size=3)
    batch, drawn = batches(0), ranked_lists.draws(DATA, 1, 0, 3, 2)
    assert batch["tokens"].shape == (3, 3, 8)
    assert batch["grades"].dtype == np.float32
    for row, (query, documents) in enumerate(drawn):
        first = documents[0]
        assert batch["grades"][row].tolist() == [DATA.relevant[query][first], 0, 0]
        assert batch["where"][row].tolist() == [
            x != ranked_lists.NOTHING for x in documents
        ]
        text = f"{DATA.queries[query]} {DATA.documents[first]}".split()
        kept = batch["tokens"][row, 0][batch["tokens"][row, 0] > 3] - 4
        assert [WORDS[i] for i in kept] == text


def test_a_list_holds_the_prior_of_each_of_its_documents():
    prior = [{x: 10 * i + x for x in range(len(DATA.documents))} for i in range(9)]
    lists = ranked_lists.Lists(
        DATA._replace(prior=prior[: len(DATA.queries)]), tokenizer(), batch_size=3,
        candidates=4, length=12,
    )  # fmt: skip
    drawn = ranked_lists.draws(DATA, 0, 3, 6, 3)
    wanted = [
        [
            0 if x == ranked_lists.NOTHING else 10 * each.query + x
            for x in each.documents
        ]
        for each in drawn
    ]
    np.testing.assert_array_equal(lists(1)["prior"], wanted)
    assert lists.data.sha256() != DATA.sha256()


def test_what_is_relevant_to_a_query_is_no_negative_of_it():
    batches = contrast_batches()
    batch, drawn = batches(0), ranked_lists.draws(DATA, 0, 0, 3, 1)
    documents = [x for each in drawn for x in each.documents]
    for row, each in enumerate(drawn):
        for column, document in enumerate(documents):
            usable = document not in DATA.relevant[each.query]
            usable &= document != ranked_lists.NOTHING
            assert batch["is_negative"][row, column] == usable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lists(candidates=1), "1 candidates have no order"),
        (lambda: lists(batch_size=0), "batch_size 0 is too small"),
        (lambda: contrast_batches(batch_size=1, negatives=0), "nothing to compare"),
        (
            lambda: ranked_lists.Lists(
                ranked_lists.Judged([], [], [], []),
                None,
                batch_size=1,
                candidates=2,
                length=8,
            ),
            "no query to train on",
        ),
        (
            lambda: ranked_lists.Lists(
                DATA._replace(relevant=[{}, {1: 1.0}, {2: 1.0}]),
                None,
                batch_size=1,
                candidates=2,
                length=8,
            ),
            "'w0' has no relevant document",
        ),
    ],
)
def test_batches_that_teach_nothing_are_refused(make, message):
    with pytest.raises(errors.UserError, match=message):
        make()
