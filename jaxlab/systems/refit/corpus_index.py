"""An index of a corpus, with the encoder and the texts that it was made from.

    index FOLDER         vectors, ids, texts.bin (digests), and source.json: which
                         corpus and which encoder
    vectors(...)         queries by the same encoder

The index itself holds checksums of corpus and encoder and no path, so that two of the
same texts are the same bytes wherever they lie; source.json holds the paths. What the
encoder does to texts (prefixes, lower case) and how its vectors are compared belongs to
the index: it is written down where it is made, and followed when it is searched.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import load, models, retrieval
from jaxlab.core import errors, json_text, ranges, report, types, value_types
from jaxlab.core import progress as progress_lib
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.retrieval import encode, formats, index_files
from jaxlab.systems.refit import model_digests, text_digests

_SOURCE = "source.json"
_KINDS = {
    "corpora": value_types.Kind(
        "a list of paths", lambda x: bool(x) and value_types.TEXTS.accepts(x)
    ),
    "encoder": value_types.TEXT,
    "length": value_types.SIZE,
    "query_prefix": value_types.TEXT,
    "encoder_says": value_types.OBJECT,
}
_SAYS = "encoder_says"  # of texts, when the index was made, followed or not
_WINDOW = 4096  # texts that are sorted by length together; a build resumes at one

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A bi-encoder that is ready.

    Attributes:
        path: where it was loaded from.
        apply: texts' rows to vectors.
        params, tokenizer: its own.
        length: of the longest rows, in tokens; what is beyond is cut.
        config: says what is done to texts.
        mesh: whose devices share the work; None is one device.
        says: what its folder says of texts (`BertConfig.of_texts`), followed or not.
    """

    path: str
    apply: Callable
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    length: int
    config: models.BertConfig
    mesh: jax.sharding.Mesh | None = None
    says: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def of_documents(self) -> dict[str, Any]:
        """What a document's vector depends on beside the weights, if not the default.

        >>> config = models.BertConfig(8, 4, 1, 1, 4, query_prefix="q", lower_case=True)
        >>> Encoder("", None, None, None, 8, config).of_documents
        {'lower_case': True}
        """
        own = self.config.of_texts
        return {name: value for name, value in own.items() if name != "query_prefix"}


class Built(NamedTuple):
    """An index that was made or grew.

    Attributes:
        index: all of it.
        encoded: documents that were encoded for it now or before an interruption; 0
            where the index was there.
        truncated: how many of those encoded now were longer than the rows.
    """

    index: retrieval.Index
    encoded: int
    truncated: int


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
    of_texts: Mapping[str, Any] | None = None,
) -> Encoder:
    """Loads a bi-encoder: a Hugging Face folder or a run of `configs/refit.py`.

    Args:
        path: of it.
        length: of the longest rows; None is the encoder's own (sentence-transformers'
            max_seq_length), at most what it has positions for.
        mesh: to share the work on.
        of_texts: as for `load.encoder`.

    Raises:
        UserError: not such a folder, or longer rows than it has positions for.
    """
    raw = load.bert(path, mesh=mesh)
    loaded = load.as_encoder(path, raw, of_texts)
    most = loaded.config.length
    longest = loaded.config.row_length if length is None else length
    ranges.check_length("--length", longest, most)
    return Encoder(
        str(path),
        loaded.model.apply,
        loaded.params,
        loaded.tokenizer,
        longest,
        loaded.config,
        mesh,
        raw.config.of_texts,
    )


