"""Losses of every system. A loss takes a model's `apply`, never a model class.

Each factory returns an `Objective`: (params, batch, key, frozen) -> `Loss`, in sums.

Batches of language modelling: `tokens` i32[B, L], and optionally `segment_ids`,
`positions` i32[B, L] and `loss_mask` f32[B, L] (1 where the token counts as a label).
"""

from jaxlab.objectives.adapters import beside_base
from jaxlab.objectives.judged_answers import kto, single_logps
from jaxlab.objectives.language import label_mask, next_token, targets
from jaxlab.objectives.penalties import input_noise, near_anchor, r3f, with_noise
from jaxlab.objectives.preferences import (
    answer_logps,
    asks_reference,
    needs_whole_batch,
    preference,
)
from jaxlab.objectives.ranking import contrastive, listwise, pointwise
from jaxlab.objectives.rewards import bradley_terry, pair_scores, reward
from jaxlab.objectives.tasks import (
    Task,
    classifier,
    divide_by_norm,
    language_model,
    normalize_spectrally,
    task_loss,
)

__all__ = [
    "Task",
    "answer_logps",
    "asks_reference",
    "beside_base",
    "bradley_terry",
    "classifier",
    "contrastive",
    "divide_by_norm",
    "input_noise",
    "kto",
    "label_mask",
    "language_model",
    "listwise",
    "near_anchor",
    "needs_whole_batch",
    "next_token",
    "normalize_spectrally",
    "pair_scores",
    "pointwise",
    "preference",
    "r3f",
    "reward",
    "single_logps",
    "targets",
    "task_loss",
    "with_noise",
]
