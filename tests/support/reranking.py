"""A made-up retrieval problem: vectors, queries, and a reranker that knows better."""

import numpy as np

from jaxlab import retrieval


class CountingReranker:
    """A reranker that likes what is near hidden vectors, and counts."""

    def __init__(self, vectors, wanted):
        self.vectors, self.wanted, self.pairs = vectors, wanted, []

    def __call__(self, queries, rows):
        self.pairs += zip(queries.tolist(), rows.tolist(), strict=True)
        return 5 * np.sum(self.wanted[queries] * self.vectors[rows], axis=1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed=0, documents=300, queries=20, dim=16):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(documents, dim))).astype(np.float32)
    asked = unit(rng.normal(size=(queries, dim))).astype(np.float32)
    wanted = asked + 0.5 * rng.normal(size=asked.shape).astype(np.float32)
    return retrieval.Index(vectors), asked, CountingReranker(vectors, wanted)
