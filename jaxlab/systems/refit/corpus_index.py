"""An index of a corpus, with the encoder and the texts that it was made from.

    index FOLDER         vectors, ids, and source.json: which corpus and which encoder
    vectors(...)         queries by the same encoder
    bm25_candidates(...) the first documents by words instead
    reranker(...)        a cross-encoder as `retrieval.rerank` asks it

The index itself holds checksums of corpus and encoder and no path, so that two of the
same texts are the same bytes wherever they lie; source.json holds the paths.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import load, retrieval
from jaxlab.core import errors, report, runs, types
from jaxlab.core import progress as progress_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.retrieval import bm25, encode, feedback_loop, formats, rerank

_SOURCE = "source.json"
_WINDOW = 4096  # texts that are sorted by length together; a build resumes at one


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A bi-encoder that is ready.

    Attributes:
        path: where it was loaded from.
        apply: texts' rows to vectors.
        params, tokenizer: its own.
        length: of the longest rows, in tokens; what is beyond is cut.
        mesh: whose devices share the work; None is one device.
    """

    path: str
    apply: Callable
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    length: int
    mesh: jax.sharding.Mesh | None = None


class OpenIndex(NamedTuple):
    """An index and what it was made of."""

    index: retrieval.Index
    encoder: Encoder
    corpus: formats.Corpus


