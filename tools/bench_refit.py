"""Speed of ReFIT's query updates on this CPU against a torch loop over queries.

    python tools/bench_refit.py                B=64, K=100, dim 384, 100 updates
    python tools/bench_refit.py --pairs 3 --peer-queries 4

The peer is written after the released loop's description: one query after the other, a
new torch.optim.Adam on the query alone, log-softmax of the scaled scores, KLDivLoss
(batchmean, log_target), backward, step. It takes the number of threads, 1 or all, with
which it was faster here, and is timed on --peer-queries of the batch, as its time is
proportional to them. Both are given float32 arrays in memory; jaxlab's are numpy, so
that its time includes the copy. Measurements alternate; the ratio is the median of
pairs. `largest difference` is that of the new queries, coordinate by coordinate.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # an idle torch must not spin
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch

from jaxlab import retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("batch", 64), ("candidates", 100), ("dim", 384), ("updates", 100),
        ("pairs", 7), ("peer-queries", 16),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result here")
    arguments = parser.parse_args()
    problem = make_problem(arguments.batch, arguments.candidates, arguments.dim)
    summary = measure(problem, arguments)
    show(summary, arguments)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(summary, file, indent=2)


def make_problem(batch: int, count: int, dim: int):
    """Unit vectors whose candidates are near their query, and reranker logits."""
    rng = np.random.default_rng(0)
    queries = unit(rng.normal(size=(batch, dim)))
    noise = unit(rng.normal(size=(batch, count, dim)))
    candidates = unit(queries[:, None] + 1.5 * noise)
    scores = 4 * rng.normal(size=(batch, count))
    return tuple(x.astype(np.float32) for x in (queries, candidates, scores))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def measure(problem, arguments) -> dict:
    peer = tuple(x[: arguments.peer_queries] for x in problem)
    few = tuple(x[:2] for x in peer)
    threads = min(
        {1, os.cpu_count() or 1},
        key=lambda n: min(
            measure_seconds(loop, few, arguments.updates, n)[0] for _ in range(3)
        ),
    )
    measure_seconds(together, problem, arguments.updates)  # compiles
    rates = {"jaxlab": [], "torch": []}
    for pair in range(arguments.pairs):
        ours, new = measure_seconds(together, problem, arguments.updates)
        theirs, expected = measure_seconds(loop, peer, arguments.updates, threads)
        rates["jaxlab"].append(len(problem[0]) / ours)
        rates["torch"].append(len(peer[0]) / theirs)
        words = "  ".join(f"{name} {rate[-1]:,.1f}" for name, rate in rates.items())
        print(f"pair {pair + 1}/{arguments.pairs}: queries/s {words}", flush=True)
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    return {
        "queries_per_second": {n: statistics.median(r) for n, r in rates.items()},
        "best_queries_per_second": {n: max(r) for n, r in rates.items()},
        "torch_threads": threads,
        "ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "largest_difference": float(np.abs(new[: len(expected)] - expected).max()),
    }


def measure_seconds(run, problem, *options):
    started = time.perf_counter()
    result = run(*problem, *options)
    return time.perf_counter() - started, result


def together(queries, candidates, scores, updates: int):
    result = retrieval.refit_queries(queries, candidates, scores, num_updates=updates)
    return np.asarray(jax.block_until_ready(result).queries)


def loop(queries, candidates, scores, updates: int, threads: int):
    torch.set_num_threads(threads)
    new = []
    for query, vectors, teacher in zip(queries, candidates, scores, strict=True):
        vectors, teacher = torch.tensor(vectors), torch.tensor(teacher)
        parameter = torch.nn.Parameter(torch.tensor(query))
        start = parameter.detach() @ vectors.T
        scale = 0.5 * (teacher.max() - teacher.min()) / (start.max() - start.min())
        target = torch.log_softmax(teacher, dim=-1)
        divergence = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
        optimizer = torch.optim.Adam([parameter], lr=0.005)
        for _ in range(updates):
            optimizer.zero_grad()
            student = torch.log_softmax(scale * (parameter @ vectors.T), dim=-1)
            divergence(student[None], target[None]).backward()
            optimizer.step()
        new.append(parameter.detach().numpy())
    return np.stack(new)


def show(summary: dict, arguments) -> None:
    print(
        f"\nB={arguments.batch}, K={arguments.candidates}, dim {arguments.dim}, "
        f"{arguments.updates} updates; medians of {arguments.pairs} pairs"
    )
    for name, rate in summary["queries_per_second"].items():
        best = summary["best_queries_per_second"][name]
        print(
            f"{name:>7}: {rate:8,.1f} queries/s (best {best:,.1f}), "
            f"{1e6 / rate / arguments.updates:8,.1f} us an update of one query"
        )
    ratio = summary["ratio"]
    print(
        f"jaxlab / torch ({summary['torch_threads']} threads): median "
        f"{ratio['median']:.1f} of pairs, {ratio['min']:.1f} to {ratio['max']:.1f}; "
        f"largest difference {summary['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
