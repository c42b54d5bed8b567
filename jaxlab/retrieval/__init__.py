"""Dense retrieval that learns from its reranker while it answers.

result = refit_queries(queries, candidates, teacher_scores)      # [B, dim], [B, K, ...]
result.queries, result.losses, result.num_updates
"""

from jaxlab.retrieval.feedback import (
    average_queries,
    rocchio_queries,
    tour_queries,
    weighted_queries,
)
from jaxlab.retrieval.refit import RefitResult, refit_queries

__all__ = [
    "RefitResult",
    "average_queries",
    "refit_queries",
    "rocchio_queries",
    "tour_queries",
    "weighted_queries",
]
