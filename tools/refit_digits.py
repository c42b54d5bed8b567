"""ReFIT without any text: handwritten digits that look for digits of their kind.

    pip install scikit-learn
    python tools/refit_digits.py OUT

Of scikit-learn's 1,797 scanned digits (8 x 8 pixels; UCI, Alpaydin and Kaynak 1998)
every ninth is a query, the others are documents, and what shows the same digit is
relevant. The retriever sees a picture as 2 x 2 averages, 16 numbers of zero mean and
unit length. The reranker compares all 64 pixels of both, at the best of nine shifts by
a pixel. Nothing is trained. All rows of `jaxlab.systems.refit.comparison`; the page is
OUT/report.html.
"""

import argparse
import pathlib

import numpy as np
from sklearn import datasets

from jaxlab import retrieval
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import progress
from jaxlab.retrieval import formats, rerank
from jaxlab.systems.refit import comparison, report


def main() -> None:
    """One table and one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rate", type=float, default=comparison.Settings.learning_rate)
    args = parser.parse_args()
    watch = progress.Clock()
    args.out.mkdir(parents=True, exist_ok=True)
    images, digits = datasets.load_digits(return_X_y=True)
    asked = np.arange(len(images)) % 9 == 0
    ids = np.array([f"image-{i}" for i in range(len(images))], object)
    shown = np.array([f"a {digit}" for digit in digits], object)
    corpus = formats.Corpus(
        ids[~asked].tolist(), [""] * sum(~asked), shown[~asked].tolist()
    )
    qrels = {
        query: dict.fromkeys(ids[~asked & (digits == digit)], 1)
        for query, digit in zip(ids[asked], digits[asked], strict=True)
    }
    queries = comparison.Queries(
        ids[asked], shown[asked], averages(images[asked]), qrels
    )
    settings = comparison.Settings(
        k=args.k, learning_rate=args.rate, feedback=(5, 10, args.k)
    )
    with mesh_lib.use(mesh_lib.make_mesh({"data": -1})):
        index = retrieval.Index(averages(images[~asked]), corpus.ids)
        reranker = rerank.CachedReranker(best_shift(images[asked], images[~asked]))
        outcomes = comparison.compare(index, queries, reranker, settings, args.out)
        curves = comparison.curves(index, queries, reranker, settings)
    title = "Feedback from a reranker of pictures"
    report.write(
        args.out, title, outcomes, queries, corpus, settings, curves, watch.elapsed()
    )
    print(report.spell_table(outcomes, settings))
    print("recall by documents of feedback", curves.by_feedback)


def averages(images: np.ndarray) -> np.ndarray:
    """f32[N, 16] of [N, 64]."""
    return unit(images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16))


def best_shift(queries: np.ndarray, documents: np.ndarray) -> rerank.Reranker:
    """Cosine of whole pictures, of the document's best shift."""
    padded = np.pad(documents.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    shifts = [(down, right) for down in range(3) for right in range(3)]
    shifted = np.stack(
        [unit(padded[:, a : a + 8, b : b + 8].reshape(-1, 64)) for a, b in shifts],
        axis=1,
    )
    whole = unit(queries)

    def score(asked: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.einsum("pd,psd->ps", whole[asked], shifted[rows]).max(axis=1)

    return score


def unit(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
