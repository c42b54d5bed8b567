"""What all sparse merges share: a base plus thinned differences, element by element.

    theta = base + lam * sum_k w_k s(theta_k - base)   [/ sum_k w_k]

`s` zeroes elements and may scale the rest. With *consensus* (TIES, Yadav et al. 2023,
arXiv:2306.01708, section 3) every element has an elected sign, that of
`sum_k w_k s_k` (+ where it is 0), and only the terms of that sign take part, in the
divisor too. A divisor of 0 counts as 1.

All functions here are elementwise, so they serve a leaf, a shard or a chunk of it.
What needs the whole leaf comes in as numbers: cuts (`merge.sparse.thresholds`),
factors and shares (sums of `size` and `energy` of the chunks add up to those of the
leaf).

An element that is NaN in any model is NaN in the result, whatever `s` says.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlab.core import bits as bits_lib
from jaxlab.merge.sparse import select_on_device
from jaxlab.merge.trees import leafwise


def combine(
    base: jax.Array,
    thinned: Sequence[jax.Array],
    weights: jax.Array,
    lam: jax.Array,
    *,
    consensus: bool,
    normalize: bool,
) -> jax.Array:
    """The formula above for one leaf or chunk.

    Args:
        base: f32[...].
        thinned: M of `s(theta_k - base)`, f32[...].
        weights: f32[M], or [M, ...] with axes that broadcast against the leaf.
        lam: f32 scalar, or with axes that broadcast.
        consensus: elect signs.
        normalize: divide by the sum of the weights that take part.

    Returns:
        f32[...]; where nothing moves the base it is the base, bit for bit.
    """
    terms = [weights[k] * delta for k, delta in enumerate(thinned)]
    total = _sum(terms)
    if consensus:
        agree = _agree(terms, total)
        total = _sum([jnp.where(a, t, 0) for a, t in zip(agree, terms, strict=True)])
        divisor = _sum([jnp.where(a, weights[k], 0) for k, a in enumerate(agree)])
        divisor = jnp.where(divisor == 0, 1, divisor)
    else:
        divisor = jnp.sum(weights, axis=0)
        divisor = jnp.where(jnp.abs(divisor) < 1e-8, 1, divisor)
    moved = base + lam * (total / divisor if normalize else total)
    still = (lam == 0) | jnp.all(weights == 0, axis=0) | (total == 0)
    return leafwise.pin(moved, jnp.where(still, base, moved))


def combine_by_shares(
    base: jax.Array, thinned: Sequence[jax.Array], shares: jax.Array
) -> jax.Array:
    """SCE's formula: signs are elected without weights, the mean has the shares.

    Args:
        base: f32[...].
        thinned: M of f32[...].
        shares: f32[M]: each model's energy over that of all.
    """
    agree = _agree(thinned, _sum(thinned))
    pairs = list(zip(agree, thinned, strict=True))
    total = _sum([jnp.where(a, shares[k] * d, 0) for k, (a, d) in enumerate(pairs)])
    divisor = _sum([jnp.where(a, shares[k], 0) for k, a in enumerate(agree)])
    moved = base + total / jnp.maximum(divisor, 1e-6)
    return leafwise.pin(moved, jnp.where(total == 0, base, moved))


def keep(delta: jax.Array, mask: jax.Array) -> jax.Array:
    """`delta` where the mask is true, else 0; NaN where it is NaN."""
    return jnp.where(mask | jnp.isnan(delta), delta, 0)


def within(
    delta: jax.Array,
    lower: jax.Array,
    upper: jax.Array | None = None,
    stop: jax.Array | None = None,
    *,
    start: int = 0,
) -> jax.Array:
    """Where magnitudes lie between two cuts, both included.

    Args:
        delta: f32[...].
        lower, upper: unsigned patterns as `select_on_device.bits` gives them.
        stop: of the elements equal to `lower` only those of a lower flat index are in.
        start: the flat index of the first element of a chunk.

    Returns:
        bool[...].
    """
    patterns = select_on_device.bits(delta)
    inside = patterns >= lower
    if upper is not None:
        inside &= patterns <= upper
    if stop is not None:
        index = bits_lib.indices(delta.shape, jnp) + jnp.uint32(start)
        inside &= (patterns != lower) | (index < stop)
    return inside


def size(delta: jax.Array) -> jax.Array:
    """The L1 norm."""
    return jnp.sum(jnp.abs(delta))


def energy(delta: jax.Array) -> jax.Array:
    """The sum of squares."""
    return jnp.sum(jnp.square(delta))


def factor(before: jax.Array, after: jax.Array) -> jax.Array:
    """What brings an L1 norm back to what it was; 1 where either is almost 0."""
    tiny = (before < 1e-7) | (after < 1e-7)
    return jnp.where(tiny, 1, before / jnp.where(tiny, 1, after))


def shares(energies: jax.Array, elements: int) -> jax.Array:
    """Energies f32[M] of leaves of so many elements -> shares that sum to 1."""
    means = energies / max(elements, 1)
    total = jnp.sum(means)
    tiny = jnp.abs(total) < 1e-6
    return jnp.where(tiny, 1 / len(energies), means / jnp.where(tiny, 1, total))


def variance(thinned: Sequence[jax.Array]) -> jax.Array:
    """The population variance over models, element by element; Welford's recurrence.

    It is exactly 0 where all are equal, and the same in every program: so the same
    elements are selected.
    """
    mean, total = thinned[0], jnp.zeros_like(thinned[0])
    for count, delta in enumerate(thinned[1:], start=2):
        off = delta - mean
        mean = mean + off / count
        total = total + narrow_product(off * (delta - mean))
    return total / len(thinned)


def narrow_product(product: jax.Array) -> jax.Array:
    """A product to be added to something, rounded to one bit less than its dtype has.

    Whether a compiler fuses a product with a sum, and so leaves out one rounding,
    depends on the whole program around them: XLA:CPU does it in some, and not in
    others. What decides which elements are taken must not. Rounding to the full
    precision would be removed as doing nothing.
    """
    info = jnp.finfo(product.dtype)
    return jax.lax.reduce_precision(product, info.nexp, info.nmant - 1)


def _agree(terms, total):
    """Whether each term has the elected sign; zeros have none, NaN takes part."""
    return [jnp.where(total >= 0, t > 0, t < 0) | jnp.isnan(t) for t in terms]


def _sum(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
