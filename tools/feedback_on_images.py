"""Reranker feedback where nothing is text: scikit-learn's 1,797 handwritten digits.

    python tools/feedback_on_images.py WORKDIR        (needs scikit-learn; seconds)

Relevant are the images of the query's digit, about 90 of the 898 that are searched.

    first stage   the 12 first principal components, of unit length, inner products
    reranker      log sum_c p(c | query) p(c | image), a logistic regression of all
                  pixels, fitted on a quarter of the images that is not searched
    queries       another quarter

The index and the loop are those of texts: neither knows what made the vectors.
WORKDIR gets report.html, report.json, runs and measures by query.
"""

import argparse
import pathlib

import numpy as np
from sklearn import datasets, decomposition, linear_model

from jaxlab import retrieval
from jaxlab.commands import output
from jaxlab.core import process, progress
from jaxlab.retrieval import formats, rerank
from jaxlab.systems.refit import comparison, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--components", type=int, default=12)
    parser.add_argument("--k", type=int, default=20, help="documents of feedback")
    parser.add_argument("--rate", type=float, default=comparison.Settings.learning_rate)
    arguments = parser.parse_args()
    process.start()
    workdir, watch = pathlib.Path(arguments.workdir), progress.Clock()
    images, digits = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    fitted, asked, searched = np.split(order, [len(order) // 4, len(order) // 2])

    spectrum = decomposition.PCA(arguments.components).fit(images[fitted])
    vectors = spectrum.transform(images)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = retrieval.Index(vectors[searched])

    model = linear_model.LogisticRegression(max_iter=2000, C=0.01)
    shares = model.fit(images[fitted], digits[fitted]).predict_proba(images)

    def same_digit(queries, rows):
        return np.log(np.sum(shares[asked[queries]] * shares[searched[rows]], axis=1))

    names = [str(i) for i in asked]
    documents = [str(i) for i in range(len(searched))]
    qrels = {
        name: {documents[j]: 1 for j in np.flatnonzero(digits[searched] == digits[i])}
        for name, i in zip(names, asked, strict=True)
    }
    shown = [f"a {digits[i]}" for i in asked]
    queries = comparison.Queries(names, shown, vectors[asked], qrels)
    texts = [f"a {digits[i]}" for i in searched]
    settings = comparison.Settings(k=arguments.k, learning_rate=arguments.rate)
    reranker = rerank.Remembered(same_digit)
    outcomes = comparison.compare(index, queries, reranker, settings, workdir)
    curves = comparison.curves(index, queries, reranker, settings)
    corpus = formats.Corpus(documents, [""] * len(texts), texts)
    report.write(
        workdir, "Feedback from a reranker: digits", outcomes, queries, corpus,
        settings, curves, watch.elapsed(),
    )  # fmt: skip
    differences = comparison.differences(outcomes, settings)
    output.table(*report.cells(outcomes, differences, settings))
    print(f"report: {workdir / 'report.html'}")


if __name__ == "__main__":
    main()
