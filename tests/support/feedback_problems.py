"""Queries, their candidates and a reranker's scores, drawn at random."""

import numpy as np


def draw(seed=0, batch=3, count=5, dim=4, dtype=np.float32):
    """Queries [B, dim], candidates [B, K, dim], teacher scores [B, K]."""
    rng = np.random.default_rng(seed)
    shapes = (batch, dim), (batch, count, dim), (batch, count)
    q, D, t = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    return q, D, 3 * t
