"""The best ensemble: a convex search on cached predictions, with a certificate.

    l(w) = - sum_t c_t log m_t,   m_t = sum_k w_k p_k(t),   sum_t c_t = 1

is convex in w. With g_k = sum_t c_t p_k(t) / m_t (so that d l / d w_k = -g_k and
sum_k w_k g_k = 1) the update

    v_k <- v_k g_k                          (EM of a mixture with fixed components)

never raises the loss. Stronger steps `v_k g_k^power` are tried while they help, and
EM's own is the one to fall back on. For every allowed w', by Jensen's inequality,

    l(w) - l(w') = sum_t c_t log(m'_t / m_t) <= log sum_k w'_k g_k

so that log max_w' w' . g bounds how far w is from the best: `Found.gap`. It is
measured, not assumed: the search stops when it is below a tolerance. Cover 1984, *An
algorithm for maximizing expected log investment return*, has update and bound for the
free simplex.

No model is run. With a cap on the cost, EM's maximisation step is solved exactly
(`Region.likeliest`), so that it stays monotone. With `max_size` the weights are found
first without it, then again over the largest of them: the gap then still bounds the
distance to *every* mixture that the other limits allow.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ablation import ensemble, limits, search
from jaxlab.core import errors, mesh

_PART = 1024  # tokens of a partial sum: sums of sums keep float32 exact to 1e-7
_MOST_POWER = 1e3
_NEGLIGIBLE = 1e-6  # a weight that the tolerance cannot see


def convex_search(
    names: Sequence[str],
    logps: Mapping[str, ensemble.TokenLogps],
    *,
    within: limits.Limits | None = None,
    target_weights: Mapping[str, float] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
) -> search.Found:
    """The weights of the ensemble of the least loss.

    Args:
        names: of the M experts: `pool.names`.
        logps: target -> what they say of its tokens (`ensemble.expert_logps`).
        within: constraints; None for none.
        target_weights: target -> importance; None for equal ones.
        tolerance: of the gap, in nats per token. Float32 ends at about 1e-7.
        max_steps: passes over the cached numbers at most; `gap` tells what is left.

    Returns:
        `evaluations` are the M passes that made the cache. `trace` is the loss after
        each accepted step, over all weights; it never rises but for rounding.

    Raises:
        UserError: no targets, log-probabilities of other experts, no allowed weights,
            or a token that no allowed expert gives a probability.
    """
    weighted = search.normalize(list(logps), target_weights)
    if wrong := [t for t, each in logps.items() if len(each.logps) != len(names)]:
        raise errors.UserError(f"{', '.join(wrong)}: not of {len(names)} experts")
    within = within or limits.Limits()
    region = within.region(names)
    data = _Data(logps, weighted, region.allowed | (region.floor > 0))
    share = region.likeliest(np.ones(len(names)))
    share, loss, gap, trace = _climb(data, region, share, tolerance, max_steps)
    least = loss - gap  # of any allowed weights
    smaller = region.smaller(region.weights(share), within.max_size)
    if smaller is not region:
        share = smaller.likeliest(share)
        share, *_ = _climb(data, smaller, share, tolerance, max_steps)
    mixture = search.as_mixture(names, smaller.settle(share, _NEGLIGIBLE))
    rows = np.array([[mixture.get(name, 0.0) for name in names]])
    by_target = {
        target: float(ensemble.document_losses(each, rows).loss[0])
        for target, each in logps.items()
    }
    loss = sum(weighted[t] * value for t, value in by_target.items())
    return search.Found(
        mixture=mixture,
        predicted_loss=loss,
        by_target=by_target,
        evaluations=len(names),
        trace=tuple(trace),
        gap=max(loss - least, 0.0),
    )


def _climb(data, region, share, tolerance, max_steps):
    """EM with stronger steps: (share, loss, gap, losses of the accepted steps)."""
    loss, slopes = data.at(region.weights(share))
    trace, power = [loss], 1.0
    for _ in range(max_steps):
        gap = float(np.log(region.largest(slopes)))
        if gap <= tolerance:
            break
        step = share * slopes**power
        tried = region.likeliest(step / step.sum())
        new_loss, new_slopes = data.at(region.weights(tried))
        if new_loss > loss and power > 1:
            power = 1.0
            continue
        share, loss, slopes = tried, new_loss, new_slopes
        power = min(power * 1.5, _MOST_POWER)
        trace.append(loss)
    return share, loss, max(gap, 0.0), trace


class _Data:
    """Probabilities of all targets' tokens on the device, and their shares c_t."""

    def __init__(self, logps, weighted, allowed):
        logs, shares = [], []
        for target, each in logps.items():
            if weighted[target]:
                logs.append(np.where(allowed[:, None], each.logps, -np.inf))
                part = np.float64(each.weights)
                shares.append(weighted[target] * part / part.sum())
        log, share = np.concatenate(logs, axis=1), np.concatenate(shares)
        top = log.max(axis=0)
        if not np.isfinite(top).all():
            raise errors.UserError(
                f"{int((~np.isfinite(top)).sum())} tokens get no finite probability "
                "from the allowed experts"
            )
        short = -len(share) % _PART
        probability = np.exp(log - top[None], dtype=np.float32)
        probability = np.pad(probability, ((0, 0), (0, short)), constant_values=1.0)
        self.probability = jnp.asarray(probability.reshape(len(log), -1, _PART))
        share = np.pad(share, (0, short)).reshape(-1, _PART)
        self.share = jnp.asarray(share, jnp.float32)
        self.offset = float(np.concatenate(shares) @ top.astype(np.float64))

    def at(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of weights f64[M], and the slopes g f64[M]."""
        loss, slopes = _loss_and_slopes(
            self.probability, self.share, jnp.asarray(weights, jnp.float32)
        )
        return float(loss) - self.offset, np.asarray(slopes, np.float64)


@jax.jit
def _loss_and_slopes(probability, share, weights):
    """probability [M, parts, tokens], share [parts, tokens], weights [M]."""
    mixed = jnp.tensordot(weights, probability, 1, precision=jax.lax.Precision.HIGHEST)
    loss = -jnp.sum(jnp.sum(share * jnp.log(mixed), axis=1))
    slopes = jnp.sum(jnp.sum(probability * (share / mixed)[None], axis=2), axis=1)
    return mesh.replicate(loss), mesh.replicate(slopes)
