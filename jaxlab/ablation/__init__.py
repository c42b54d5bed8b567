"""Data ablation by merging: predict how any mixture of data would train, from averages.

pool = ModelPool.create({"math": params, "code": params, "web": params})
ranking = rank_mixtures(pool, pool.mixtures(), {"exams": batches}, token_losses)
"""

from jaxlab.ablation.pool import Cost, Mixture, ModelPool
from jaxlab.ablation.proxies import (
    Baselines,
    RankedMixture,
    baselines,
    individual_losses,
    mean_of_individual_losses,
    proxy_losses,
    rank_mixtures,
)

__all__ = [
    "Baselines",
    "Cost",
    "Mixture",
    "ModelPool",
    "RankedMixture",
    "baselines",
    "individual_losses",
    "mean_of_individual_losses",
    "proxy_losses",
    "rank_mixtures",
]
