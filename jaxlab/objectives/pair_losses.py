r"""The losses of a pair of answers, by name: DPO and its relatives, CPO, SimPO, ORPO.

With c and r the log-ratios log p - log q of the chosen and the rejected answer, under
the policy p and its reference q, h = c - r, s = sigmoid, and e the label smoothing:

    sigmoid       -(1 - e) log s(b h) - e log s(-b h)     DPO, arXiv:2305.18290, eq. 7
    sigmoid_norm  the same of means over an answer's tokens (open-instruct's dpo_norm)
    robust        unbiased where labels are flipped       arXiv:2403.00409, eq. 11
    hinge         max(0, 1 - b h)                         SLiC, arXiv:2305.10425
    ipo, ipo_sum  (h - 1 / (2 b))^2                       arXiv:2310.12036, eq. 17; of
                  token means, as TRL's, and of sums, as EasyLM's
    exo_pair      KL(s(b h), s(-b h) || 1 - e, e)         EXO, arXiv:2402.00856, eq. 16
    nca_pair      -log s(b c) - 0.5 log s(-b c) - 0.5 log s(-b r)       arXiv:2402.05369
    bco_pair      -log s(b c) - log s(-b r)               BCO, arXiv:2404.04656, without
                  its shift
    sppo_hard     (c - 1 / (2 b))^2 + (r + 1 / (2 b))^2   arXiv:2405.00675, eq. 4.7
    aot           sigmoid of the batch's sorted log p(chosen) - log p(rejected) less the
                  sorted ones of q                        AOT, arXiv:2406.05882
    aot_unpaired  sigmoid of the sorted c less the sorted r
    apo_zero      1 - s(b c) + s(b r)                     APO, arXiv:2408.06266, eq. 7
    apo_down      s(b c) + 1 - s(b h)                     the same, eq. 8
    discopop      (1 - m) (-log s(b h)) + m exp(-b h), m = s(b h / temperature)
                  arXiv:2406.08414, eq. 5
    sft           -log p(token), mean over the chosen answers' tokens of the batch

without a reference, c and r being log p:

    cpo           sigmoid, plus sft                       CPO, arXiv:2401.08417, eq. 5
    cpo_hinge, cpo_ipo                                    the same with hinge, with ipo
    simpo         sigmoid of token means                  SimPO, arXiv:2405.14734, eq. 6
    orpo          sft - b log s(log odds(c) - log odds(r)), odds = P / (1 - P), of token
                  means                                   ORPO, arXiv:2403.07691, eq. 6

`0.8*sigmoid + 0.2*bco_pair + sft` is their weighted sum (MPO, arXiv:2411.10442).

Deviations: ORPO's and CPO's sft is of the answers alone; TRL's ORPO counts the prompt.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core import errors

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
_MOST = 80.0  # of an exponent, so that exp() of it is finite
_NUMBER = r"\d+(?:\.\d*)?(?:e-?\d+)?"


class Strengths(NamedTuple):
    """The settings of a loss; see `objectives.preference`."""

    beta: Any = 0.1
    label_smoothing: Any = 0.0
    target_margin: Any = 0.0
    temperature: float = 0.05
    divergence: str = "reverse_kl"
    divergence_alpha: float = 0.5


class Answers(NamedTuple):
    """Log-probabilities of pairs.

    Attributes:
        policy, reference: f32[B, 2]: log p and log q, sums over an answer's tokens.
        sizes: f32[B, 2]: these tokens.
    """

    policy: jax.Array
    reference: jax.Array
    sizes: jax.Array

    @property
    def where(self) -> jax.Array:
        """bool[B]: which pairs count."""
        return jnp.all(self.sizes > 0, axis=1)

    @property
    def cross_entropy(self) -> jax.Array:
        """f32[]: of the chosen answers, per token."""
        where = self.where
        tokens = jnp.sum(jnp.where(where, self.sizes[:, 0], 0.0))
        total = -jnp.sum(jnp.where(where, self.policy[:, 0], 0.0))
        return total / jnp.maximum(tokens, 1.0)


class Ratios(NamedTuple):
    """What a loss is of; sums of log-probabilities, or means over tokens.

    Attributes:
        margin: f32[B]: score of chosen less that of rejected, less the target margin.
        ratios: f32[B, 2]: log p - log q.
        policy, reference: f32[B, 2]: log p and log q.
        where: bool[B]: which pairs count.
        cross_entropy: f32[]: of `sft`.
    """

    margin: jax.Array
    ratios: jax.Array
    policy: jax.Array
    reference: jax.Array
    where: jax.Array
    cross_entropy: jax.Array


class PairLoss(NamedTuple):
    """One of the losses.

    Attributes:
        each: (Ratios, Strengths) -> f32[B].
        is_mean: of means over an answer's tokens, not of sums.
        has_reference: it compares with a reference policy.
        uses: settings that it has besides `beta`.
        nll: weight of the chosen answers' cross-entropy, which is its own.
        is_of_batch: a pair's loss depends on the other pairs of the batch.
    """

    each: Callable[[Ratios, Strengths], jax.Array]
    is_mean: bool = False
    has_reference: bool = True
    uses: frozenset = frozenset()
    nll: float = 0.0
    is_of_batch: bool = False


def _smooth(x, chance):
    return -(1 - chance) * jax.nn.log_sigmoid(x) - chance * jax.nn.log_sigmoid(-x)


def _sigmoid(x: Ratios, s: Strengths):
    return _smooth(s.beta * x.margin, s.label_smoothing)


def _robust(x: Ratios, s: Strengths):
    scaled, chance = s.beta * x.margin, s.label_smoothing
    wrong = -jax.nn.log_sigmoid(-scaled)
    right = -(1 - chance) * jax.nn.log_sigmoid(scaled)
    return (right - chance * wrong) / (1 - 2 * chance)


def _hinge(x: Ratios, s: Strengths):
    return jax.nn.relu(1 - s.beta * x.margin)


def _ipo(x: Ratios, s: Strengths):
    return (x.margin - 1 / (2 * s.beta)) ** 2


def _exo(x: Ratios, s: Strengths):
    scaled, chance = s.beta * x.margin, s.label_smoothing
    right, wrong = jax.nn.log_sigmoid(scaled), jax.nn.log_sigmoid(-scaled)
    return jnp.exp(right) * (right - math.log1p(-chance)) + jnp.exp(wrong) * (
        wrong - math.log(chance)
    )


def _nca(x: Ratios, s: Strengths):
    chosen, rejected = s.beta * x.ratios[:, 0], s.beta * x.ratios[:, 1]
    push_down = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * push_down


def _bco(x: Ratios, s: Strengths):
    chosen, rejected = s.beta * x.ratios[:, 0], s.beta * x.ratios[:, 1]
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def _sppo(x: Ratios, s: Strengths):
    aim = 1 / (2 * s.beta)
    return (x.ratios[:, 0] - aim) ** 2 + (x.ratios[:, 1] + aim) ** 2


def _aot(x: Ratios, s: Strengths):
    ours, theirs = (
        x.policy[:, 0] - x.policy[:, 1],
        x.reference[:, 0] - x.reference[:, 1],
    )
    return _of_sorted(ours, theirs, x.where, s)


def _aot_unpaired(x: Ratios, s: Strengths):
    return _of_sorted(x.ratios[:, 0], x.ratios[:, 1], x.where, s)


def _of_sorted(ours, theirs, where, s: Strengths):
    """Losses by rank, those of what counts in the places that count."""
    last = jnp.finfo(jnp.float32).max  # what does not count is sorted behind all others
    ours, theirs = (jnp.sort(jnp.where(where, x, last)) for x in (ours, theirs))
    count = jnp.sum(where)
    counts = jnp.arange(len(where)) < count
    ours, theirs = (jnp.where(counts, x, 0.0) for x in (ours, theirs))
    each = _smooth(s.beta * (ours - theirs), s.label_smoothing)
    # A sum over ranks: every pair that counts has the mean.
    mean = jnp.sum(jnp.where(counts, each, 0.0)) / jnp.maximum(count, 1)
    return jnp.broadcast_to(mean, where.shape)


def _apo_zero(x: Ratios, s: Strengths):
    chosen, rejected = s.beta * x.ratios[:, 0], s.beta * x.ratios[:, 1]
    return 1 - jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected)


def _apo_down(x: Ratios, s: Strengths):
    chosen = s.beta * x.ratios[:, 0]
    scaled = s.beta * (x.ratios[:, 0] - x.ratios[:, 1])
    return jax.nn.sigmoid(chosen) + 1 - jax.nn.sigmoid(scaled)


def _discopop(x: Ratios, s: Strengths):
    scaled = s.beta * x.margin
    blend = jax.nn.sigmoid(scaled / s.temperature)
    exponential = jnp.exp(jnp.minimum(-scaled, _MOST))
    return -jax.nn.log_sigmoid(scaled) * (1 - blend) + exponential * blend


def _sft(x: Ratios, s: Strengths):
    del s
    return jnp.broadcast_to(x.cross_entropy, x.where.shape)


def _orpo(x: Ratios, s: Strengths):
    # A certain answer has infinite odds; 1e-7 from it they are as good as that.
    means = jnp.minimum(x.policy, -1e-7)
    odds = means - _log1mexp(means)
    return -s.beta * jax.nn.log_sigmoid(odds[:, 0] - odds[:, 1])


def _log1mexp(x):
    """log(1 - exp(x)) of x below 0; Maechler 2012: which form is exact where."""
    is_near = x > -math.log(2)
    near, far = jnp.where(is_near, x, -1.0), jnp.where(is_near, -1.0, x)
    return jnp.where(is_near, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))


_MARGIN = frozenset({"target_margin"})
_OF_SCORES = _MARGIN | {"divergence", "divergence_alpha"}
_SMOOTHED = _OF_SCORES | {"label_smoothing"}
_ALONE = {"has_reference": False}
LOSSES = {
    "sigmoid": PairLoss(_sigmoid, uses=_SMOOTHED),
    "sigmoid_norm": PairLoss(_sigmoid, is_mean=True, uses=_SMOOTHED),
    "robust": PairLoss(_robust, uses=_SMOOTHED),
    "hinge": PairLoss(_hinge, uses=_OF_SCORES),
    "ipo": PairLoss(_ipo, is_mean=True, uses=_OF_SCORES),
    "ipo_sum": PairLoss(_ipo, uses=_OF_SCORES),
    "exo_pair": PairLoss(_exo, uses=_SMOOTHED),
    "nca_pair": PairLoss(_nca),
    "bco_pair": PairLoss(_bco),
    "sppo_hard": PairLoss(_sppo),
    "aot": PairLoss(_aot, uses=frozenset({"label_smoothing"}), is_of_batch=True),
    "aot_unpaired": PairLoss(
        _aot_unpaired, uses=frozenset({"label_smoothing"}), is_of_batch=True
    ),
    "apo_zero": PairLoss(_apo_zero),
    "apo_down": PairLoss(_apo_down),
    "discopop": PairLoss(_discopop, uses=_OF_SCORES | {"temperature"}),
    "sft": PairLoss(_sft, is_of_batch=True, **_ALONE),
    "cpo": PairLoss(_sigmoid, uses=_MARGIN | {"label_smoothing"}, nll=1.0, **_ALONE),
    "cpo_hinge": PairLoss(_hinge, uses=_MARGIN, nll=1.0, **_ALONE),
    "cpo_ipo": PairLoss(_ipo, is_mean=True, uses=_MARGIN, nll=1.0, **_ALONE),
    "simpo": PairLoss(
        _sigmoid, is_mean=True, uses=_MARGIN | {"label_smoothing"}, **_ALONE
    ),
    "orpo": PairLoss(_orpo, is_mean=True, nll=1.0, **_ALONE),
}


def parse(loss: str) -> dict[str, float]:
    """Name -> weight of a loss, or of a sum of several.

    Raises:
        ValueError: an unknown loss, one that is there twice, or no sum of losses.

    >>> parse("0.8*sigmoid + 0.2*bco_pair + sft")
    {'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 1.0}
    """
    weights: dict[str, float] = {}
    for term in loss.split("+"):
        number, _, name = term.strip().rpartition("*")
        name, number = name.strip(), number.strip() or "1"
        if name not in LOSSES or not re.fullmatch(_NUMBER, number):
            raise errors.ArgumentError(
                f"loss {loss!r}; use one of {', '.join(LOSSES)}, or a sum of them as "
                "0.8*sigmoid + 0.2*bco_pair"
            )
        if name in weights:
            raise errors.ArgumentError(f"loss {loss!r} has {name} twice; add them up")
        weights[name] = float(number)
    return weights


def add_up(
    answers: Answers, weights: Mapping[str, float], nll: float, strengths: Strengths
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Losses f32[B] of pairs, and metrics f32[B] of the first of the terms.

    Args:
        answers: of the pairs.
        weights: of `parse`.
        nll: weight of the chosen answers' cross-entropy.
        strengths: of all terms.
    """
    kinds = {name: LOSSES[name] for name in weights}
    compared = {name: _compare(answers, one, strengths) for name, one in kinds.items()}
    terms = []
    for name, one in kinds.items():
        each = one.each(compared[name], strengths)
        terms.append(each if weights[name] == 1 else weights[name] * each)
    if nll:
        terms.append(jnp.broadcast_to(nll * answers.cross_entropy, terms[0].shape))
    first = next(iter(compared.values()))
    metrics = {
        "accuracy": first.margin > 0,
        "margin": strengths.beta * first.margin,
        "chosen_reward": strengths.beta * first.ratios[:, 0],
        "rejected_reward": strengths.beta * first.ratios[:, 1],
    }
    return sum(terms[1:], terms[0]), metrics


def _compare(answers: Answers, one: PairLoss, strengths: Strengths) -> Ratios:
    policy, reference, sizes = answers
    if not one.has_reference:
        reference = jnp.zeros_like(policy)
    ratios = scores = policy - reference
    if "divergence" in one.uses:
        scores = diverge(ratios, strengths.divergence, strengths.divergence_alpha)
    if one.is_mean:
        per = jnp.maximum(sizes, 1.0)
        scores, ratios, policy, reference = (
            x / per for x in (scores, ratios, policy, reference)
        )
    margin = scores[:, 0] - scores[:, 1] - strengths.target_margin
    entropy = answers.cross_entropy
    return Ratios(margin, ratios, policy, reference, answers.where, entropy)


def diverge(ratios: jax.Array, divergence: str, alpha: float) -> jax.Array:
    """f'(p / q) of log-ratios, by which a policy is held to its reference.

    Wang et al. 2023 (arXiv:2309.16240), table 1; up to constants, which margins do not
    see. `alpha` 1 is reverse_kl, which leaves the ratios as they are; of alpha 0.5 it
    is 2 - 2 / sqrt(p / q).

    >>> diverge(jnp.log(jnp.array([1.0, 4.0])), "forward_kl", 0.0).tolist()
    [0.0, 0.75]
    """
    if divergence == "forward_kl":
        return 1 - jnp.exp(jnp.minimum(-ratios, _MOST))
    if divergence == "js":
        return math.log(2) + jax.nn.log_sigmoid(ratios)
    if divergence == "alpha" and abs(alpha - 1) > 1e-6:
        power = alpha - 1
        return (jnp.exp(jnp.minimum(power * ratios, _MOST)) - 1) / power
    return ratios
