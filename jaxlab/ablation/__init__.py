"""Data ablation by merging: predict how any mixture of data would train, from averages.

pool = ModelPool.create({"math": params, "code": params, "web": params})
ranking = rank_mixtures(pool, pool.mixtures(), {"exams": batches}, token_losses)
score = merged_score(pool, {"exams": batches}, token_losses)
best = greedy_search(pool, score, within=Limits(must=("web",), max_size=3))
"""

from jaxlab.ablation import cache, pool_folder
from jaxlab.ablation.convex import convex_search
from jaxlab.ablation.documents import DocumentLosses
from jaxlab.ablation.ensemble import TokenLogps, expert_logps
from jaxlab.ablation.gradient import gradient_search, loss_and_slopes
from jaxlab.ablation.limits import Limits
from jaxlab.ablation.outcomes import Agreement, Correlation, agreement, regret
from jaxlab.ablation.pareto import pareto_front, sweep
from jaxlab.ablation.pool import Cost, Mixture, ModelPool
from jaxlab.ablation.proxies import (
    document_losses,
    model_losses,
    predictions,
    proxy_losses,
)
from jaxlab.ablation.ranking import RankedMixture, rank_mixtures, ranked
from jaxlab.ablation.search import (
    Found,
    ensemble_score,
    enumerate_best,
    greedy_search,
    merged_score,
)

__all__ = [
    "Agreement",
    "Correlation",
    "Cost",
    "DocumentLosses",
    "Found",
    "Limits",
    "Mixture",
    "ModelPool",
    "RankedMixture",
    "TokenLogps",
    "agreement",
    "cache",
    "convex_search",
    "document_losses",
    "ensemble_score",
    "enumerate_best",
    "expert_logps",
    "gradient_search",
    "greedy_search",
    "loss_and_slopes",
    "merged_score",
    "model_losses",
    "pareto_front",
    "pool_folder",
    "predictions",
    "proxy_losses",
    "rank_mixtures",
    "ranked",
    "regret",
    "sweep",
]
