"""Speed of the exact search on this CPU against faiss-cpu's IndexFlatIP and numpy.

    python tools/bench_search.py                      100k x 384, k 100, Q 1000 and 32
    python tools/bench_search.py --pairs 3 --queries 32

Random unit vectors in float32. All three hold the vectors in memory and take and return
numpy arrays. numpy is the plain program: `queries @ vectors.T`, argpartition, sort of
the k. Every library uses its own default number of threads. Measurements alternate;
ratios are medians over the rounds. Checked in the same run: scores within 1e-5 of
faiss's, ids equal but where scores are that near.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle peers must not spin
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import faiss
import numpy as np

from jaxlab import retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 100_000), ("dim", 384), ("k", 100), ("pairs", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 32])
    parser.add_argument("--no-numpy", action="store_true")
    parser.add_argument("--json", help="also write the result here")
    arguments = parser.parse_args()
    summary = measure(arguments)
    for count, found in summary.items():
        print(f"\n{count} queries, {arguments.rows} x {arguments.dim}, k {arguments.k}")
        for name, seconds in found["seconds"].items():
            ratio = f"{found['over_faiss'][name]:.2f} x faiss"
            print(
                f"{name:>7}: {seconds:.4f} s (best {found['best'][name]:.4f}), {ratio}"
            )
        print(f"largest difference of scores {found['largest_difference']:.1e}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(summary, file, indent=2)


def measure(arguments) -> dict:
    rng = np.random.default_rng(0)
    vectors = unit(rng, arguments.rows, arguments.dim)
    index, flat = retrieval.Index(vectors), faiss.IndexFlatIP(arguments.dim)
    flat.add(vectors)
    methods = {"jaxlab": index.search, "faiss": flat.search}
    if not arguments.no_numpy:
        methods["numpy"] = lambda queries, k: plain(vectors, queries, k)
    summary = {}
    for count in arguments.queries:
        queries = unit(rng, count, arguments.dim)
        found = {name: run(queries, arguments.k) for name, run in methods.items()}
        seconds = {name: [] for name in methods}
        for _ in range(arguments.pairs):
            for name, run in methods.items():
                started = time.perf_counter()
                run(queries, arguments.k)
                seconds[name].append(time.perf_counter() - started)
        summary[str(count)] = {
            "seconds": {n: statistics.median(s) for n, s in seconds.items()},
            "best": {n: min(s) for n, s in seconds.items()},
            "over_faiss": {n: over(s, seconds["faiss"]) for n, s in seconds.items()},
            "largest_difference": compare(found["jaxlab"], found["faiss"]),
        }
    return summary


def unit(rng, rows: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain(vectors, queries, k: int):
    scores = queries @ vectors.T
    ids = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(scores, ids, axis=1)
    order = np.argsort(-found, axis=1)
    return np.take_along_axis(found, order, 1), np.take_along_axis(ids, order, 1)


def over(seconds: list, others: list) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def compare(ours, theirs) -> float:
    difference = np.abs(ours[0] - theirs[0])
    if difference.max() > 1e-5:
        raise SystemExit(f"scores differ by {difference.max():.1e}")
    for row, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        scores = dict(zip(b.tolist(), theirs[0][row].tolist(), strict=True))
        last = theirs[0][row, -1]
        for column in np.flatnonzero(a != b):
            score = scores.get(int(a[column]), last)
            if abs(score - ours[0][row, column]) > 1e-5:
                raise SystemExit(f"query {row}: row {a[column]} is not faiss's")
    return float(difference.max())


if __name__ == "__main__":
    main()