def build(
    folder: str | pathlib.Path,
    corpus: str | pathlib.Path,
    encoder: Encoder,
    *,
    dtype: str = "float32",
    append: bool = False,
    progress: progress_lib.Progress = lambda done, count: None,
) -> Built:
    """Encodes a corpus; where it was interrupted it goes on.

    An index of the same texts by the same encoder is left as it is.

    Args:
        folder: of the index.
        corpus: a corpus.jsonl[.gz] of BEIR's form.
        encoder: that makes the vectors.
        dtype: "float32" or "bfloat16".
        append: add the documents of `corpus` that the index lacks.
        progress: called with (documents done, documents in all).

    Raises:
        UserError: a corpus that cannot be read, a folder of something else.
    """
    index_files.refuse_others(folder)
    folder, texts = pathlib.Path(folder), formats.read_corpus(corpus)
    made_from = _made_from(folder, encoder)
    source = {
        "corpora": [str(pathlib.Path(corpus).resolve())],
        "encoder": str(pathlib.Path(encoder.path).resolve()),
        "length": encoder.length,
    }
    if encoder.config.query_prefix:
        source["query_prefix"] = encoder.config.query_prefix
    if append:
        index, batches = _append(folder, texts, corpus, encoder, made_from, progress)
        before = sources(folder)
        source["corpora"] = [*before["corpora"], *source["corpora"]]
        source |= {x: before[x] for x in (_SAYS,) if x in before}
    else:
        source[_SAYS] = dict(encoder.says)
        made_from["corpus"] = model_digests.identity(texts.passages())
        batches = _Batches(encoder, texts.passages(), progress)
        index = _read_complete(folder, texts.ids, made_from, dtype)
        if index is None:
            index = retrieval.Index.build(
                folder, batches, texts.ids, dtype=dtype, made_from=made_from
            )
        else:
            batches.count = 0
        text_digests.write(folder, texts.passages())
    report.write_json(folder / _SOURCE, source)
    return Built(index, batches.count, batches.truncated)


def _append(folder, texts, corpus, encoder, made_from, progress):
    """The index with the documents that it lacked, and those as batches."""
    index = retrieval.Index.open(folder)
    model_digests.refuse_other(folder, index.made_from, made_from)
    digests = text_digests.read(folder, len(index))
    text_digests.warn_of_changed(folder, index.ids.tolist(), digests, texts)
    ids, passages = _missing_from(index, texts)
    if not ids:
        raise errors.UserError(f"{folder} has every document of {corpus} already")
    batches = _Batches(encoder, passages, progress)
    index = retrieval.Index.append(folder, batches(0), ids)
    text_digests.write(folder, passages, behind=digests)
    return index, batches


def _read_complete(folder, ids, made_from, dtype) -> retrieval.Index | None:
    """The index if it is what would be built; None where there is none.

    Raises:
        UserError: one of something else.
    """
    try:
        index = retrieval.Index.open(folder)
    except errors.UserError:  # not there, unfinished or damaged: it is built
        return None
    same = index.made_from == made_from and index.ids.tolist() == ids
    if not (same and index.dtype == dtype):
        raise errors.UserError(
            f"{folder} holds an index of other texts or another encoder; remove it, "
            "name another folder, or add documents to it with --append"
        )
    return index


class _Batches:
    """Vectors of passages window by window, and how many of those were cut."""

    def __init__(self, encoder: Encoder, passages: Sequence[str], progress):
        self.count, self.truncated = len(passages), 0
        self._encoder, self._passages, self._progress = encoder, passages, progress

    def __call__(self, done: int) -> Iterator[np.ndarray]:
        windows = encode.embed_windows(
            self._encoder.apply,
            self._encoder.params,
            self._encoder.tokenizer,
            map(self._encoder.config.document, self._passages[done:]),
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
    query_prefix: str | None = None,
) -> OpenIndex:
    """Opens what `build` made, with its encoder and its texts.

    Args:
        folder: of the index.
        encoder: where the encoder lies now, if it was moved.
        corpora: where the texts lie now, if they were.
        mesh: to share searches and encoding on.
        query_prefix: before each query; None for what the index was made with.

    Raises:
        UserError: not an index, another encoder, a document without text.
    """
    folder = pathlib.Path(folder)
    index, source = retrieval.Index.open(folder, mesh=mesh), sources(folder)
    opened = open_encoder(
        encoder or source["encoder"],
        length=source["length"],
        mesh=mesh,
        of_texts=of_texts(folder, query_prefix=query_prefix),
    )
    _tell_of_other_texts(folder, opened, query_prefix)
    made_from = _made_from(folder, opened)
    model_digests.refuse_other(folder, index.made_from, made_from)
    texts = read_texts(folder, index.ids.tolist(), corpora or source["corpora"])
    return OpenIndex(index, opened, texts)


