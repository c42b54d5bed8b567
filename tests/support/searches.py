"""What an exact search must find: numbers that tie, and the answers by numpy."""

import numpy as np


def whole_numbers(seed, *shape, low=-2, high=3):
    """Small whole numbers: inner products are exact, and most of them tie."""
    drawn = np.random.default_rng(seed).integers(low, high, size=shape)
    return drawn.astype(np.float32)


def expected(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def check_search(index, vectors, queries, k):
    scores, rows = index.search(queries, k)
    wanted = expected(vectors, queries, k)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, wanted[0])
    np.testing.assert_array_equal(rows, wanted[1])
