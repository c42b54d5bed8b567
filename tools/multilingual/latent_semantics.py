"""A start for pre-training in which translations already lie side by side.

    X_dv = log(1 + count of token v in document d) * log((1 + N) / (1 + df_v))
    rows of X of length 1;  X ~ U S V';  embedding of token v = idf_v V_v S^(1/2),
    scaled to length 1

Latent semantic analysis (Deerwester et al. 1990) of documents that hold a text in all
its languages, as Dumais et al. 1997 (AAAI Spring Symposium, Automatic cross-language
retrieval using latent semantic indexing): tokens that stand in the same documents get
like vectors, whatever their language. A few thousand sentences are enough, where a
language model that starts from noise needs many times more.

X is sparse, and its singular vectors are ARPACK's (`scipy.sparse.linalg.svds`).
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from scipy import sparse
from scipy.sparse import linalg

from jaxlab import models
from jaxlab.core import errors
from jaxlab.models import sections as sections_lib
from jaxlab.systems import corpora


def write_start(
    config: ml_collections.ConfigDict,
    out: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    domain: str = "parallel",
    residual: float = 0.3,
) -> None:
    """Writes a Hugging Face folder that is the `init_from` of a pre-training config.

    Its embedding is that of `token_vectors`; everything else is as a fresh decoder has
    it, but for the outputs of the blocks.

    Args:
        config: of `olmo.pretrain`; `data.folder` is where its corpus is prepared, and
            `model.tied` must be set, so that the vectors are read and said alike.
        out: the folder, which must not exist.
        mesh: of devices.
        domain: whose documents hold a text in several languages, as those of
            `parallel_text.pretraining_text`.
        residual: what the blocks' outputs are multiplied by: fresh ones are noise.

    Raises:
        UserError: no data.folder, no such domain, an untied model.
    """
    if not config.data.folder:
        raise errors.UserError(
            "set data.folder: where the corpus is prepared and stays"
        )
    if not config.model.tied:
        raise errors.UserError("set model.tied: the head has to be the embedding")
    out = pathlib.Path(out)
    corpus = corpora.open_corpus(config.data, out)
    if domain not in corpus.train:
        raise errors.UserError(
            f"no domain {domain!r}; the domains are {', '.join(corpus.train)}"
        )
    model_config = sections_lib.transformer_config(config.model, corpus.tokenizer, mesh)
    model = models.Decoder(model_config)

    @jax.jit
    def fresh():
        tokens = jnp.zeros((1, 8), jnp.int32)
        return nn.unbox(model.init(jax.random.key(config.seed), tokens)["params"])

    params = fresh()
    file = corpus.train[domain]
    documents = np.split(np.asarray(file.tokens), file.ends[:-1])
    vectors = token_vectors(documents, *params["embed"]["embedding"].shape)
    seen = np.linalg.norm(vectors, axis=1, keepdims=True) > 0
    params["embed"]["embedding"] = jnp.where(
        seen, vectors, params["embed"]["embedding"]
    )
    for part, kernel in (("attn", "o"), ("mlp", "down")):
        params["blocks"][part][kernel]["kernel"] *= residual
    models.hf.save(
        out,
        model_config,
        params,
        dtype="float32",
        tokenizer_folder=pathlib.Path(config.data.folder) / "tokenizer",
    )


def token_vectors(
    documents: Sequence[np.ndarray], vocab: int, dim: int, *, seed: int = 0
) -> np.ndarray:
    """Vectors of tokens by the documents that they stand in.

    Args:
        documents: token ids of each.
        vocab: number of ids.
        dim: of the vectors.
        seed: of the vector that ARPACK starts from.

    Returns:
        f32[vocab, dim]: rows of length 1, or of 0 where a token stands in no document
        or in every one, which tells nothing.

    Raises:
        UserError: not more documents and ids than dimensions.

    >>> vectors = token_vectors([np.array([0, 1]), np.array([2])] * 2, 3, 2)
    >>> abs(vectors @ vectors.T).round(2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if min(len(documents), vocab) <= dim:
        raise errors.UserError(
            f"{len(documents)} documents of {vocab} tokens do not span {dim} "
            "dimensions; add documents or cut model.embed"
        )
    seen = np.zeros(vocab)
    for document in documents:
        seen[np.unique(document)] += 1
    idf = np.where(seen > 0, np.log((1 + len(documents)) / (1 + seen)), 0.0)
    idf = idf.astype(np.float32)

    rows = _weighted_counts(documents, vocab, idf)
    first = np.random.default_rng(seed).normal(size=min(rows.shape)).astype(np.float32)
    _, values, right = linalg.svds(rows, dim, v0=first, return_singular_vectors="vh")
    vectors = idf[:, None] * right.T * np.sqrt(np.maximum(values, 0.0))
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    told = norm > 1e-6 * norm.max()
    return np.where(told, vectors / np.where(told, norm, 1.0), 0.0).astype(np.float32)


def _weighted_counts(
    documents: Sequence[np.ndarray], vocab: int, idf: np.ndarray
) -> sparse.csr_array:
    """X, f32[documents, vocab], with rows of length 1."""
    tokens, counts = zip(
        *(np.unique(ids, return_counts=True) for ids in documents), strict=True
    )
    ends = np.cumsum([0, *map(len, tokens)])
    column = np.concatenate(tokens)
    values = np.log1p(np.concatenate(counts).astype(np.float32)) * idf[column]
    rows = sparse.csr_array((values, column, ends), (len(documents), vocab))
    norm = np.sqrt(rows.power(2).sum(axis=1))
    scale = (1 / np.maximum(norm, 1e-9)).astype(np.float32)
    return sparse.diags_array(scale) @ rows