def open_encoder(
    path: str | pathlib.Path,
    *,
    length: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Encoder:
    """Loads a bi-encoder: a Hugging Face folder or a run of `configs/refit.py`.

    Args:
        path: of it.
        length: of the longest rows; None is the encoder's own (sentence-transformers'
            max_seq_length), at most what it has positions for.
        mesh: to share the work on.

    Raises:
        UserError: not such a folder, or longer rows than it has positions for.
    """
    loaded = load.encoder(path, mesh=mesh)
    most = loaded.config.length
    longest = length or loaded.config.row_length or most
    if longest > most:
        raise errors.UserError(
            f"length {longest} is more than the {most} positions of {path}"
        )
    apply, params, tokenizer = loaded.model.apply, loaded.params, loaded.tokenizer
    return Encoder(str(path), apply, params, tokenizer, longest, mesh)


def build(
    folder: str | pathlib.Path,
    corpus: str | pathlib.Path,
    encoder: Encoder,
    *,
    dtype: str = "float32",
    append: bool = False,
    progress: progress_lib.Progress = lambda done, count: None,
) -> tuple[retrieval.Index, int]:
    """Encodes a corpus; where it was interrupted it goes on.

    Args:
        folder: of the index.
        corpus: a corpus.jsonl[.gz] of BEIR's form.
        encoder: that makes the vectors.
        dtype: "float32" or "bfloat16".
        append: add the documents of `corpus` that the index lacks.
        progress: called with (documents done, documents in all).

    Returns:
        The index, and how many documents were longer than the rows.

    Raises:
        UserError: a corpus that cannot be read, an index of something else.
    """
    folder, texts = pathlib.Path(folder), formats.read_corpus(corpus)
    made_from = {"encoder": model_sha256(encoder.path), "length": encoder.length}
    corpora = [str(pathlib.Path(corpus).resolve())]
    if append:
        index = retrieval.Index.open(folder)
        _refuse_other(folder, index, made_from)
        ids, passages = _missing_from(index, texts)
        if not ids:
            raise errors.UserError(f"{folder} has every document of {corpus} already")
        batches = _Batches(encoder, passages, progress)
        index = retrieval.Index.append(folder, batches(0), ids)
        corpora = [*_sources(folder)["corpora"], *corpora]
    else:
        passages = texts.passages()
        made_from["corpus"] = identity(passages)
        batches = _Batches(encoder, passages, progress)
        index = retrieval.Index.build(
            folder, batches, texts.ids, dtype=dtype, made_from=made_from
        )
    source = {
        "corpora": corpora,
        "encoder": str(pathlib.Path(encoder.path).resolve()),
        "length": encoder.length,
    }
    report.write_json(folder / _SOURCE, source)
    return index, batches.truncated


class _Batches:
    """Vectors of passages window by window, and how many of those were cut."""

    def __init__(self, encoder: Encoder, passages: Sequence[str], progress):
        self.truncated = 0
        self._encoder, self._passages, self._progress = encoder, passages, progress

    def __call__(self, done: int) -> Iterator[np.ndarray]:
        windows = encode.embed_windows(
            self._encoder.apply,
            self._encoder.params,
            self._encoder.tokenizer,
            self._passages[done:],
            length=self._encoder.length,
            window=_WINDOW,
            mesh=self._encoder.mesh,
            progress=lambda count: self._progress(done + count, len(self._passages)),
        )
        for vectors, truncated in windows:
            self.truncated += truncated
            yield vectors


def open_index(
    folder: str | pathlib.Path,
    *,
    encoder: str = "",
    corpora: Sequence[str] = (),
    mesh: jax.sharding.Mesh | None = None,
) -> OpenIndex:
    """Opens what `build` made, with its encoder and its texts.

    Args:
        folder: of the index.
        encoder: where the encoder lies now, if it was moved.
        corpora: where the texts lie now, if they were.
        mesh: to share searches and encoding on.

    Raises:
        UserError: not an index, another encoder, a document without text.
    """
    folder = pathlib.Path(folder)
    index, source = retrieval.Index.open(folder, mesh=mesh), _sources(folder)
    opened = open_encoder(
        encoder or source["encoder"], length=source["length"], mesh=mesh
    )
    made_from = {"encoder": model_sha256(opened.path), "length": opened.length}
    _refuse_other(folder, index, made_from)
    texts = read_texts(folder, index.ids.tolist(), corpora or source["corpora"])
    return OpenIndex(index, opened, texts)


def read_texts(
    folder: str | pathlib.Path,
    ids: Sequence[str] | None = None,
    corpora: Sequence[str] = (),
) -> formats.Corpus:
    """The texts of an index, in the order of its rows; no vector is read.

    Args:
        folder: of the index.
        ids: of its rows; None asks the index.
        corpora: where the texts lie now, if they were moved.

    Raises:
        UserError: not an index, or a document without text.
    """
    folder = pathlib.Path(folder)
    if ids is None:
        ids = retrieval.Index.open(folder).ids.tolist()
    corpora = corpora or _sources(folder)["corpora"]
    corpus = formats.read_corpora(corpora)  # of one id, what was encoded comes first
    rows = {each: row for row, each in enumerate(corpus.ids)}
    if missing := [each for each in ids if each not in rows]:
        raise errors.UserError(
            f"{len(missing)} documents of {folder} have no text in "
            f"{', '.join(corpora)}, e.g. {missing[0]!r}; name the files with --corpus"
        )
    order = [rows[each] for each in ids]
    return formats.Corpus(*([column[row] for row in order] for column in corpus))


def bm25_candidates(
    model: bm25.Bm25, queries: Sequence[str], count: int
) -> feedback_loop.Candidates:
    """The first `count` documents of each query by BM25, for a loop of feedback.

    Args:
        model: of the index's texts, in the order of its rows and without ids.
        queries: texts.
        count: at most; those that share no term with a query come last, in row order.
    """
    started = time.perf_counter()
    scores, rows = model.search(queries, count)
    seconds = time.perf_counter() - started
    return feedback_loop.Candidates(rows.astype(np.int64), scores, seconds)


def vectors(
    encoder: Encoder,
    texts: Sequence[str],
    progress: progress_lib.Progress = lambda done, count: None,
) -> encode.Encoded:
    """Vectors of queries."""
    return encode.embed_texts(
        encoder.apply,
        encoder.params,
        encoder.tokenizer,
        texts,
        length=encoder.length,
        mesh=encoder.mesh,
        progress=lambda done: progress(done, len(texts)),
    )


def reranker(
    path: str | pathlib.Path,
    queries: Sequence[str],
    passages: Sequence[str],
    *,
    length: int = 128,
    prior: float = 0.0,
    retriever: tuple[retrieval.Index, np.ndarray] | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> rerank.Reranker:
    """A cross-encoder: (numbers of queries, rows of passages) -> its logits.

    With a prior, plus that times the inner product of the retriever's vectors: a
    reranker that was trained with one knows only what the retriever gets wrong.

    Args:
        path: a Hugging Face folder or a run of `configs/refit.py:cross_encoder`.
        queries, passages: all texts.
        length: of the rows; of longer pairs the longer text is cut.
        prior: weight of the retriever; see `prior_of`.
        retriever: index and vectors of the queries, for the prior.
        batch_tokens: of a batch.
        mesh: whose devices share a batch.

    Raises:
        UserError: not a cross-encoder, or a prior without a retriever.
    """
    if prior and retriever is None:
        raise errors.UserError("a prior needs the retriever; give index and vectors")
    scorer = load.scorer(path, mesh=mesh)
    length = min(length, scorer.config.length)

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


def identity(*parts: Any) -> str:
    """A name for what scores depend on: texts, files of models, numbers."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def model_sha256(path: str) -> str:
    """Of the files that a model's answers depend on, by name."""
    digest = hashlib.sha256()
    kinds = ("*.safetensors", "*.json", "*.model")
    folder = pathlib.Path(path)
    if runs.has_checkpoints(folder):  # the last one decides
        kinds = (runs.CONFIG, f"{runs.CHECKPOINTS}/*/**/*", "data/*.json")
    chosen = sorted({x for kind in kinds for x in folder.glob(kind) if x.is_file()})
    for file in chosen:
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with open(file, "rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _refuse_other(folder, index, made_from) -> None:
    for name, value in made_from.items():
        if index.made_from.get(name) != value:
            raise errors.UserError(
                f"{folder} was made with another {name}; use that one, or build the "
                "index again"
            )


def _missing_from(index, corpus: formats.Corpus) -> tuple[list[str], list[str]]:
    """Ids and passages of the documents that an index lacks."""
    indexed = {*index.ids.tolist()}
    pairs = zip(corpus.ids, corpus.passages(), strict=True)
    missing = [(each, passage) for each, passage in pairs if each not in indexed]
    return [each for each, _ in missing], [passage for _, passage in missing]


def _sources(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _SOURCE
    if not path.is_file():
        raise errors.UserError(
            f"{folder} has no {_SOURCE}; build it with jaxlab retrieve index"
        )
    return json.loads(path.read_text("utf-8"))
