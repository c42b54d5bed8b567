"""Optimizers as optax transforms, and schedules, from plain configs."""

from jaxlab.core.divergences import kl_divergence, l2, mmd
from jaxlab.optim.accumulate import accumulated
from jaxlab.optim.anchors import AnchorState, anchor_of, keep_anchor
from jaxlab.optim.ascent import TRAMState, climb_metrics
from jaxlab.optim.build import (
    OptimConfig,
    build,
    clip_by_global_norm,
    ema_of,
    parameter_ema,
    schedule,
)
from jaxlab.optim.query_distillation import (
    RerankerFeedbackState,
    match_score_range,
    ranknet_loss,
    reranker_feedback,
    reranker_kl_loss,
)
from jaxlab.optim.sharpness_aware import asam, fisher_sam, sam, tram_fisher
from jaxlab.optim.trust_region import tram

__all__ = [
    "AnchorState",
    "OptimConfig",
    "RerankerFeedbackState",
    "TRAMState",
    "accumulated",
    "anchor_of",
    "asam",
    "build",
    "climb_metrics",
    "clip_by_global_norm",
    "ema_of",
    "fisher_sam",
    "keep_anchor",
    "kl_divergence",
    "l2",
    "match_score_range",
    "mmd",
    "parameter_ema",
    "ranknet_loss",
    "reranker_feedback",
    "reranker_kl_loss",
    "sam",
    "schedule",
    "tram",
    "tram_fisher",
]
