"""Streams the merges that keep a part of every difference: surveys, then the sum.

What a method must know of a whole tensor, it adds up over blocks in passes of their
own: how often each digit of the magnitudes occurs, which finds the cuts exactly in two
rounds (`merge.sparse.select_on_host`); L1 norms, for those that rescale;
energies, for SCE. The last pass thins and sums, block by block, with the formulas of
the functions over trees (`merge.sparse.sums`) and the same random numbers
(`merge.sparse.random_bits`).

Deviation: float64 tensors are computed in float32, as JAX does by default.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import job as job_lib
from jaxlab.merge.files.passes import parts as parts_lib
from jaxlab.merge.sparse import at_random, random_bits, select_on_host, sums, thresholds

_ABOVE = 0xFFFFFFFF  # a pattern above all magnitudes
_CONSENSUS = ("ties", "dare_ties", "breadcrumbs_ties", "della")


class Block(NamedTuple):
    """Consecutive numbers of a part, in buffers that are used again.

    Attributes:
        start: the first number.
        count: how many; the buffers may be longer, and hold zeros then.
        base: f32[numbers].
        differences: f32[M, numbers].
    """

    start: int
    count: int
    base: np.ndarray
    differences: np.ndarray


# A block -> which of its differences are kept, bool[M, numbers].
Keep = Callable[[Block], np.ndarray]
Blocks = Callable[[], Iterator[Block]]


def merge(job: job_lib.Job, part: parts_lib.Part, space: blocks.Workspace) -> None:
    """Merges one part."""
    if not part.size:
        return
    survey = functools.partial(_blocks, job, part, space, True)
    method = job.recipe.method
    if method == "sce":
        keep = _by_variance(part, survey)
        energies = sum(
            np.asarray(_energies(block.differences, keep(block)), np.float64)
            for block in survey()
        )
        shares = sums.shares(jnp.asarray(energies, jnp.float32), part.size)
        finish = functools.partial(_by_shares, shares=shares)
    else:
        keep = _KEEPERS[method](job, part, survey)
        factors = np.ones(len(part.each), np.float32)
        if part.shared["rescale"] == "expectation":
            densities = np.float32([own["density"] for own in part.each])
            factors = 1 / np.where(densities > 0, densities, 1)
        elif part.shared["rescale"]:
            factors = _factors(survey, keep)
        finish = functools.partial(
            _sum_differences,
            factors=factors,
            weights=np.float32(part.weights),
            lam=np.float32(part.shared["lambda"]),
            consensus=method in _CONSENSUS,
            normalize=part.shared["normalize"],
        )
    for block in _blocks(job, part, space, False):
        merged = np.asarray(finish(block.base, block.differences, keep(block)))
        limit = space.block_bytes // merged.itemsize
        for at in range(0, block.count, limit):
            piece = merged[at : min(at + limit, block.count)]
            job.write(part, block.start + at, piece, space)


def block_size(job: job_lib.Job, part: parts_lib.Part) -> int:
    """Numbers of a block: with everything that is made of them, some four chunks."""
    row = max(part.row, 1)
    return min(part.rows_per_chunk(row, job.chunk_bytes) * row, part.size)


def _blocks(job, part, space, survey) -> Iterator[Block]:
    base = job.recipe.base
    members = [k for k in range(len(part.dtypes)) if k != base]
    size = block_size(job, part)
    for start in range(0, part.size, size):
        # New ones each time: what jax made of the last may still refer to them.
        differences = np.zeros((len(members), size), np.float32)
        origin, count = np.zeros(size, np.float32), min(size, part.size - start)
        rows, into = differences[:, :count], origin[:count]
        job_lib.read_wide(job, part, members, base, start, rows, space, into, survey)
        yield Block(start, count, origin, differences)


def _by_size(job, part, survey: Blocks) -> Keep:
    """The largest, or these without the very largest."""
    densities = np.float64([own["density"] for own in part.each])
    if job.recipe.method == "ties":
        ranks = thresholds.ranks_of(densities, part.size)[None]
    else:
        gammas = np.float64([own["gamma"] for own in part.each])
        ranks = thresholds.ranks_between(densities, gammas, part.size)
    limits = _patterns_of_ranks(ranks, part.size, lambda: map(_patterns, survey()))

    def keep(block):
        patterns = _patterns(block, whole=True)
        mask = patterns >= limits[0][:, None]
        return mask & (patterns <= limits[1][:, None]) if len(limits) > 1 else mask

    return keep


def _at_random(job, part, survey: Blocks) -> Keep:
    """Each with the probability that is the density."""
    words = _streams(job, part)

    def keep(block):
        return np.stack(
            [
                random_bits.uniform(
                    own, block.base.shape, part.start + block.start, xp=np
                )
                < np.float32(part.each[k]["density"])
                for k, own in enumerate(words)
            ]
        )

    return keep


def _by_rank(job, part, survey: Blocks) -> Keep:
    """The larger within its row, the likelier."""
    words = _streams(job, part)

    def keep(block):
        shape = part.shape if len(part.shape) < 2 else (-1, *part.shape[1:])
        mask = np.empty(block.differences.shape, bool)
        for k, own in enumerate(part.each):
            rows = block.differences[k].reshape(shape)
            shares = np.float32(own["density"]), np.float32(own["epsilon"])
            chances = np.asarray(_chances(rows, *shares)).reshape(-1)
            first = part.start + block.start
            mask[k] = (
                random_bits.uniform(words[k], (len(chances),), first, xp=np) < chances
            )
        return mask

    return keep


def _by_variance(part, survey: Blocks) -> Keep:
    """Those in which the models differ most."""
    share = part.shared["select_topk"]
    if share >= 1 or share <= 0:
        return lambda block: np.full(block.differences.shape, share >= 1)

    def spread(block):
        return select_on_host.bits(None, np.asarray(_variance(block.differences)))

    def patterns():
        return (spread(block)[None, : block.count] for block in survey())

    nonzero = sum(np.count_nonzero(block) for block in patterns())
    rank = int(np.float32(nonzero) * np.float32(share))
    cut = _patterns_of_ranks(np.array([[rank]]), part.size, patterns)[0, 0]
    return lambda block: np.broadcast_to(spread(block) >= cut, block.differences.shape)


def _patterns_of_ranks(ranks, size, patterns) -> np.ndarray:
    """The patterns of the given ranks among all that `patterns()` yields.

    Args:
        ranks: int[R, M]; 0 is above all, more than `size` below all.
        patterns: () -> blocks uint32[M, numbers].
    """
    cuts = np.where(ranks > size, 0, _ABOVE).astype(np.uint32)
    wanted = [(r, k) for r, k in np.ndindex(ranks.shape) if 0 < ranks[r, k] <= size]
    prefix: dict = dict.fromkeys(wanted)
    rank_in = {entry: int(ranks[entry]) for entry in wanted}
    for shift in select_on_host.DIGITS[4] if wanted else ():
        counts = dict.fromkeys(wanted, 0)
        for block in patterns():
            for r, k in wanted:
                counts[r, k] += select_on_host.digit_counts(
                    block[k], prefix[r, k], shift
                )
        for entry in wanted:
            digit, rank_in[entry] = select_on_host.find(counts[entry], rank_in[entry])
            high = prefix[entry]
            prefix[entry] = digit if high is None else high << 16 | digit
    for entry in wanted:
        cuts[entry] = prefix[entry]
    return cuts


def _patterns(block: Block, whole: bool = False) -> np.ndarray:
    rows = block.differences if whole else block.differences[:, : block.count]
    return select_on_host.bits(None, rows)


def _streams(job, part) -> list[np.ndarray]:
    key = np.array([job.recipe.seed >> 32, job.recipe.seed & 0xFFFFFFFF], np.uint32)
    return [random_bits.stream(key, part.drawn_as, k) for k in range(len(part.each))]


def _factors(survey: Blocks, keep: Keep) -> np.ndarray:
    """What brings the L1 norm of the differences kept back to that of all."""
    before = after = 0.0
    for block in survey():
        whole, thin = _sizes(block.differences, keep(block))
        before, after = before + np.float64(whole), after + np.float64(thin)
    return np.asarray(sums.factor(jnp.float32(before), jnp.float32(after)))


_chances = jax.jit(at_random.probabilities)


@jax.jit
def _sizes(differences, mask):
    size = jax.vmap(sums.size)
    return size(differences), size(sums.keep(differences, mask))


@jax.jit
def _energies(differences, mask):
    return jax.vmap(sums.energy)(sums.keep(differences, mask))


@jax.jit
def _variance(differences):
    return sums.variance(list(differences))


@functools.partial(jax.jit, static_argnames=("consensus", "normalize"))
def _sum_differences(
    base, differences, mask, factors, weights, lam, consensus, normalize
):
    thinned = sums.keep(differences, mask)
    thinned = [factors[k] * delta for k, delta in enumerate(thinned)]
    return sums.combine(
        base, thinned, weights, lam, consensus=consensus, normalize=normalize
    )


@jax.jit
def _by_shares(base, differences, mask, shares):
    thinned = list(sums.keep(differences, mask))
    return sums.combine_by_shares(base, thinned, shares)


_KEEPERS: dict[str, Callable[[job_lib.Job, parts_lib.Part, Blocks], Keep]] = {
    "ties": _by_size,
    "breadcrumbs": _by_size,
    "breadcrumbs_ties": _by_size,
    "dare_linear": _at_random,
    "dare_ties": _at_random,
    "della": _by_rank,
    "della_linear": _by_rank,
}
