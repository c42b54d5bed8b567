"""Dense retrieval that learns from its reranker while it answers.

index = Index(vectors, ids)                        or Index.build(folder, ...), .open
scores, ids = index.search(queries, 100)           exact, f32[Q, 100]
result = refit_queries(queries, candidates, teacher_scores)      # [B, dim], [B, K, ...]
result.queries, result.losses, result.num_updates

encode         texts -> vectors in few shapes      formats   BEIR folders, TREC runs
bm25           a first stage by words              metrics   recall, nDCG, MRR, MAP
feedback_loop  retrieve, rerank, learn, repeat     rerank    scores that are cached
"""

from jaxlab.retrieval.encode import embed_texts
from jaxlab.retrieval.feedback import (
    average_queries,
    rocchio_queries,
    tour_queries,
    weighted_queries,
)
from jaxlab.retrieval.index import Index
from jaxlab.retrieval.metrics import evaluate
from jaxlab.retrieval.refit import RefitResult, refit_queries

__all__ = [
    "Index",
    "RefitResult",
    "average_queries",
    "embed_texts",
    "evaluate",
    "refit_queries",
    "rocchio_queries",
    "tour_queries",
    "weighted_queries",
]
