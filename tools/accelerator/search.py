"""Exact top-k: bounded by the matmul where queries are many, by memory where few.

Scores and rows are compared with numpy's in float64, for the first queries.
"""

import measure
import numpy as np
import rows

from jaxlab import retrieval

_K = 100


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    entries, dim = (1_000_000, 384) if measure.is_accelerator() else (20_000, 128)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((entries, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = retrieval.Index(vectors)
    many = 1024 if measure.is_accelerator() else 128
    sizes = {"few queries": 8, "many queries": many}
    for name, count in clock.sizes("search", sizes):
        queries = rng.standard_normal((count, dim), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        good, note = compare(index, vectors, queries)
        seconds = measure.seconds(lambda queries=queries: index.search(queries, _K))
        share, of, goal = vectors.nbytes / seconds / peaks.copy(), "copy", None
        if name == "many queries":
            flops = 2 * entries * dim * count / seconds
            share, of = flops / peaks.matmul("highest"), "matmul highest"
            goal = measure.goal("matmul")
        rows.emit(
            "search", f"{count} queries, {entries:,} x {dim}, k {_K}", count / seconds,
            "queries/s", share=share, of=of, goal=goal, good=good, note=note,
        )  # fmt: skip


def compare(index, vectors, queries) -> tuple[bool, str]:
    few = queries[:4]
    scores, found = map(np.asarray, index.search(few, _K))
    exact = few.astype(np.float64) @ vectors.T.astype(np.float64)
    best = -np.sort(-exact, axis=1)[:, :_K]
    own = np.take_along_axis(exact, found, axis=1)
    worst = max(np.abs(best - own).max(), np.abs(best - scores).max())
    return bool(worst < 1e-5), f"scores within {worst:.0e} of float64"
