"""Rankings with intervals, and how predictions agree with what was trained."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab import ablation
from jaxlab.core import errors
from jaxlab.stats import correlation, ratios

KEY = jax.random.key(0)


def noisy(means, documents=60, seed=0, spread=0.3):
    """Losses around the means; what a document adds is the same for all mixtures."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(20, 200, documents).astype(float)
    common = draw.normal(0, 1, documents)
    own = draw.normal(0, spread, (len(means), documents))
    losses = 5 + np.asarray(means)[:, None] + common[None] + own
    return ablation.DocumentLosses(losses * tokens[None], tokens)


def named(count):
    return [{f"m{i}": 1.0} for i in range(count)]


def test_a_ranking_puts_the_best_first_with_an_interval_around_it():
    losses = noisy([0.3, 0.0, 0.1, 2.0])
    rows = ablation.rank(named(4), losses, key=KEY)
    assert [next(iter(row.mixture)) for row in rows] == ["m1", "m2", "m0", "m3"]
    assert [row.rank for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row.low < row.predicted_loss < row.high
        assert row.perplexity_interval[0] < row.predicted_perplexity
        assert row.predicted_perplexity == pytest.approx(np.exp(row.predicted_loss))
    shares = [row.best_probability for row in rows]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 0.8
    assert shares[3] == 0


def test_the_value_is_the_ratio_of_sums_written_out():
    losses = ablation.DocumentLosses(np.array([[2.0, 6.0]]), np.array([1.0, 3.0]))
    assert ablation.rank(named(1), losses)[0].predicted_loss == 2.0
    assert losses.loss.tolist() == [2.0]


def test_identical_mixtures_tie():
    losses = noisy([0.0, 5.0, 0.0])
    losses = losses._replace(nats=losses.nats[[0, 0, 1, 0]])
    rows = ablation.rank(named(4), losses, key=KEY)
    assert [row.rank for row in rows] == [1, 1, 1, 4]
    assert [row.best_probability for row in rows] == pytest.approx([1 / 3] * 3 + [0])
    assert [next(iter(row.mixture)) for row in rows] == ["m0", "m1", "m3", "m2"]


def test_what_is_not_finite_comes_last_and_never_wins():
    losses = noisy([1.0, 0.0, 2.0])
    losses.nats[1, 3], losses.nats[2, 0] = np.nan, np.inf
    rows = ablation.rank(named(3), losses, key=KEY)
    assert [next(iter(row.mixture)) for row in rows] == ["m0", "m2", "m1"]
    assert [row.best_probability for row in rows] == [1, 0, 0]
    assert np.isnan(rows[2].predicted_loss)
    assert np.isnan([rows[1].low, rows[2].high]).all()
    assert rows[0].resampled == "60 documents"
    assert rows[1].resampled == "nothing: a loss that is not finite"


def test_one_document_gives_a_ranking_without_intervals():
    losses = ablation.DocumentLosses(np.array([[3.0], [2.0]]), np.array([1.0]))
    rows = ablation.rank(named(2), losses)
    assert [row.predicted_loss for row in rows] == [2, 3]
    assert np.isnan([rows[0].low, rows[0].high, rows[0].best_probability]).all()
    assert rows[0].resampled == "nothing: one window"


def windows(draw, documents, each, between, within, texts=1):
    """Losses of windows around 3: what a document adds, and what a window adds."""
    document = np.repeat(np.arange(documents), each)
    losses = 3 + draw.normal(0, between, (texts, documents))[:, document]
    losses = losses + draw.normal(0, within, losses.shape)
    tokens = np.full(len(document), 100.0)
    return ablation.DocumentLosses(losses * tokens, tokens, document)


@pytest.mark.parametrize(
    ("documents", "each", "words"),
    [
        (1, 12, "12 windows of the only document"),
        (5, 4, "5 documents and the windows within them"),
        (40, 3, "40 documents"),
        (5, 1, "5 documents"),
    ],
)
def test_few_documents_have_an_interval_that_says_what_it_is_over(
    documents, each, words
):
    losses = windows(np.random.default_rng(0), documents, each, 0.2, 0.3)
    (row,) = ablation.rank(named(1), losses)
    assert row.low < row.predicted_loss < row.high
    assert row.resampled == words


def coverage(documents, each, between, within):
    """Share of 2000 texts, of four resamplings, whose interval has the truth in it."""
    draw = np.random.default_rng(0)
    covered = []
    for number in range(4):
        losses = windows(draw, documents, each, between, within, texts=500)
        found = ratios.ratios(*losses, key=jax.random.key(number))
        covered.append((found.low <= 3) & (found.high >= 3))
    return np.mean(covered)


# Of 2000 texts, 0.95 of which are covered, four standard errors: chance stays within.
FOUR_ERRORS = 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize(
    ("documents", "each"),
    [(2, 1), (5, 1), (12, 4),
     *(pytest.param(*each, marks=pytest.mark.slow) for each in
       [(1, 12), (3, 1), (4, 1), (8, 1), (40, 1)])],
)  # fmt: skip
def test_intervals_cover_the_truth_of_few_documents_as_of_many(documents, each):
    between = 0.3 if documents > 1 else 0.0
    found = coverage(documents, each, between, 0.3)
    assert found == pytest.approx(0.95, abs=FOUR_ERRORS)


@pytest.mark.parametrize(
    ("documents", "each", "between", "within"),
    [(5, 8, 0.3, 0.3),
     *(pytest.param(*each, marks=pytest.mark.slow) for each in
       [(2, 4, 0.3, 0.3), (5, 4, 0.3, 0.05), (8, 4, 0.05, 0.5)])],
)  # fmt: skip
def test_intervals_over_windows_too_cover_the_truth_at_least_as_often(
    documents, each, between, within
):
    assert coverage(documents, each, between, within) >= 0.95 - FOUR_ERRORS


def test_groups_are_resampled_whole_where_they_are_many():
    losses = windows(np.random.default_rng(0), 30, 4, 0.2, 0.3)
    by_window = ratios.resample_ratios(*losses, key=KEY, resamples=50)
    by_document = ratios.resample_ratios(*losses.by_document(), key=KEY, resamples=50)
    np.testing.assert_allclose(by_window, by_document, rtol=1e-6)


def test_windows_are_taken_as_often_as_their_document_has_some():
    nats = np.array([[1.0, 1.0, 1.0, 1.0, 5.0]])  # four windows of one, one of another
    losses = ablation.DocumentLosses(nats, np.ones(5), np.array([0, 0, 0, 0, 1]))
    drawn = np.asarray(ratios.resample_ratios(*losses, key=KEY, resamples=400))
    # Both documents once, the first twice, or the second twice.
    assert np.unique(drawn.round(4)).tolist() == pytest.approx([1.0, 1.8, 5.0])
    assert np.mean(np.abs(drawn - 1.8) < 1e-4) == pytest.approx(0.5, abs=0.08)


def test_another_proxy_ranks_every_target_by_what_it_predicts():
    pool = ablation.ModelPool.create({f"m{i}": {"w": np.ones(2)} for i in range(3)})
    losses = {"law": noisy([0.3, 0.0, 0.1]), "code": noisy([0.0, 1.0, 2.0], seed=1)}
    evaluation, asked = {"law": ["l"], "code": ["c"]}, []

    def predict(target, batches):
        asked.append((target, batches))
        return losses[target]

    def fail(params, batch):
        raise AssertionError("something is merged")

    ranking = ablation.rank_mixtures(pool, named(3), evaluation, fail, predict=predict)
    assert asked == list(evaluation.items())
    assert ranking["law"] == ablation.rank(named(3), losses["law"])
    assert [next(iter(row.mixture)) for row in ranking["code"]] == ["m0", "m1", "m2"]


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered, wins = [], []
    for seed in range(60):
        losses = noisy([0.0, 0.0], seed=seed, spread=1.0)
        found = ratios.ratios(*losses, key=jax.random.key(seed), resamples=300)
        covered.append((found.low <= 5) & (found.high >= 5))
        wins.append(found.least_probability[0])
    assert 0.88 <= np.mean(covered) <= 0.99
    assert 0.35 <= np.mean(wins) <= 0.65  # equals: won as often as lost


def test_the_interval_of_a_mean_is_the_normal_one():
    draw = np.random.default_rng(1)
    values = draw.normal(7, 2, (1, 400))
    found = ratios.ratios(values, np.ones(400), key=KEY, resamples=2000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose(found.high - found.low, 2 * half, rtol=0.08)


def test_bad_ratios_are_refused():
    with pytest.raises(ValueError, match="are needed, not shapes"):
        ratios.ratios(np.ones((2, 3)), np.ones(2), key=KEY)
    with pytest.raises(ValueError, match="positive and finite"):
        ratios.ratios(np.ones((2, 2)), [1, 0], key=KEY)
    with pytest.raises(ValueError, match="confidence 2"):
        ratios.ratios(np.ones((2, 2)), [1, 1], key=KEY, confidence=2)
    with pytest.raises(ValueError, match="resamples 0"):
        ratios.ratios(np.ones((2, 2)), [1, 1], key=KEY, resamples=0)
    for groups in ([1, 1], [1, 0], [0, 2], [0]):
        with pytest.raises(ValueError, match="groups must be D numbers"):
            ratios.ratios(np.ones((2, 2)), [1, 1], groups, key=KEY)


def test_masked_correlations_equal_those_of_scipy_without_the_rest():
    draw = np.random.default_rng(3)
    x, y = draw.integers(0, 6, (2, 30)).astype(np.float32)  # with ties
    where = draw.random(30) < 0.6
    x[np.flatnonzero(~where)[0]] = np.nan
    found = correlation.all_three(x, y, jnp.asarray(where))
    peers = (scipy.stats.pearsonr, scipy.stats.spearmanr, scipy.stats.kendalltau)
    expected = [peer(x[where], y[where]).statistic for peer in peers]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isnan(correlation.all_three(x, y)).all()
    assert np.isnan(correlation.all_three(y, y, jnp.arange(30) < 1)).all()


SIZES = [2] * 6 + [3] * 6


def rows_of(predicted, trained, **kwargs):
    rows = ablation.agreement(predicted, trained, SIZES, resamples=200, **kwargs)
    return {(row.domain, row.size): row for row in rows}


def test_agreement_that_is_only_between_sizes_vanishes_at_fixed_size():
    draw = np.random.default_rng(0)
    jump = np.array(SIZES) * 10.0
    predicted, trained = jump + draw.normal(size=12), jump + draw.normal(size=12)
    rows = rows_of({"exams": predicted}, {"exams": trained})
    assert list(rows) == [("all", None), ("all", 2), ("all", 3), ("all", "within")]
    assert rows["all", None].pearson.value > 0.95
    for size in (2, 3):
        part = np.array(SIZES) == size
        expected = scipy.stats.pearsonr(predicted[part], trained[part]).statistic
        assert rows["all", size].pearson.value == pytest.approx(expected, abs=1e-4)
        assert rows["all", size].pairs == 6
    groups = np.array(SIZES)[:, None] == np.array([2, 3])
    x, y = (v - groups @ (groups.T @ v / 6) for v in (predicted, trained))
    within = rows["all", "within"]
    assert within.pearson.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-4)
    assert within.spearman.value == pytest.approx(
        scipy.stats.spearmanr(x, y).statistic, abs=1e-4
    )
    assert within.pearson.low < within.pearson.value < within.pearson.high
    assert np.isnan(within.pearson.document_low)  # nothing known of documents


def test_agreement_is_the_mean_over_targets_and_kept_apart_by_domain():
    draw = np.random.default_rng(1)
    predicted = {t: draw.normal(size=12) + 100 * i for i, t in enumerate("abc")}
    trained = {t: v + draw.normal(size=12) for t, v in predicted.items()}
    inside = {
        "a": np.arange(12) % 2 == 0,
        "b": np.arange(12) < 5,
        "c": np.arange(12) < 3,  # too few to correlate
    }
    rows = rows_of(predicted, trained, in_domain=inside)

    def mean(choose, targets):
        return np.mean(
            [
                scipy.stats.pearsonr(
                    predicted[t][choose(t)], trained[t][choose(t)]
                ).statistic
                for t in targets
            ]
        )

    expected = {
        "all": mean(lambda t: slice(None), "abc"),
        "in": mean(lambda t: inside[t], "ab"),
        "out": mean(lambda t: ~inside[t], "abc"),
    }
    for domain, value in expected.items():
        assert rows[domain, None].pearson.value == pytest.approx(value, abs=1e-4)
    assert (rows["in", None].pairs, rows["in", None].targets) == (11, 2)
    assert rows["in", 2].targets == 1  # only b has four pairs inside


def test_documents_of_both_sides_are_resampled_together():
    means = np.linspace(0, 1, 12)
    predicted, trained = (noisy(means, seed=7, spread=s) for s in (0.2, 0.8))
    rows = rows_of({"exams": predicted}, {"exams": trained})
    for each in rows["all", None][4:]:
        assert each.document_low < each.value < each.document_high
        assert each.document_high - each.document_low < 0.5
    same = rows_of({"exams": predicted}, {"exams": predicted})["all", None].kendall
    assert same == pytest.approx((1, 1, 1, 1, 1))


def test_a_constant_or_broken_side_has_no_correlation():
    values = np.arange(12.0)
    for bad in (np.ones(12), np.where(values == 3, np.nan, values)):
        for row in rows_of({"x": bad}, {"x": values}).values():
            if row.size in (None, "within"):
                assert np.isnan(list(itertools.chain(*row[4:]))).all()


def test_regret_is_what_the_choice_costs():
    trained = ablation.DocumentLosses(np.array([[6.0], [2.0], [4.0]]), np.array([2.0]))
    assert [ablation.regret(i, trained) for i in range(3)] == [2, 0, 1]
    assert ablation.regret(0, [2.0, np.nan, 1.5]) == 0.5
    with pytest.raises(errors.UserError, match="mixture 1 has no trained loss"):
        ablation.regret(1, [2.0, np.nan, 1.5])


def test_sides_that_do_not_belong_together_are_refused():
    values = np.arange(12.0)
    with pytest.raises(errors.UserError, match="of different targets"):
        rows_of({"x": values}, {"y": values})
    with pytest.raises(errors.UserError, match=r"\[12, 11\] mixtures, and 12 sizes"):
        rows_of({"x": values}, {"x": values[1:]})
    with pytest.raises(errors.UserError, match="of other documents"):
        rows_of({"x": noisy(values, seed=0)}, {"x": noisy(values, seed=1)})
