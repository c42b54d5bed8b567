"""Agreement of proxies with trained models: correlations, regrets, intervals.

Pearson, Spearman and Kendall, each with an interval from resampling mixtures (would
other mixtures agree as well?) and one from resampling documents (would other text?).
Na et al. 2024, arXiv:2410.15661, report correlations over all mixtures; part of such a
correlation only says that larger mixtures, or those with the target's domain in them,
are different. So it is given too in and out of domain, for each mixture size, and
within sizes: after the mean of each size has been subtracted.

Deviations: correlations are of losses in nats per token, where the paper's are of
perplexities. Over several targets it is the mean of the targets' correlations; pooling
them would count the differences between targets as agreement.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ablation import documents
from jaxlab.core import errors
from jaxlab.stats import correlation, ratios

Losses = documents.DocumentLosses | Sequence[float] | np.ndarray

LEAST_MIXTURES = 4  # of fewer a correlation says nothing
_BLOCK = 64  # resamples alive at a time


class Correlation(NamedTuple):
    """A correlation and its intervals; NaN where there is none."""

    value: float
    low: float  # if other mixtures had been drawn
    high: float
    document_low: float  # if other documents had been drawn
    document_high: float


class Agreement(NamedTuple):
    """How predicted and trained losses agree on a part of the mixtures.

    Attributes:
        domain: "all" mixtures, those "in" or "out" of the target's domain.
        size: mixtures of this many experts; None for all sizes; "within" for all, each
            less the mean of its size.
        pairs: mixtures of all targets together.
        targets: over which the correlation is the mean.
        pearson: of losses.
        spearman: of losses.
        kendall: of losses.
    """

    domain: str
    size: int | str | None
    pairs: int
    targets: int
    pearson: Correlation
    spearman: Correlation
    kendall: Correlation


def agreement(
    predicted: Mapping[str, Losses],
    trained: Mapping[str, Losses],
    sizes: Sequence[int],
    *,
    in_domain: Mapping[str, Sequence[bool]] | None = None,
    key: jax.Array | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Agreement]:
    """How a proxy's losses agree with those of the models trained for real.

    Args:
        predicted: target -> losses of K mixtures, f64[K] or by document.
        trained: target -> losses of the same mixtures trained. Where both sides of
            every target are by document, intervals over documents are given too.
        sizes: i64[K], experts in each mixture.
        in_domain: target -> bool[K], whether the target's domain is in the mixture;
            None where targets are no domains: then there is "all" only.
        key: of the resampling; None for `jax.random.key(0)`.
        resamples: how many.
        confidence: of the intervals.

    Returns:
        A row for each domain ("all", "in", "out") and size (None, each one, "within")
        for which some target has at least 4 mixtures; other targets are left out of it.

    Raises:
        UserError: sides of different targets or mixtures, or of other documents.

    >>> rows = agreement({"exams": [1, 2, 3, 5]}, {"exams": [2, 4, 6, 10]}, [2] * 4)
    >>> [(row.size, round(row.pearson.value, 3)) for row in rows]
    [(None, 1.0), (2, 1.0)]
    """
    key = jax.random.key(0) if key is None else key
    sizes, targets = np.asarray(sizes), list(predicted)
    _check_sides(predicted, trained, sizes, in_domain)
    sides = [_columns(side, targets) for side in (predicted, trained)]
    document_draws = _document_draws(predicted, trained, targets, key, resamples)
    domains = {"all": np.ones(sides[0].shape, bool)}
    if in_domain is not None:
        domains["in"] = np.array([in_domain[t] for t in targets], bool).T
        domains["out"] = ~domains["in"]
    choices = jax.random.randint(key, (resamples, len(sizes)), 0, len(sizes))
    choices = np.concatenate([np.arange(len(sizes))[None], choices])  # 0: as they are
    rows = []
    for domain, inside in domains.items():
        for size in (None, *map(int, np.unique(sizes)), "within"):
            where = _usable_mixtures(inside, sizes, size)
            if not where.any() or (size == "within" and len(np.unique(sizes)) < 2):
                continue
            groups = sizes if size == "within" else np.zeros_like(sizes)
            parts = (*sides, where, groups)
            value, *draws = _correlations(*(part[choices] for part in parts))
            ends = [_ends(value, draws, confidence)]
            if document_draws is not None:
                fixed = (np.stack([part] * resamples) for part in (where, groups))
                draws = _correlations(*document_draws, *fixed)
                ends.append(_ends(value, draws, confidence))
            else:
                ends.append(np.full_like(ends[0], np.nan))
            table = np.concatenate([value[None], *ends])
            found = [Correlation(*map(float, column)) for column in table.T]
            targets_used = int(where.any(axis=0).sum())
            rows.append(Agreement(domain, size, int(where.sum()), targets_used, *found))
    return rows


def regret(chosen: int, trained: Losses) -> float:
    """What the choice costs: its trained loss less that of the best trained, in nats.

    Args:
        chosen: index of the mixture that a proxy or a search would have picked.
        trained: losses of the K mixtures; NaN for one that was not trained.

    Raises:
        UserError: the choice itself was not trained.

    >>> regret(0, [3.25, 3.0, 4.0])
    0.25
    """
    losses = _losses(trained)
    if not np.isfinite(losses[chosen]):
        raise errors.UserError(f"mixture {chosen} has no trained loss; train it first")
    return float(losses[chosen] - np.nanmin(losses))


def _correlations(predicted, trained, where, groups) -> np.ndarray:
    """f64[R, 3], the mean over targets of the correlations within groups.

    Args:
        predicted: f32[R, K, E].
        trained: f32[R, K, E].
        where: bool[R, K, E].
        groups: i64[R, K]; one group leaves correlations as they are.
    """
    count = len(predicted)
    filled = -(-count // _BLOCK) * _BLOCK - count  # whole blocks: one loop to compile
    parts = (predicted, trained, where, groups)
    parts = [np.concatenate([part, np.repeat(part[:1], filled, 0)]) for part in parts]
    return np.asarray(_mean_correlations(*parts), np.float64)[:count]


@jax.jit
def _mean_correlations(predicted, trained, where, groups):
    def of_target(x, y, where, groups):
        broken = jnp.any(where & ~(jnp.isfinite(x) & jnp.isfinite(y)))
        x = correlation.less_group_mean(x, groups, where)
        y = correlation.less_group_mean(y, groups, where)
        return correlation.all_three(x, y, where), broken

    def once(parts):
        over_targets = jax.vmap(of_target, in_axes=(1, 1, 1, None))
        found, broken = over_targets(*parts)
        # A target whose resample is constant is left out; a NaN in the data is not.
        return jnp.where(jnp.any(broken), jnp.nan, jnp.nanmean(found, axis=0))

    parts = (predicted, trained, where, groups)
    return jax.lax.map(once, parts, batch_size=_BLOCK)


def _ends(value, draws, confidence) -> np.ndarray:
    """The percentile interval of each correlation, [2, 3]; NaN where it is NaN."""
    draws = np.where(np.isnan(value), 0.0, np.asarray(draws))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.where(np.isnan(value), np.nan, np.nanquantile(draws, tails, axis=0))


def _document_draws(predicted, trained, targets, key, resamples):
    """Losses of both sides in every resample, f32[R, K, E] each; None without them."""
    sides = [side[t] for side in (predicted, trained) for t in targets]
    if not all(isinstance(side, documents.DocumentLosses) for side in sides):
        return None
    columns = []
    for number, target in enumerate(targets):
        ours, theirs = predicted[target], trained[target]
        both = np.concatenate([ours.nats, theirs.nats])
        draws = ratios.resample_ratios(
            both,
            ours.tokens,
            ours.document,
            key=jax.random.fold_in(key, number),
            resamples=resamples,
        )
        columns.append(jnp.split(draws, 2, axis=1))
    return [np.stack(side, axis=2) for side in zip(*columns, strict=True)]


def _usable_mixtures(inside, sizes, size) -> np.ndarray:
    """bool[K, E]: the mixtures of a row of the table, in targets that have enough."""
    where = inside.copy()
    if size == "within":  # alone in its size, a mixture is at its mean by definition
        for each in np.unique(sizes):
            group = (sizes == each)[:, None] & where
            where &= ~(group & (group.sum(axis=0) < 2)[None])
    elif size is not None:
        where &= (sizes == size)[:, None]
    return where & (where.sum(axis=0) >= LEAST_MIXTURES)[None]


def _columns(side: Mapping[str, Losses], targets: Sequence[str]) -> np.ndarray:
    """f32[K, E], each column less its mean: small differences survive float32."""
    columns = np.stack([_losses(side[target]) for target in targets], axis=1)
    finite = np.where(np.isfinite(columns), columns, 0.0)
    return (columns - finite.mean(axis=0)[None]).astype(np.float32)


def _check_sides(predicted, trained, sizes, in_domain) -> None:
    named = [trained] if in_domain is None else [trained, in_domain]
    if not predicted or any(set(side) != set(predicted) for side in named):
        raise errors.UserError("predicted and trained losses are of different targets")
    for target in predicted:
        sides = [predicted[target], trained[target]]
        counts = [len(_losses(side)) for side in sides]
        counts += [] if in_domain is None else [len(in_domain[target])]
        if set(counts) != {len(sizes)}:
            raise errors.UserError(
                f"target {target}: {counts} mixtures, and {len(sizes)} sizes"
            )
        tokens = [s.tokens for s in sides if isinstance(s, documents.DocumentLosses)]
        if len(tokens) == 2 and not np.array_equal(*tokens):
            raise errors.UserError(
                f"target {target}: predicted and trained are of other documents"
            )


def _losses(losses: Losses) -> np.ndarray:
    if isinstance(losses, documents.DocumentLosses):
        return losses.loss
    return np.asarray(losses, np.float64)