def of_texts(
    folder: str | pathlib.Path,
    *,
    query_prefix: str | None = None,
    document_prefix: str | None = None,
) -> dict[str, Any]:
    """What an index was made with, of all `BertConfig.OF_TEXTS`; for `open_encoder`.

    Args:
        folder: of the index.
        query_prefix, document_prefix: instead of its own, where they are given.
    """
    fields = dataclasses.fields(models.BertConfig)
    values = {x.name: x.default for x in fields if x.name in models.BertConfig.OF_TEXTS}
    values |= retrieval.Index.open(folder).made_from.get("texts", {})
    values["query_prefix"] = sources(folder).get("query_prefix", "")
    given = {"query_prefix": query_prefix, "document_prefix": document_prefix}
    return values | {name: x for name, x in given.items() if x is not None}


def _tell_of_other_texts(folder, encoder: Encoder, query_prefix) -> None:
    """Says what the encoder's folder says of texts and was not known to the index.

    As of an index from before sentence-transformers' prompts were read.
    """
    recorded = sources(folder).get(_SAYS)
    before = of_texts(folder) if recorded is None else recorded
    asked = () if query_prefix is None else ("query_prefix",)
    now = encoder.says
    other = [x for x in now if x not in asked and now[x] != before.get(x)]
    if other:
        _log.warning(
            "%s was made before %s of %s was followed, and is searched as it was made; "
            "to follow it, build the index again in another folder",
            folder,
            ", ".join(f"{x} {now[x]!r}" for x in other),
            encoder.path,
        )


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
    corpora = corpora or sources(folder)["corpora"]
    corpus = formats.read_corpora(corpora)  # of one id, what was encoded comes first
    rows = {each: row for row, each in enumerate(corpus.ids)}
    if missing := [each for each in ids if each not in rows]:
        raise errors.UserError(
            f"{len(missing)} documents of {folder} have no text in "
            f"{', '.join(corpora)}, e.g. {missing[0]!r}; name the files with --corpus"
        )
    digests = text_digests.read(folder, len(ids))
    text_digests.warn_of_changed(folder, ids, digests, corpus)
    order = [rows[each] for each in ids]
    return formats.Corpus(*([column[row] for row in order] for column in corpus))


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
        map(encoder.config.query, texts),
        length=encoder.length,
        mesh=encoder.mesh,
        progress=lambda done: progress(done, len(texts)),
    )


def _made_from(folder, encoder: Encoder) -> dict[str, Any]:
    """What an index in `folder` remembers, or would, of the encoder."""
    own = model_digests.made_from(encoder.path, encoder.length, encoder.of_documents)
    return model_digests.as_recorded(folder, own)


def _missing_from(index, corpus: formats.Corpus) -> tuple[list[str], list[str]]:
    """Ids and passages of the documents that an index lacks."""
    indexed = {*index.ids.tolist()}
    pairs = zip(corpus.ids, corpus.passages(), strict=True)
    missing = [(each, passage) for each, passage in pairs if each not in indexed]
    return [each for each, _ in missing], [passage for _, passage in missing]


def sources(folder: str | pathlib.Path) -> dict[str, Any]:
    """Where the texts and the encoder of an index lay when it was made."""
    fix = "restore it from a copy, or build the index again"
    needed = ("corpora", "encoder", "length")
    content = json_text.read_object(pathlib.Path(folder) / _SOURCE, fix, needed)
    if content is None:
        raise errors.UserError(
            f"{folder} has no {_SOURCE}; build it with jaxlab retrieve index"
        )
    file = pathlib.Path(folder) / _SOURCE
    value_types.check(content, _KINDS, file=str(file))
    return content
