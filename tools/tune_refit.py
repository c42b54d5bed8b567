"""Chooses the retriever's weight in a reranker, and ReFIT's rate, on held-out queries.

    python tools/tune_refit.py RUN OUT

RUN is a run of `configs/refit.py:cross_encoder`. Its sets and the queries that it was
not trained on are those of its config.json; every pair is scored once and kept in OUT.
The weight is that of the best mean nDCG@10 of reranking the first K. The rate, with
that weight, is that of the best mean nDCG@10 of what the moved query finds; the recall
of the first K is printed beside it.
"""

import argparse
import functools
import pathlib

import ml_collections
import numpy as np

from jaxlab import load, retrieval
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import progress, runs
from jaxlab.retrieval import rerank
from jaxlab.systems.refit import (
    comparison,
    corpus_index,
    cross_encoder,
    mining,
    model_digests,
)


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--priors", type=_floats, default=(0, 10, 20, 40, 80, 160, 320))
    parser.add_argument(
        "--rates", type=_floats, default=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
    )
    parser.add_argument("--queries", type=int, default=40, help="of each set, at most")
    parser.add_argument("--k", type=int, default=50)
    args = parser.parse_args()
    watch = progress.Clock()
    with mesh_lib.use(mesh_lib.make_mesh({"data": -1})):
        sets = _held_out(args, watch)
        print(f"nDCG@10 of reranking {args.k}, by the weight of the retriever")
        prior = _table(args, sets, args.priors, lambda x: (x, 0.005), "rerank")
        recall = f"recall@{args.k}"
        print(f"nDCG@10, then {recall}, of ReFIT by rate, with the weight {prior:g}")
        rated = functools.partial(
            _table, args, sets, args.rates, lambda x: (prior, x), "refit_second"
        )
        rate = rated()
        rated(recall)
    print(f"chosen: --prior {prior:g} --rate {rate:g}")


def _held_out(args, watch):
    """Name -> index, queries, reranker without prior."""
    config = ml_collections.ConfigDict(runs.read(args.run).config)
    path = config.mine.encoder or config.init_from
    encoder, opened = load.encoder(path), corpus_index.open_encoder(path)
    folder = pathlib.Path(config.mine.index or args.run / "index")
    sets = {}
    for number, entry in enumerate(config.data.sets):
        if entry in config.data.sets[:number]:  # up-weighted by being repeated
            continue
        one = mining.mine(
            entry, path, encoder, folder, length=encoder.config.row_length, depth=1,
            held_out=config.data.held_out, seed=config.data.split_seed,
        )  # fmt: skip
        asked = one.held_out[: args.queries]
        texts = [one.queries[x] for x in asked]
        found = corpus_index.vectors(opened, texts, watch.meter("queries"))
        queries = comparison.Queries(
            asked, texts, found.vectors, {x: one.qrels[x] for x in asked}
        )
        args.out.mkdir(parents=True, exist_ok=True)
        scores = rerank.CachedReranker(
            cross_encoder.reranker(
                args.run, texts, one.passages, length=config.data.length
            ),
            args.out / f"{one.name}.bin",
            made_from=model_digests.identity(
                model_digests.model_sha256(str(args.run)), texts
            ),
            progress=watch.meter("pairs reranked"),
        )
        sets[one.name] = retrieval.Index.open(folder / one.name), queries, scores
    return sets


def _table(args, sets, values, settings, row, measure="ndcg@10"):
    """Prints a measure of one row by value and set; returns the best value."""
    print(f"{row:14}" + "".join(f"{name:>20}" for name in sets) + f"{'mean':>10}")
    means = {}
    for value in values:
        prior, rate = settings(value)
        found = []
        for name, (index, queries, scores) in sets.items():
            outcome = comparison.compare(
                index,
                queries,
                rerank.CachedReranker(
                    _with_prior(scores, prior, index, queries.vectors)
                ),
                comparison.Settings((row,), args.k, learning_rate=rate),
                args.out / f"{name}_{prior:g}_{rate:g}",
            )[row]
            found.append(outcome.evaluation.means[measure])
        means[value] = float(np.mean(found))
        cells = "".join(f"{each:20.3f}" for each in found)
        print(f"{value:<14g}{cells}{means[value]:10.4f}", flush=True)
    return max(means, key=means.get)


def _with_prior(scores, prior, index, vectors):
    """The reranker plus prior times the retriever's inner products."""

    def score(numbers, rows):
        known = np.sum(vectors[numbers] * index.take(rows), axis=1)
        return scores(numbers, rows) + prior * known

    return score


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
