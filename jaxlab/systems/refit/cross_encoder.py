"""A cross-encoder as `retrieval.rerank` asks it: pairs of texts to scores."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxlab import load, models, retrieval
from jaxlab.core import errors, ranges, runs
from jaxlab.core import progress as progress_lib
from jaxlab.data.examples import text_rows
from jaxlab.retrieval import encode, rerank

LENGTH = 128  # tokens of a pair


def reranker(
    path: str | pathlib.Path,
    queries: Sequence[str],
    passages: Sequence[str],
    *,
    length: int | None = None,
    prior: float = 0.0,
    retriever: tuple[retrieval.Index, np.ndarray] | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
    progress: progress_lib.Progress = lambda done, count: None,
) -> rerank.Reranker:
    """A cross-encoder: (numbers of queries, rows of passages) -> its logits.

    With a prior, plus that times the inner product of the retriever's vectors: a
    reranker that was trained with one knows only what the retriever gets wrong.

    Args:
        path: a Hugging Face folder or a run of `configs/refit.py:cross_encoder`.
        queries, passages: all texts.
        length: of the rows, of longer pairs the longer text is cut; None for LENGTH, or
            the model's where that is shorter.
        prior: weight of the retriever; see `prior_of`.
        retriever: index and vectors of the queries, for the prior.
        batch_tokens: of a batch.
        mesh: whose devices share a batch.
        progress: called with (pairs done of those that were asked for at once, None).

    Raises:
        UserError: not a cross-encoder, a prior without a retriever, or rows that are
            longer than the model's.
    """
    if prior and retriever is None:
        raise errors.UserError("a prior needs the retriever; give index and vectors")
    scorer = load.scorer(path, mesh=mesh)
    if not isinstance(scorer.config, models.BertConfig):
        raise errors.UserError(
            f"{path} is a reward model of conversations; give a cross-encoder, e.g. a "
            "run of configs/refit.py:cross_encoder"
        )
    most = scorer.config.length
    length = min(LENGTH, most) if length is None else length
    ranges.check_length("--length", length, most)

    def score(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        encoded = text_rows.encode_pairs(
            scorer.tokenizer,
            [queries[i] for i in numbers],
            [passages[i] for i in rows],
            length,
            cut="longest",
        )
        logits = encode.apply_rows(
            scorer.model.apply,
            scorer.params,
            encoded,
            batch_tokens=batch_tokens,
            mesh=mesh,
            progress=lambda done: progress(done, None),
        )
        if not prior:
            return logits
        index, vectors = retriever
        return logits + prior * np.sum(vectors[numbers] * index.take(rows), axis=1)

    return score


def prior_of(path: str | pathlib.Path) -> float:
    """The weight of the bi-encoder's score beside a cross-encoder's; 0 of a folder.

    A run's config has it as `eval.prior`; older ones have `prior` alone.
    """
    run = runs.find(path)
    if run is None:
        return 0.0
    own = run.config.get("prior", 0.0)
    return float(run.config.get("eval", {}).get("prior", own))
